"""Every figure of some pictures in one pass of each model: whole pictures, crops at the words, and faces."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..faces import find_faces, to_bgr
from . import protocols
from .boxes import BoxFinder, square_crop
from .encoders import ClipEncoder, ClipVisionEncoder, PictureEncoder
from .matching import (
    Box,
    FaceMatch,
    FaceMatcher,
    boxes_of,
    face_cosines,
    found_vectors,
    match_faces,
)

SECOND = " (second)"
Key = tuple[str, int | None]  # a metric, and the subject's number from 1 where it is about one subject


@dataclass(frozen=True)
class Models:
    """The encoders that score; `faces` and `second` hold the subjects of one picture and are given with it."""

    clip: ClipEncoder | ClipVisionEncoder | None = None
    dino: PictureEncoder | None = None
    dinov2: PictureEncoder | None = None
    boxes: BoxFinder | None = None

    @property
    def encoders(self) -> dict[str, PictureEncoder | ClipVisionEncoder]:
        """By the metric of the whole picture, those that are there."""
        all_of_them = {"CLIP-I": self.clip, "DINO": self.dino, "DINOv2": self.dinov2}
        return {metric: encoder for metric, encoder in all_of_them.items() if encoder is not None}

    def embed_photos(self, photos: Sequence[Tensor]) -> dict[str, Tensor]:
        """A subject's photos (H, W, 3) -> its unit vectors (photos, d) by metric."""
        return {metric: encoder.embed(photos) for metric, encoder in self.encoders.items()}


@dataclass(frozen=True)
class Case:
    """A picture (H, W, 3) in 0..1, its plain prompt ("" is none), and its subjects.

    subjects: each one's embed_photos. words: each one's class word, or none at all. faces, second: matchers by
    InsightFace's own recogniser and by another, whose references are the subjects in order.
    """

    picture: Tensor
    prompt: str
    subjects: Sequence[dict[str, Tensor]] = ()
    words: Sequence[str] = ()
    faces: FaceMatcher | None = None
    second: FaceMatcher | None = None


@dataclass
class Figures:
    """Of one picture: `scores` by metric and subject; `protocols` of several subjects, None where not measured.

    swaps: by "DINO" and "face", rows of cosines: the row of a word with every subject, None where nothing was found.
    """

    scores: dict[Key, float] = field(default_factory=dict)
    protocols: dict[str, float | None] = field(default_factory=dict)
    swaps: dict[str, list[list[float] | None]] = field(default_factory=dict)
    boxes: tuple[Box | None, ...] = ()


def measure(models: Models, cases: Sequence[Case], progress: Callable[[], None] = lambda: None) -> list[Figures]:
    """Every figure that the models allow. `progress` is called after each encoder and after each picture's faces."""
    figures = [Figures() for _ in cases]
    found = word_boxes(models, cases)
    crops = [
        {word: [square_crop(case.picture, box) for box in boxes] for word, boxes in by_word.items()}
        for case, by_word in zip(cases, found, strict=True)
    ]
    for metric, encoder in models.encoders.items():
        pictures = [case.picture for case in cases]
        cut = (
            [crop for by_word in crops for squares in by_word.values() for crop in squares] if metric == "DINO" else []
        )
        whole, crop_vectors = encoder.embed([*pictures, *cut]).split([len(pictures), len(cut)])
        if isinstance(encoder, ClipEncoder):
            text_scores(encoder, cases, whole, figures)
        for case, vector, of_picture in zip(cases, whole, figures, strict=True):
            for number, subject in enumerate(case.subjects, start=1):
                of_picture.scores[metric, number] = mean_cosine(vector, subject[metric])
        if metric == "DINO":
            word_scores(cases, crops, crop_vectors, figures)
        progress()
    for case, by_word, of_picture in zip(cases, found, figures, strict=True):
        if case.faces is not None:
            face_figures(case, by_word, of_picture)
            progress()
    return figures


def mean_cosine(picture: Tensor, photos: Tensor) -> float:
    """DreamBench's score of a picture (d,) with all photos (n, d) of its subject; unit vectors."""
    return float((photos @ picture).mean())


def word_boxes(models: Models, cases: Sequence[Case]) -> list[dict[str, list[Box]]]:
    if models.boxes is None:
        return [{} for _ in cases]
    found: list[dict[str, list[Box]]] = [{} for _ in cases]
    with_words = [i for i, case in enumerate(cases) if case.words]
    boxes = models.boxes.find([cases[i].picture for i in with_words], [cases[i].words for i in with_words])
    for i, by_word in zip(with_words, boxes, strict=True):
        found[i] = by_word
    return found


