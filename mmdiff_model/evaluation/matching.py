"""FastComposer's protocol for several people: faces are matched to references, the weakest match is the score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..faces import detect, find_faces, to_bgr
from .protocols import angle
from .recogniser import Recogniser

SAME_FACE = 0.01  # radians between two vectors of one face; float32 cosines tell no less
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


def reference_faces(
    analysis: Any, photos: Sequence[Tensor], source: str = "images", recogniser: Recogniser | None = None
) -> np.ndarray:
    """Photos (H, W, 3) of one subject -> unit vectors (photos, d) of their largest faces.

    Raises ValueError on a photo without a face, naming `source`, the photos' input.
    """
    own = np.stack([face.embedding.numpy() for face in detect(analysis, list(photos), source=source)])
    if recogniser is None:
        return own
    images = [to_bgr(photo) for photo in photos]
    return np.concatenate([recogniser.vectors(image, [largest(find_faces(analysis, image))]) for image in images])


def unseen_faces(
    analysis: Any,
    photos: Sequence[Tensor],
    references: Sequence[np.ndarray],
    source: str,
    recogniser: Recogniser | None = None,
) -> list[np.ndarray]:
    """One further photo of each subject -> its face (d,).

    Raises ValueError, naming `source`, on another number of photos, one without a face, and one of the references.
    """
    if len(photos) != len(references):
        raise ValueError(
            f"{source}: got {len(photos)} photos for {len(references)} subjects. Give one further photo of each "
            "subject, in their order."
        )
    faces = reference_faces(analysis, photos, source, recogniser)
    for number, (face, own) in enumerate(zip(faces, references, strict=True), start=1):
        if min(angle(face, photo) for photo in own) < SAME_FACE:
            raise ValueError(
                f"{source}: photo {number} shows the face of a reference of subject {number} itself. Copies can only "
                "be told with another photo of the subject."
            )
    return list(faces)


def largest(found: Sequence[Any]) -> Any:
    return max(found, key=lambda face: (face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]))


def found_vectors(recogniser: Recogniser | None, image: np.ndarray, found: Sequence[Any]) -> np.ndarray:
    """InsightFace's faces in a BGR image -> unit vectors (faces, d), the pack's own without another recogniser."""
    if recogniser is None or not found:
        return np.array([face.normed_embedding for face in found])
    return recogniser.vectors(image, found)


def face_cosines(vectors: np.ndarray, references: Sequence[np.ndarray]) -> np.ndarray:
    """(faces, d) and each subject's (photos, d) -> (faces, subjects): the mean cosine with the subject's photos."""
    if not len(vectors):
        return np.zeros((0, len(references)))
    return np.stack([(vectors @ photos.T).mean(axis=1) for photos in references], axis=1)


def match_faces(cosines: np.ndarray, boxes: Sequence[Box]) -> FaceMatch:
    """A table of cosines (faces, subjects) and the faces' boxes -> matches of at least 0.

    As FastComposer's multi_object_evaluation.py matches, but among all faces, and a subject without one has 0.
    """
    matches = greedy_match(cosines)
    return FaceMatch(
        tuple(0.0 if face is None else max(0.0, float(cosines[face, i])) for i, face in enumerate(matches)),
        tuple(None if face is None else boxes[face] for face in matches),
    )


@dataclass(frozen=True)
class FaceMatcher:
    """InsightFace and the reference_faces of each subject, by its own recogniser or another.

    `unseen` holds a further face of each subject (d,), which its encoding did not see, for copy-paste.
    """

    analysis: Any
    references: Sequence[np.ndarray]
    recogniser: Recogniser | None = None
    unseen: Sequence[np.ndarray] = ()

    @property
    def name(self) -> str:
        """The recogniser's file, such as w600k_r50.onnx; the object's class where that is not known."""
        if self.recogniser is not None:
            return self.recogniser.name
        models = getattr(self.analysis, "models", None)
        recognition = models.get("recognition") if isinstance(models, Mapping) else None
        return Path(getattr(recognition, "model_file", type(self.analysis).__name__)).name


def boxes_of(found: Sequence[Any]) -> list[Box]:
    return [tuple(map(float, face.bbox)) for face in found]
