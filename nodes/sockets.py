"""Sockets and inputs that several nodes share."""

from comfy_api.latest import io

from ..mmdiff_model.checkpoint import Checkpoint, same_space
from ..mmdiff_model.subject import LARGEST_IDENTITY, Subject, is_plausible

MMDiff = io.Custom("MMDIFF")
MMDiffSubject = io.Custom("MMDIFF_SUBJECT")

# the same InsightFace object under the names that ComfyUI, IPAdapter plus and InstantID / PuLID give its socket
FACE_SOCKETS = [io.Custom(name) for name in ("FACE_ANALYSIS", "INSIGHTFACE", "FACEANALYSIS")]
MAX_SUBJECTS = 16


def mmdiff_input() -> io.Input:
    return MMDiff.Input("mmdiff", tooltip="The MM-Diff checkpoint, from Load MM-Diff.")


def subjects_input(
    tooltip: str = "The k-th subject is the one that the k-th <|subj|> in the prompt calls.",
) -> io.Input:
    """A list of subjects that grows as they are connected: subject_1, subject_2, ..."""
    subject = MMDiffSubject.Input(
        "subject", tooltip="A subject from Encode MM-Diff Subject, Mix MM-Diff Subjects or a subject file."
    )
    names = [f"subject_{i + 1}" for i in range(MAX_SUBJECTS)]
    return io.Autogrow.Input(
        "subjects",
        template=io.Autogrow.TemplateNames(subject, names=names, min=1),
        tooltip=tooltip,
    )


def connected_subjects(
    subjects: dict[str, Subject | None], checkpoint: Checkpoint | None = None, may_share_names: bool = False
) -> list[Subject]:
    """The connected subjects in the order of their sockets.

    Raises ValueError without any, with one of another checkpoint's space or sizes or of numbers that paint black, or
    with a name used twice, which is one that a prompt cannot call.
    """
    connected = {name: subject for name, subject in subjects.items() if subject is not None}
    if not connected:
        raise ValueError("subjects: no subject is connected. Connect the output of Encode MM-Diff Subject.")
    # a digest of an older version is a part of a newer one's
    first = max(connected.values(), key=lambda subject: len(subject.space))
    owner, variant, space = ("other subjects", first.variant, first.space)
    wanted = (*first.cls.shape, *first.tokens.shape[1:])
    if checkpoint is not None:
        wanted = (checkpoint.sizes.cls_dim, checkpoint.sizes.num_tokens, checkpoint.sizes.context_dim)
        owner, variant, space = (f"checkpoint '{checkpoint.name}'", checkpoint.variant, checkpoint.hash)
    seen = set()
    for name, subject in connected.items():
        if subject.variant != variant or not same_space(subject.space, space):
            raise ValueError(
                f"subjects.{name}: this subject was made with another checkpoint ({subject.variant}, "
                f"{subject.space}) than the {owner} ({variant}, {space}). Encode its photos again with the "
                "checkpoint in use."
            )
        shape = (*subject.cls.shape, *subject.tokens.shape[1:])
        if shape != wanted:
            raise ValueError(
                f"subjects.{name}: this subject has the sizes {shape}, the {owner} {wanted}. Encode its photos again."
            )
        if not (is_plausible(subject.cls) and is_plausible(subject.tokens)):
            raise ValueError(
                f"subjects.{name}: this subject holds numbers that are not finite or beyond {LARGEST_IDENTITY:g}, and "
                "would paint black. It or the checkpoint is damaged: get the checkpoint again, and encode its photos "
                "anew."
            )
        if subject.name and subject.name in seen and not may_share_names:
            raise ValueError(
                f"subjects.{name}: the name '{subject.name}' is used twice. Give each subject its own name."
            )
        seen.add(subject.name)
    return list(connected.values())
