"""A subject: the identity of one person, pet or thing as data, made from its reference photos.

Released behaviour: the first photo gives the CLS, every photo gives its own group of subject tokens, all concatenated.
"""

from dataclasses import dataclass
from hashlib import sha256

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from .adapter import PORTRAIT
from .checkpoint import Checkpoint
from .completeness import check_last_layers
from .vision import check_clip_vision, encode_cls, encode_patches, resize, resize_square

WHITE, BLACK = 1.0, 0.0
THUMBNAIL = 128
FAR = 0.2
# in CLS and tokens: far beyond what layer norms give; not far beyond it half precision ends, and paints black
LARGEST_IDENTITY = 1e4


@dataclass(frozen=True, eq=False)
class Face:
    """A face: ArcFace `embedding` (512,) of unit norm, aligned `crop` (224, 224, 3) in 0..1, detection `score`."""

    embedding: Tensor
    crop: Tensor
    score: float = 1.0


@dataclass(frozen=True, eq=False)
class Subject:
    """CLS (768,) for the text, tokens (photos, 4, 2048) for the image branch, and where and how strongly they act.

    `space` and `variant` name the checkpoint that made it; `region` is None or a mask (H, W) in 0..1; percents are of
    sampling. What was encoded stays known: `scores` of the faces, `outliers` (1-based numbers of photos unlike the
    rest), a `thumbnail`.
    """

    cls: Tensor
    tokens: Tensor
    variant: str
    space: str
    name: str = ""
    strength: float = 1.0
    start_percent: float = 0.0
    end_percent: float = 1.0
    region: Tensor | None = None
    scores: tuple[float, ...] = ()
    outliers: tuple[int, ...] = ()
    thumbnail: Tensor | None = None


def encode_subject(
    checkpoint: Checkpoint,
    clip_vision: ClipVisionModel,
    photos: list[Tensor],
    faces: list[Face] | None = None,
    cls_from: str = "first",
) -> Subject:
    """Reference photos (H, W, 3) in 0..1 of one subject -> Subject.

    faces: one per photo, needed by `portrait`; `subject` takes photos cut out on white. cls_from: `first` photo, as
    released, or the `mean` of all. Raises ValueError on another CLIP, no photos, or faces that do not match.
    """
    check_clip_vision(clip_vision, checkpoint)
    try:
        check_last_layers(checkpoint.vision, len(clip_vision.model.vision_model.encoder.layers))
    except ValueError as error:
        raise ValueError(
            f"mmdiff: the checkpoint '{checkpoint.name}' is incomplete, {error}. Get it again, or connect the CLIP "
            "vision model that it was trained with."
        ) from error
    if not photos:
        raise ValueError("images: a subject needs at least one reference photo")
    if checkpoint.variant == PORTRAIT:
        if faces is None or len(faces) != len(photos):
            raise ValueError(
                f"faces: a portrait checkpoint needs one face per photo, got {len(faces or [])} for {len(photos)} "
                "photos"
            )
        cls = encode_cls(clip_vision, checkpoint, photos, BLACK)
        identity = torch.stack([face.embedding for face in faces]).float()
        crops = [resize(face.crop, clip_vision.image_size) for face in faces]
    else:
        cls = encode_cls(clip_vision, checkpoint, photos, WHITE)
        identity = cls
        crops = [resize_square(photo, clip_vision.image_size, WHITE) for photo in photos]
    tokens = subject_tokens(checkpoint, identity, encode_patches(clip_vision, crops))
    return Subject(
        cls=cls[0] if cls_from == "first" else cls.mean(dim=0),
        tokens=tokens,
        variant=checkpoint.variant,
        space=checkpoint.hash,
        scores=tuple(face.score for face in faces or ()),
        outliers=find_outliers(identity),
        thumbnail=resize(crops[0], THUMBNAIL),
    )


def identify(subject: Subject) -> tuple[str, str, str, str]:
    """Who a subject is, wherever its copies and files are: digests of CLS, tokens and region, and its name."""
    traits = (subject.cls, subject.tokens, subject.region)
    return *("" if x is None else sha256(x.float().cpu().numpy().tobytes()).hexdigest() for x in traits), subject.name


def is_plausible(identity: Tensor) -> bool:
    """Whether CLS or tokens hold numbers that a model can paint with; NaN is none."""
    return bool((identity.abs() <= LARGEST_IDENTITY).all())


def find_outliers(identity: Tensor) -> tuple[int, ...]:
    """1-based numbers of photos whose identity vectors (n, d) are far from the others'; needs three photos or more.

    A photo stands out when it is FAR from the closest half of the photos (1 - cosine), and twice as far as the median
    photo is. Far from all others would not do: of three, the odd one draws the good two away from their mean as well.
    """
    if len(identity) < 3:
        return ()
    directions = identity / identity.norm(dim=-1, keepdim=True)
    distances = (1 - directions @ directions.T).fill_diagonal_(torch.inf)
    closest = distances.topk(len(identity) // 2, largest=False).values.mean(dim=1)
    return tuple(int(i) + 1 for i in (closest > (2 * closest.median()).clamp(min=FAR)).nonzero()[:, 0])


@torch.no_grad()
def subject_tokens(checkpoint: Checkpoint, identity: Tensor, patches: Tensor) -> Tensor:
    """Identity vectors (n, 512 or 768) and patches (n, 257, 1024) -> subject tokens (n, 4, 2048) float32 on the CPU."""
    comfy.model_management.load_model_gpu(checkpoint.adapter)
    device = checkpoint.adapter.load_device
    return checkpoint.adapter.model.subject_tokens(identity.to(device), patches.to(device)).cpu()
