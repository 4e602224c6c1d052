"""Applying subjects: both branches in one node, or each half for graphs with text nodes of their own."""

from comfy_api.latest import io

from ..mmdiff_model.prompt import check_negative, check_spelling, check_triggers, strip_triggers
from ..mmdiff_model.sampling import apply_subjects
from ..mmdiff_model.sampling.routing import MODES, OFF
from ..mmdiff_model.schedule import Schedule
from ..mmdiff_model.text import encode_plain, encode_text
from .checks import check_range, checked, validation
from .sockets import connected_subjects, mmdiff_input, subjects_input

AS_RELEASED, CLEAN = "as released", "clean"
PLAIN_BEFORE = (
    "Delayed conditioning: before this part of sampling (0 to 1) the prompt is plain. Higher follows the text's layout "
    "more and the subject less."
)
PLAIN_AFTER = "After this part of sampling (0 to 1) the prompt is plain again."


def text_inputs() -> list[io.Input]:
    return [
        io.String.Input(
            "positive",
            multiline=True,
            dynamic_prompts=True,
            tooltip="The prompt, with <|subj|> directly after each subject's class word: a man<|subj|> on the beach. "
            "<|subj:2|> and <|subj:anna|> call a subject by number or name.",
        ),
        io.String.Input("negative", multiline=True, dynamic_prompts=True, tooltip="What the picture should not show."),
    ]


def range_inputs(start: str, end: str) -> list[io.Input]:
    """The part of sampling in which something acts; start, end: what the two numbers do in this node."""
    return [
        io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001, tooltip=start),
        io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001, tooltip=end),
    ]


def fuse_scale_input() -> io.Input:
    return io.Float.Input(
        "fuse_scale",
        default=0.8,
        min=0.0,
        max=2.0,
        step=0.01,
        tooltip="Strength of the image branch. 0.8 works for most; higher is closer to the subject, lower to the text.",
    )


def negative_fusion_input() -> io.Input:
    return io.Combo.Input(
        "negative_fusion",
        options=[AS_RELEASED, CLEAN],
        default=AS_RELEASED,
        advanced=True,
        tooltip="The released code also fuses the subject into the negative prompt's token at the class word's "
        "position. 'clean' leaves the negative prompt as written.",
    )


def routing_input() -> io.Input:
    return io.Combo.Input(
        "routing",
        options=list(MODES),
        default=OFF,
        tooltip="Keeps several subjects apart. 'off': all share the picture, as released. 'masks': each stays in its "
        "MM-Diff Subject Region. 'auto': regions are read from the prompt's own attention while sampling.",
    )


def check_prompts(positive: str | None, negative: str | None, subjects: dict | None) -> None:
    """Raises PromptError on what is known of a prompt from the number of subjects; a linked one is not known yet."""
    if isinstance(positive, str) and subjects:
        check_triggers(positive, len(subjects))
    if isinstance(negative, str):
        check_negative(negative)


def check_plain(positive: str | None, negative: str | None) -> None:
    """Raises ValueError on mistyped triggers, which would not be taken out of a plain prompt."""
    if isinstance(positive, str):
        check_spelling(positive)
    if isinstance(negative, str):
        check_negative(strip_triggers(negative))