def text_scores(clip: ClipEncoder, cases: Sequence[Case], vectors: Tensor, figures: Sequence[Figures]) -> None:
    prompts = dict.fromkeys(case.prompt for case in cases if case.prompt)
    texts = {prompt: clip.embed_text(prompt) for prompt in prompts}
    for case, vector, of_picture in zip(cases, vectors, figures, strict=True):
        if case.prompt:
            of_picture.scores["CLIP-T", None] = float(vector @ texts[case.prompt])


def word_scores(
    cases: Sequence[Case], crops: Sequence[dict[str, list[Tensor]]], vectors: Tensor, figures: Sequence[Figures]
) -> None:
    """XVerseBench's IP and the swap matrix, from the crops' DINO vectors in the order of `crops`."""
    start = 0
    for case, by_word, of_picture in zip(cases, crops, figures, strict=True):
        of_word = {}
        for word, squares in by_word.items():
            of_word[word], start = vectors[start : start + len(squares)], start + len(squares)
        if not of_word:
            continue
        photos = [subject["DINO"] for subject in case.subjects]
        # (crops, subjects) at each subject's word
        cosines = [torch.stack([(of_word[word] @ own.T).mean(dim=1) for own in photos], dim=1) for word in case.words]
        of_picture.protocols["XVerse IP"] = protocols.xverse_ip(
            [table[:, i].tolist() for i, table in enumerate(cosines)]
        )
        if tell_apart(case.words):
            of_picture.swaps["DINO"] = [table[0].tolist() if len(table) else None for table in cosines]


def tell_apart(words: Sequence[str]) -> bool:
    """Whether the places of several subjects follow from their words."""
    return len(set(words)) == len(words) > 1


def face_figures(case: Case, word_boxes: dict[str, list[Box]], figures: Figures) -> None:
    """The faces are found once, and read once by each recogniser."""
    image = to_bgr(case.picture)
    found = find_faces(case.faces.analysis, image)
    boxes = boxes_of(found)
    for matcher, suffix in ((case.faces, ""), (case.second, SECOND)):
        if matcher is None:
            continue
        vectors = found_vectors(matcher.recogniser, image, found)
        cosines = face_cosines(vectors, matcher.references)
        match = match_faces(cosines, boxes)
        if not suffix:
            figures.boxes = match.boxes
            figures.protocols["face count"] = float(len(found) == len(matcher.references))
        figures.scores |= match_scores(match, suffix)
        figures.protocols[f"MultiID{suffix}"] = protocols.multi_id(cosines)
        if len(matcher.references) > 1:
            figures.protocols[f"XVerse ID{suffix}"] = protocols.xverse_id(cosines)
        if len(matcher.unseen):
            figures.protocols[f"copy-paste{suffix}"] = mean_copy_paste(vectors, cosines, matcher)
        if word_boxes and tell_apart(case.words):
            figures.swaps[f"face{suffix}"] = [
                None if (face := face_inside(boxes, word_boxes[word])) is None else cosines[face].tolist()
                for word in case.words
            ]


def match_scores(match: FaceMatch, suffix: str = "") -> dict[Key, float]:
    """One score a subject, and with several the minimum over them."""
    scores: dict[Key, float] = {
        (f"face{suffix}", number): value for number, value in enumerate(match.similarities, start=1)
    }
    if len(scores) > 1:
        scores[f"face minimum{suffix}", None] = match.minimum
    return scores


def mean_copy_paste(vectors: np.ndarray, cosines: np.ndarray, matcher: FaceMatcher) -> float | None:
    """Over the subjects, as MultiID matches them; None where faces and subjects differ in number."""
    if cosines.shape[0] != cosines.shape[1]:
        return None
    matches = protocols.hungarian_match(cosines)
    return float(
        np.mean(
            [
                protocols.copy_paste(vectors[face], unseen, photos)
                for face, unseen, photos in zip(matches, matcher.unseen, matcher.references, strict=True)
            ]
        )
    )


def face_inside(faces: Sequence[Box], places: Sequence[Box]) -> int | None:
    """The largest face whose centre lies in the first place, None without."""
    if not places:
        return None
    left, top, right, bottom = places[0]
    inside = [
        i
        for i, box in enumerate(faces)
        if left <= (box[0] + box[2]) / 2 <= right and top <= (box[1] + box[3]) / 2 <= bottom
    ]
    return max(inside, key=lambda i: (faces[i][2] - faces[i][0]) * (faces[i][3] - faces[i][1]), default=None)
