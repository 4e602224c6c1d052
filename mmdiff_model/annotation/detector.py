"""Boxes by word: Grounding DINO, with the released tool's thresholds."""

import re
from collections.abc import Sequence

import torch
from PIL import Image

from ..model_folders import Loaded
from .words import Box

BOX_THRESHOLD, TEXT_THRESHOLD = 0.3, 0.25
SPECIAL = re.compile(r"\[[A-Z]+\]")


class Detector:
    """Pictures (PIL, RGB) and words for each -> boxes of things that the words name."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self.limit = loaded.model.config.max_text_len

    @torch.no_grad()
    def boxes(self, pictures: Sequence[Image.Image], words: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Raises ValueError where the words are more than the model reads."""
        alike: dict[tuple, list[int]] = {}  # one size and one text to a batch: padding would move the boxes
        for number, (picture, own) in enumerate(zip(pictures, words, strict=True)):
            alike.setdefault((picture.size, *own), []).append(number)
        found: dict[int, list[Box]] = {}
        for (_, *own), numbers in alike.items():
            found |= zip(numbers, self.alike([pictures[number] for number in numbers], own), strict=True)
        return [found[number] for number in range(len(pictures))]

    def alike(self, pictures: Sequence[Image.Image], words: Sequence[str]) -> list[list[Box]]:
        """The boxes of pictures of one size, for the same words."""
        device, processor = self.loaded.ready(), self.loaded.processor
        texts = [". ".join(word.lower().replace(".", " ") for word in words) + "."] * len(pictures)
        inputs = processor(images=list(pictures), text=texts, return_tensors="pt").to(device)
        if (length := inputs["input_ids"].shape[1]) > self.limit:
            raise ValueError(f"words: they are {length} tokens, and the detector reads {self.limit}. Give fewer words.")
        outputs = self.loaded.model(**inputs)
        sizes = [picture.size[::-1] for picture in pictures]
        results = processor.post_process_grounded_object_detection(
            outputs, inputs["input_ids"], BOX_THRESHOLD, TEXT_THRESHOLD, sizes
        )
        return [self.found(result, picture) for result, picture in zip(results, pictures, strict=True)]

    def found(self, result: dict, picture: Image.Image) -> list[Box]:
        """The boxes of one picture, cut to its edges."""
        labels = result["text_labels"] if "text_labels" in result else result["labels"]
        limits = torch.tensor([*picture.size, *picture.size])
        boxes = result["boxes"].float().cpu().clamp(min=0).minimum(limits)
        return [
            Box(" ".join(re.sub(r"[.\s]+", " ", SPECIAL.sub("", label)).split()), tuple(edges), score)
            for label, edges, score in zip(labels, boxes.tolist(), result["scores"].tolist(), strict=True)
        ]
