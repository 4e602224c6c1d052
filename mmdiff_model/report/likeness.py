"""How like pictures are to their subjects, by what a subject keeps: its CLS, and the face of its thumbnail.

Photos are not kept, so that subjects from files are compared as others are. A thumbnail is the first photo's aligned
crop, which a recogniser reads as it is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor

from ..adapter import PORTRAIT
from ..checkpoint import Checkpoint
from ..evaluation.matching import FaceMatch, boxes_of, face_cosines, found_vectors, match_faces
from ..faces import find_faces, to_bgr
from ..subject import BLACK, WHITE, Subject
from ..vision import check_clip_vision, encode_cls


def face_likeness(analysis: Any, subjects: Sequence[Subject], pictures: Sequence[Tensor]) -> list[FaceMatch]:
    """For each picture (H, W, 3) in 0..1, the subjects' faces in it as evaluation matches them.

    Raises ValueError where a subject has no face to compare with, and whatever another pack's object raises.
    """
    for number, subject in enumerate(subjects, start=1):
        if subject.variant != PORTRAIT:
            raise ValueError("this checkpoint's subjects keep no faces, as those of a portrait checkpoint do")
        if subject.thumbnail is None:
            raise ValueError(f"subject {number} has no picture of its face. Encode its photos again")
    references = [face_of_crop(analysis, subject.thumbnail) for subject in subjects]
    matches = []
    for picture in pictures:
        image = to_bgr(picture)
        found = find_faces(analysis, image)
        matches.append(match_faces(face_cosines(found_vectors(None, image, found), references), boxes_of(found)))
    return matches


def face_of_crop(analysis: Any, crop: Tensor) -> np.ndarray:
    """An aligned crop (s, s, 3) in 0..1 -> its unit vector (1, 512) by InsightFace's recogniser."""
    vector = analysis.models["recognition"].get_feat(to_bgr(crop)).reshape(1, -1)
    return vector / np.linalg.norm(vector)


def clip_likeness(
    clip_vision: ClipVisionModel, checkpoint: Checkpoint, subjects: Sequence[Subject], pictures: Sequence[Tensor]
) -> Tensor:
    """Cosines (subjects, pictures) of whole pictures with each subject's CLS, by the checkpoint's own CLIP.

    Raises ValueError where it is another CLIP than the checkpoint's.
    """
    check_clip_vision(clip_vision, checkpoint)
    fill = BLACK if checkpoint.variant == PORTRAIT else WHITE
    seen = encode_cls(clip_vision, checkpoint, list(pictures), fill)
    known = torch.stack([subject.cls for subject in subjects])
    return torch.nn.functional.cosine_similarity(known[:, None], seen[None], dim=-1)
