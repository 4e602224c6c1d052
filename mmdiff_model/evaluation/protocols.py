"""What others measure of several subjects, as functions of cosines alone; docs/evaluation.md has the sources.

A table of cosines is (faces, subjects): row f, column s is face f with the photos of subject s.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

ROUNDING = 1e-5  # of float32 cosines: one crop that both words found is no swap


def hungarian_match(cosines: np.ndarray) -> list[int | None]:
    """(faces, subjects) -> the face of each subject with the highest sum of cosines; None beyond the faces' number."""
    matches: list[int | None] = [None] * cosines.shape[1]
    for face, subject in zip(*linear_sum_assignment(-cosines), strict=True):
        matches[subject] = int(face)
    return matches


def multi_id(cosines: np.ndarray) -> float | None:
    """MultiID-Bench: mean cosine of the matched pairs; None, not measured, where their numbers differ."""
    faces, subjects = cosines.shape
    if faces != subjects:
        return None
    return float(np.mean([cosines[face, subject] for subject, face in enumerate(hungarian_match(cosines))]))


def xverse_id(cosines: np.ndarray) -> float:
    """XVerseBench's ID: for each subject its best face, 0 without faces; the mean. One face may serve two subjects."""
    return float(cosines.max(axis=0).mean()) if len(cosines) else 0.0


def xverse_ip(cosines: Sequence[Sequence[float]]) -> float:
    """XVerseBench's IP: for each subject the best cosine among its word's crops, 0 without crops; the mean."""
    return float(np.mean([max(crops, default=0.0) for crops in cosines]))


def angle(one: np.ndarray, other: np.ndarray) -> float:
    """Between two unit vectors, in radians."""
    return float(np.arccos(np.clip(one @ other, -1, 1)))


def copy_paste(generated: np.ndarray, unseen: np.ndarray, references: np.ndarray) -> float:
    """MultiID-Bench, from unit vectors of faces: 1 is the reference again, -1 the unseen photo, 0 as far from each.

    Of several references (n, d) the one nearest to the generated face counts. Its angle to `unseen` must not be 0.
    """
    reference = references[int((references @ generated).argmax())]
    return (angle(generated, unseen) - angle(generated, reference)) / angle(unseen, reference)


def is_swapped(cosines: np.ndarray) -> bool:
    """(words, subjects), row w what was painted at the word of subject w: is another assignment the more alike?"""
    rows, columns = linear_sum_assignment(-cosines)
    return bool(cosines[rows, columns].sum() > np.trace(cosines) + ROUNDING)