class MMDiffApply(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffApply",
            display_name="Apply MM-Diff",
            category="MM-Diff",
            description="Puts subjects into the prompt and the model. Connect the three outputs to any KSampler.",
            search_aliases=[
                "mmdiff",
                "personalize",
                "face",
                "identity",
                "subject",
                "character",
                "ip adapter",
                "ipadapter",
                "instantid",
                "photomaker",
                "pulid",
                "reference",
            ],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model."),
                io.Clip.Input("clip", tooltip="The SDXL model's CLIP."),
                mmdiff_input(),
                subjects_input(),
                *text_inputs(),
                fuse_scale_input(),
                *range_inputs(PLAIN_BEFORE, PLAIN_AFTER),
                routing_input(),
                negative_fusion_input(),
                io.Int.Input(
                    "start_merge_step",
                    default=0,
                    min=0,
                    max=10000,
                    advanced=True,
                    tooltip="Above 0: this many steps at the beginning use the plain prompt, and the subject comes in "
                    "after them. The released code counts in this way. start_percent is then ignored.",
                ),
                io.Boolean.Input(
                    "enabled",
                    default=True,
                    optional=True,  # prompts that were saved before it was there stay valid
                    tooltip="Off gives the model as it came and the prompt without its triggers: the picture without "
                    "MM-Diff, from the same graph.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the subjects' image branch and the LoRAs."
                ),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the subjects fused in."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        clip,
        mmdiff,
        subjects: io.Autogrow.Type,
        positive: str,
        negative: str,
        fuse_scale: float,
        start_percent: float,
        end_percent: float,
        routing: str = OFF,
        negative_fusion: str = AS_RELEASED,
        start_merge_step: int = 0,
        enabled: bool = True,
    ) -> io.NodeOutput:
        if not enabled:
            check_plain(positive, negative)
            texts = {"positive": strip_triggers(positive), "negative": strip_triggers(negative)}
            return io.NodeOutput(model, *(encode_plain(clip, text, source) for source, text in texts.items()))
        check_range(start_percent, end_percent)
        found = connected_subjects(subjects, mmdiff)
        schedule = Schedule(start_percent, end_percent, start_merge_step)
        text = encode_text(clip, mmdiff, found, positive, negative, schedule, clean_negative=negative_fusion == CLEAN)
        return io.NodeOutput(
            apply_subjects(model, mmdiff, found, fuse_scale, schedule, routing), text.positive, text.negative
        )

    @classmethod
    def validate_inputs(
        cls, subjects=None, positive=None, negative=None, start_percent=None, end_percent=None, enabled=True
    ) -> bool | str:
        if not enabled:  # off, or linked and not known yet
            return validation(lambda: check_plain(positive, negative))
        return validation(
            lambda: check_range(start_percent, end_percent), lambda: check_prompts(positive, negative, subjects)
        )


class MMDiffTextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffTextEncode",
            display_name="MM-Diff Text Encode",
            category="MM-Diff/advanced",
            description="The text half of Apply MM-Diff: a prompt with subjects, and its negative. Give both halves "
            "the same subjects and range.",
            search_aliases=["mmdiff prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="The SDXL model's CLIP."),
                mmdiff_input(),
                subjects_input(),
                *text_inputs(),
                *range_inputs(PLAIN_BEFORE, PLAIN_AFTER),
                negative_fusion_input(),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with the subjects fused in."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        clip,
        mmdiff,
        subjects: io.Autogrow.Type,
        positive: str,
        negative: str,
        start_percent: float,
        end_percent: float,
        negative_fusion: str = AS_RELEASED,
    ) -> io.NodeOutput:
        check_range(start_percent, end_percent)
        text = encode_text(
            clip,
            mmdiff,
            connected_subjects(subjects, mmdiff),
            positive,
            negative,
            Schedule(start_percent, end_percent),
            clean_negative=negative_fusion == CLEAN,
        )
        return io.NodeOutput(text.positive, text.negative)

    @classmethod
    def validate_inputs(
        cls, subjects=None, positive=None, negative=None, start_percent=None, end_percent=None
    ) -> bool | str:
        return validation(
            lambda: check_range(start_percent, end_percent), lambda: check_prompts(positive, negative, subjects)
        )


class MMDiffApplyModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffApplyModel",
            display_name="Apply MM-Diff to Model",
            category="MM-Diff/advanced",
            description="The image half of Apply MM-Diff: the subjects' image branch and the LoRAs. Give both halves "
            "the same subjects and range.",
            search_aliases=["mmdiff model"],
            inputs=[
                io.Model.Input("model", tooltip="An SDXL model."),
                mmdiff_input(),
                subjects_input(),
                fuse_scale_input(),
                *range_inputs(
                    "The image branch acts from this part of sampling on (0 to 1). Give MM-Diff Text Encode the same "
                    "number.",
                    "The image branch acts up to this part of sampling (0 to 1). Give MM-Diff Text Encode the same "
                    "number.",
                ),
                routing_input(),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The model with the subjects' image branch and the LoRAs."
                )
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        mmdiff,
        subjects: io.Autogrow.Type,
        fuse_scale: float,
        start_percent: float,
        end_percent: float,
        routing: str = OFF,
    ) -> io.NodeOutput:
        check_range(start_percent, end_percent)
        found = connected_subjects(subjects, mmdiff)
        return io.NodeOutput(
            apply_subjects(model, mmdiff, found, fuse_scale, Schedule(start_percent, end_percent), routing)
        )

    @classmethod
    def validate_inputs(cls, subjects=None, start_percent=None, end_percent=None) -> bool | str:
        return validation(lambda: check_range(start_percent, end_percent))
