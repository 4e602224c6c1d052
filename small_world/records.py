"""Scenes as annotated records, in the format of the released annotation tool (alibaba/mm-diff data_annotation).

Each record is <id>.jpg, <id>.npy (a map of segment numbers, 0 the background) and <id>.json with the caption and its
segments: number, word, start and end in the caption, box of pixels. image_ids_train.txt lists the ids.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .scenes import Scene

VISIBLE = 128


def write_records(folder: Path, scenes: Iterable[Scene]) -> list[str]:
    """Writes every scene below `folder`, in subfolders of ten thousand, and returns the ids. Raises OSError."""
    names = []
    for number, scene in enumerate(scenes):
        name = f"{number:09d}"
        place = folder / name[:5]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.picture).save(place / f"{name}.jpg", quality=95, subsampling=0)
        np.save(place / f"{name}.npy", segment_map(scene))
        record = {"image_id": name, "caption": scene.caption, "segments": segments(scene)}
        (place / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
        names.append(name)
    (folder / "image_ids_train.txt").write_text("\n".join(names), encoding="utf-8")
    return names


def segment_map(scene: Scene) -> np.ndarray:
    """(h, w) float32: 0 for the background, k for the k-th character of the caption."""
    numbers = np.zeros(scene.picture.shape[:2], dtype=np.float32)
    for number, mask in enumerate(scene.masks, start=1):
        numbers[mask >= VISIBLE] = number
    return numbers


def segments(scene: Scene) -> list[dict]:
    """The class word and box (left, top, right, bottom) of every character."""
    found = []
    for number, ((start, end), mask) in enumerate(zip(scene.spans, scene.masks, strict=True), start=1):
        rows, columns = np.nonzero(mask >= VISIBLE)
        box = [int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        found.append({"id": number, "word": scene.caption[start:end], "start": start, "end": end, "box": box})
    return found
