"""Mixing the identities of several subjects into one."""

from comfy_api.latest import io

from ..mmdiff_model.mixing import check_weights, join_tokens, spherical, weighted_mean
from .checks import check_option, checked, validation
from .sockets import MMDiffSubject, connected_subjects, subjects_input

MODES = ALL_TOKENS, WEIGHTED, SPHERICAL = "all tokens (as released)", "weighted mean", "spherical"


class MMDiffMixSubjects(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffMixSubjects",
            display_name="Mix MM-Diff Subjects",
            category="MM-Diff",
            description="Several subjects become one: photos of different sizes of one person, or a mix of identities.",
            search_aliases=["identity mixing", "blend faces", "merge subjects"],
            inputs=[
                subjects_input("The subjects to mix. They become one subject, which a single <|subj|> calls."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=ALL_TOKENS,
                    tooltip="'all tokens' is the released identity mixing: the class word in the prompt is fused with "
                    "the first subject, and the image branch sees all of them. 'weighted mean' and 'spherical' blend "
                    "the subjects by the weights in both.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="One weight for each subject, such as 1, 0.5. Empty: equal. Not used by 'all tokens'.",
                ),
            ],
            outputs=[MMDiffSubject.Output(display_name="subject", tooltip="The mixed subject, for Apply MM-Diff.")],
        )

    @classmethod
    @checked
    def execute(cls, subjects: io.Autogrow.Type, mode: str, weights: str) -> io.NodeOutput:
        found = connected_subjects(subjects, may_share_names=True)
        if mode == ALL_TOKENS:
            return io.NodeOutput(join_tokens(found))
        numbers = parse_weights(weights) or [1.0] * len(found)
        return io.NodeOutput((weighted_mean if mode == WEIGHTED else spherical)(found, numbers))

    @classmethod
    def validate_inputs(cls, subjects=None, mode=None, weights=None) -> bool | str:
        used = mode in (WEIGHTED, SPHERICAL) and isinstance(weights, str) and subjects is not None
        return validation(
            lambda: check_option("mode", mode, MODES),
            lambda: used and (numbers := parse_weights(weights)) and check_weights(numbers, len(subjects)),
        )


def parse_weights(text: str) -> list[float]:
    """Comma-separated numbers. Raises ValueError naming the input."""
    try:
        return [float(part) for part in text.split(",")] if text.strip() else []
    except ValueError as error:
        raise ValueError(
            f"weights: {text!r} is not a list of numbers. Write one for each subject, such as: 1, 0.5"
        ) from error
