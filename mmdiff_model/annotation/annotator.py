"""Pictures become records: the released tool's steps, a batch of pictures in one pass of each model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..model_folders import Place, load_folder
from ..training.records import Record, Segment
from .captioner import Captioner
from .detector import Detector
from .folders import CAPTIONER, DETECTOR, MODELS, SEGMENTER, find_models
from .segmenter import Segmenter
from .words import NO_WORD, Box, Phrase, Rejected, choose, find_words, is_subject, keep_apart, key, write_caption

NO_MASK = "no mask for any box"


@dataclass(frozen=True)
class Annotator:
    """words: the class words to look for; without any, the caption's phrases are taken."""

    detector: Detector
    segmenter: Segmenter
    captioner: Captioner | None
    words: tuple[str, ...]

    @classmethod
    def load(
        cls,
        places: Sequence[Path],
        words: tuple[str, ...],
        place: Place,
        dtype: torch.dtype,
        source: str = "models",
    ) -> "Annotator":
        """Loads the models of folders; `dtype` is the captioner's. Raises ValueError, FileNotFoundError."""
        folders = find_models(places, source)
        kinds = {CAPTIONER: Captioner, DETECTOR: Detector, SEGMENTER: Segmenter}
        parts = {
            role: kinds[role](
                load_folder(folder, MODELS[role], source, place, dtype if role == CAPTIONER else torch.float32)
            )
            for role, folder in folders.items()
        }
        annotator = cls(parts[DETECTOR], parts[SEGMENTER], parts.get(CAPTIONER), words)
        if not words and not (annotator.captioner and annotator.captioner.grounds):
            raise ValueError(
                "words: there are none, and only Florence-2 takes them from captions. Name the class words of your "
                'pictures, such as "dog, cat", or put a Florence-2 beside the other models.'
            )
        return annotator

    def annotate(
        self, names: Sequence[str], pictures: Sequence[Image.Image], captions: Sequence[str | None]
    ) -> list[Record | Rejected]:
        """Pictures (RGB) with a caption each where there is one -> a record of each, or why there is none."""
        results: list[Record | Rejected | None] = [None] * len(pictures)
        captions = self.caption(pictures, captions)
        phrases = self.phrases(pictures, captions)
        wanted = [self.asked(caption, found) for caption, found in zip(captions, phrases, strict=True)]
        seen = [number for number, words in enumerate(wanted) if words]
        boxes = {}
        if seen:
            found = self.detector.boxes([pictures[number] for number in seen], [wanted[number] for number in seen])
            boxes = dict(zip(seen, map(keep_apart, found), strict=True))
        chosen = {}
        for number, caption in enumerate(captions):
            try:
                if number not in boxes:
                    raise Rejected(NO_WORD)
                if caption is None:
                    captions[number], phrases[number] = self.told(boxes[number])
                chosen[number] = choose(phrases[number], boxes[number])
            except Rejected as error:
                results[number] = Rejected(error.reason, captions[number] or "")
        if chosen:
            masks = self.segmenter.masks(
                [pictures[number] for number in chosen],
                [[box.edges for _, box in pairs] for pairs in chosen.values()],
            )
            for (number, pairs), found in zip(chosen.items(), masks, strict=True):
                words = [phrase for phrase, _ in pairs]
                results[number] = record_of(names[number], np.asarray(pictures[number]), captions[number], words, found)
        return results

    def caption(self, pictures: Sequence[Image.Image], captions: Sequence[str | None]) -> list[str | None]:
        """The captions, with the captioner's where there was none."""
        captions = [caption or None for caption in captions]
        bare = [number for number, caption in enumerate(captions) if caption is None]
        if bare and self.captioner:
            written = self.captioner.captions([pictures[number] for number in bare])
            for number, caption in zip(bare, written, strict=True):
                captions[number] = caption
        return captions

    def phrases(self, pictures: Sequence[Image.Image], captions: Sequence[str | None]) -> list[list[Phrase]]:
        """The class words in each caption, with their places."""
        if self.words:
            return [find_words(caption or "", self.words) for caption in captions]
        chunks = self.captioner.phrases(pictures, captions)
        return [find_words(caption, filter(is_subject, own)) for caption, own in zip(captions, chunks, strict=True)]

    def asked(self, caption: str | None, phrases: list[Phrase]) -> list[str]:
        """The words that the detector looks for, each once."""
        if caption is None:
            return list(self.words)
        return list({phrase.text.lower(): phrase.text for phrase in phrases}.values())

    def told(self, boxes: Sequence[Box]) -> tuple[str, list[Phrase]]:
        """A caption of what the boxes show, from left to right, and its class words."""
        spelling = {key(word): word for word in self.words}
        seen = [key(box.label) for box in sorted(boxes, key=lambda box: box.edges[0])]
        words = [spelling[name] for name in seen if name in spelling]
        caption = write_caption(words) if words else ""
        return caption, find_words(caption, words)


def record_of(
    name: str, picture: np.ndarray, caption: str, words: Sequence[Phrase], masks: np.ndarray
) -> Record | Rejected:
    """The record of a picture (h, w, 3) with a mask (h, w) for each word; the smaller lies on top of others."""
    numbers = np.zeros(masks.shape[1:], dtype=np.uint8)
    for index in sorted(range(len(masks)), key=lambda index: -masks[index].sum()):
        numbers[masks[index]] = index + 1
    segments = tuple(
        Segment(word.text, word.start, word.end, numbers == index, None)
        for index, word in enumerate(words, start=1)
        if (numbers == index).any()
    )
    return Record(name, picture, caption, segments) if segments else Rejected(NO_MASK, caption)
