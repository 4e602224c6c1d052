"""FastComposer's protocol for several people: faces are matched to references, the weakest match is the score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..faces import detect, find_faces, to_bgr

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class FaceMatch:
    """Of one picture, for each subject: its face's similarity in 0..1 and box in pixels; 0 and None without a face."""

    similarities: tuple[float, ...]
    boxes: tuple[Box | None, ...]

    @property
    def minimum(self) -> float:
        return min(self.similarities)


def greedy_match(similarities: np.ndarray) -> list[int | None]:
    """(faces, subjects) -> the face of each subject: the highest pair first, each face and subject once.

    Subjects beyond the number of faces get None.
    """
    left = similarities.astype(float)
    matches: list[int | None] = [None] * left.shape[1]
    for _ in range(min(left.shape)):
        face, subject = np.unravel_index(left.argmax(), left.shape)
        matches[subject] = int(face)
        left[face], left[:, subject] = -np.inf, -np.inf
    return matches


def reference_faces(analysis: Any, photos: Sequence[Tensor], source: str = "images") -> np.ndarray:
    """Photos (H, W, 3) of one subject -> unit vectors (photos, 512) of their largest faces.

    Raises ValueError on a photo without a face, naming `source`, the photos' input.
    """
    return np.stack([face.embedding.numpy() for face in detect(analysis, list(photos), source=source)])


@dataclass(frozen=True)
class FaceMatcher:
    """InsightFace and the reference_faces of each subject."""

    analysis: Any
    references: Sequence[np.ndarray]

    @property
    def name(self) -> str:
        """The recogniser's file, such as w600k_r50.onnx; the object's class where that is not known."""
        models = getattr(self.analysis, "models", None)
        recognition = models.get("recognition") if isinstance(models, Mapping) else None
        return Path(getattr(recognition, "model_file", type(self.analysis).__name__)).name

    def match(self, picture: Tensor) -> FaceMatch:
        """A picture (H, W, 3): mean cosine of each matched face with its subject's photos, at least 0."""
        found = find_faces(self.analysis, to_bgr(picture))
        if not found:
            return FaceMatch((0.0,) * len(self.references), (None,) * len(self.references))
        faces = np.stack([face.normed_embedding for face in found])
        cosines = np.stack([(faces @ photos.T).mean(axis=1) for photos in self.references], axis=1)
        matches = greedy_match(cosines)
        return FaceMatch(
            tuple(0.0 if face is None else max(0.0, float(cosines[face, i])) for i, face in enumerate(matches)),
            tuple(None if face is None else tuple(map(float, found[face].bbox)) for face in matches),
        )
