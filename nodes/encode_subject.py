"""Reference photos -> a subject."""

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..mmdiff_model.adapter import PORTRAIT
from ..mmdiff_model.checkpoint import Checkpoint
from ..mmdiff_model.faces import WHICH, detect
from ..mmdiff_model.subject import Face, Subject, encode_subject
from ..mmdiff_model.vision import resize_square, segment
from .checks import checked
from .images import masks_from, photos_from
from .sockets import FACE_SOCKETS, MMDiffSubject, mmdiff_input

FIRST, MEAN = "first photo (as released)", "mean of all photos"
PREVIEW_SIZE = 224


class MMDiffEncodeSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffEncodeSubject",
            display_name="Encode MM-Diff Subject",
            category="MM-Diff",
            description="Turns one or several photos of one person, pet or thing into a subject. Different sizes: "
            "encode each and mix them.",
            search_aliases=[
                "reference image",
                "face id",
                "identity",
                "ip adapter",
                "ipadapter",
                "instantid",
                "photomaker",
                "pulid",
            ],
            inputs=[
                mmdiff_input(),
                io.ClipVision.Input(
                    "clip_vision", tooltip="CLIP ViT-L/14 (openai/clip-vit-large-patch14), from the CLIP Vision loader."
                ),
                io.Image.Input(
                    "images",
                    tooltip="Photos of one subject; a batch is several photos of it. More photos, better likeness.",
                ),
                io.MultiType.Input(
                    "face_analysis",
                    types=FACE_SOCKETS,
                    optional=True,
                    tooltip="InsightFace, needed by portrait checkpoints. Load Face Analysis gives one; those of "
                    "other packs work too.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="White on the subject: one mask, or one per photo. The rest of the photo becomes white.",
                ),
                io.Combo.Input(
                    "face",
                    options=list(WHICH),
                    default=WHICH[0],
                    advanced=True,
                    tooltip="Which face to take where a photo has several.",
                ),
                io.Int.Input(
                    "face_index",
                    default=1,
                    min=1,
                    max=64,
                    advanced=True,
                    tooltip="Which one from the left, for face 'left to right'.",
                ),
                io.Combo.Input(
                    "cls_from",
                    options=[FIRST, MEAN],
                    default=FIRST,
                    advanced=True,
                    tooltip="Which photo the class word in the prompt is fused with: the first, as in the released "
                    "code, or the mean of all. The image branch sees all of them either way.",
                ),
            ],
            outputs=[
                MMDiffSubject.Output(display_name="subject", tooltip="The subject, for Apply MM-Diff."),
                io.Image.Output(
                    display_name="crops", tooltip="What was encoded: the aligned faces, or the subject on white."
                ),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        mmdiff,
        clip_vision,
        images: Tensor,
        face: str = WHICH[0],
        face_index: int = 1,
        cls_from: str = FIRST,
        face_analysis=None,
        masks: Tensor | None = None,
    ) -> io.NodeOutput:
        photos = photos_from(images)
        if masks is not None:
            photos = [segment(photo, mask) for photo, mask in zip(photos, masks_from(masks, photos), strict=True)]
        faces = find_faces(mmdiff, face_analysis, photos, face, face_index)
        subject = encode_subject(mmdiff, clip_vision, photos, faces, cls_from="first" if cls_from == FIRST else "mean")
        crops = (
            [found.crop for found in faces] if faces else [resize_square(photo, PREVIEW_SIZE, 1.0) for photo in photos]
        )
        return io.NodeOutput(subject, torch.stack(crops), ui=preview(cls, crops, subject))


def find_faces(
    mmdiff: Checkpoint, face_analysis, photos: list[Tensor], face: str, face_index: int
) -> list[Face] | None:
    """One face per photo for a portrait checkpoint, None for others. Raises ValueError without a face analysis."""
    if mmdiff.variant != PORTRAIT:
        return None
    if face_analysis is None:
        raise ValueError(
            "face_analysis: a portrait checkpoint needs one. Connect Load Face Analysis (MM-Diff), or the "
            "InsightFace loader of another pack."
        )
    return detect(face_analysis, photos, face, face_index)


def preview(cls: type[io.ComfyNode], crops: list[Tensor], subject: Subject) -> dict:
    """The crops in the node, with a line on photos that are unlike the rest."""
    shown = ui.PreviewImage(torch.stack(crops), cls=cls).as_dict()
    if subject.outliers:
        numbers = ", ".join(map(str, subject.outliers))
        shown |= ui.PreviewText(f"Photo {numbers} looks unlike the others: is it the same subject?").as_dict()
    return shown
