"""Boxes by word, from Grounding DINO, and the crops that XVerseBench compares."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_convert, nms

from ..annotation.folders import DINO
from ..annotation.words import split_words
from ..managed import managed
from ..model_folders import Kind, Loaded, load_folder
from ..prompt import TRIGGER, strip_triggers, word_ends
from .encoders import to_bytes
from .matching import Box

KIND = Kind("IDEA-Research/grounding-dino-tiny", {"grounding-dino": DINO}, reads_text=True)
THRESHOLD, OVERLAP = 0.25, 0.5
CROPS = 3
SMALLEST = 1 / 20  # of the picture's width: the side of the smallest box, and a quarter of it on its shorter side
BATCH = 4


@dataclass(frozen=True)
class BoxFinder:
    """Grounding DINO, called `name`."""

    name: str
    loaded: Loaded

    def find(self, pictures: Sequence[Tensor], words: Sequence[Sequence[str]]) -> list[dict[str, list[Box]]]:
        """Pictures (H, W, 3) in 0..1 and the words of each -> its boxes by word in pixels, the surest first."""
        found: list[dict[str, list[Box]]] = []
        while len(found) < len(pictures):
            start = end = len(found)
            # one size and one text to a batch: padding would move the boxes
            while end < min(start + BATCH, len(pictures)) and (pictures[end].shape, list(words[end])) == (
                pictures[start].shape,
                list(words[start]),
            ):
                end += 1
            found += self._find(pictures[start:end], list(dict.fromkeys(words[start])))
        return found

    @torch.no_grad()
    def _find(self, pictures: Sequence[Tensor], words: Sequence[str]) -> list[dict[str, list[Box]]]:
        device, processor = self.loaded.ready(), self.loaded.processor
        text, spans = caption_of(words)
        tokens = processor.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = tokens.pop("offset_mapping")[0]
        given = {name: value.expand(len(pictures), -1).to(device) for name, value in tokens.items()}
        images = [to_bytes(picture) for picture in pictures]
        pixels = processor.image_processor(images=images, return_tensors="pt").to(device)
        output = self.loaded.model(**given, **pixels)
        scores, boxes = output.logits.sigmoid().float().cpu(), output.pred_boxes.float().cpu()
        height, width = pictures[0].shape[:2]
        boxes = box_convert(boxes, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        ours = [(offsets[:, 0] < end) & (offsets[:, 1] > start) for start, end in spans]
        return [
            {
                word: best_boxes(boxes[i], scores[i, :, : len(mine)][:, mine].amax(dim=1), (height, width))
                for word, mine in zip(words, ours, strict=True)
            }
            for i in range(len(pictures))
        ]


def class_words(words: str, prompt: str, subjects: int) -> list[str]:
    """`words` as annotation takes a list of them, or those before the prompt's triggers -> a word for each subject.

    Raises ValueError where their number is not the subjects'.
    """
    found = [word.strip(" .") for word in split_words(words)] if words.strip() else trigger_words(prompt)
    if len(found) != subjects or not all(found):
        raise ValueError(
            f"words: box_model needs the class word of each of the {subjects} references, and got "
            f"{', '.join(found) or 'none'}. Write them in the references' order, with commas between them."
        )
    return found


def trigger_words(prompt: str) -> list[str]:
    """The word before each plain trigger; none where triggers name their subjects, in whatever order."""
    if any(TRIGGER.findall(prompt)):
        return []
    before = [re.search(r"([\w'-]+)\W*\Z", strip_triggers(prompt)[:end]) for end in word_ends(prompt)]
    return [found[1] for found in before if found]


def caption_of(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Words -> the text in Grounding DINO's form, and where each of them stands in it."""
    text, spans = "", []
    for word in words:
        spans.append((len(text), len(text) + len(word)))
        text += f"{word.lower()}. "
    return text.strip(), spans


def best_boxes(boxes: Tensor, scores: Tensor, size: tuple[int, int]) -> list[Box]:
    """Boxes (n, 4) and scores (n,) -> up to CROPS boxes inside a picture (height, width), the surest first."""
    height, width = size
    sure = scores > THRESHOLD
    boxes, scores = boxes[sure].clamp(min=0), scores[sure]
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height]))
    sides = boxes[:, 2:] - boxes[:, :2]
    side = SMALLEST * width
    large = (sides.prod(dim=1) >= side**2) & (sides.amin(dim=1) >= side / 4)
    boxes, scores = boxes[large], scores[large]
    return [tuple(box) for box in boxes[nms(boxes, scores, OVERLAP)[:CROPS]].tolist()]


def square_crop(picture: Tensor, box: Box) -> Tensor:
    """(H, W, 3) and a box in pixels -> the box's part in the middle of a white square (side, side, 3)."""
    left, top, right, bottom = (round(edge) for edge in box)
    part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    height, width = part.shape[:2]
    side = max(height, width)
    square = torch.ones(side, side, 3)
    y, x = (side - height) // 2, (side - width) // 2
    square[y : y + height, x : x + width] = part
    return square


def load_boxes(folder: Path, source: str) -> BoxFinder:
    """A Grounding DINO. Raises ValueError: files missing, damaged or of another model."""
    return BoxFinder(folder.name, load_folder(folder, KIND, source, managed))
