"""Scenes as annotated records, in the format that mmdiff_model.training reads.

Each record is <id>.jpg, <id>.npy (a map of segment numbers, 0 the background), <id>.json with the caption and its
segments: number, word, start and end in the caption, box of pixels, and <id>_<number>.png, the character in another
pose. image_ids_train.txt lists the ids, as the released annotation tool does.
"""

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from .scenes import Scene, references

VISIBLE = 128
LIST_FILE = "image_ids_train.txt"


def write_records(folder: Path, scenes: Iterable[Scene], seed: int = 0) -> list[str]:
    """Writes every scene below `folder`, in subfolders of ten thousand, and returns the ids. Raises OSError.

    seed: of the references' poses.
    """
    names = []
    for number, scene in enumerate(scenes):
        names.append(f"{number:09d}")
        place = folder / names[-1][:5]
        place.mkdir(parents=True, exist_ok=True)
        for file, content in record_files(names[-1], scene, seed).items():
            (place / file).write_bytes(content)
    (folder / LIST_FILE).write_text("\n".join(names), encoding="utf-8")
    return names


def write_shard(path: Path, scenes: Iterable[Scene], seed: int = 0) -> None:
    """Writes the same records into one WebDataset .tar. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number, scene in enumerate(scenes):
            for file, content in record_files(f"{number:09d}", scene, seed).items():
                member = tarfile.TarInfo(file)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def record_files(name: str, scene: Scene, seed: int) -> dict[str, bytes]:
    """The files of a record."""
    numbers = io.BytesIO()
    np.save(numbers, segment_map(scene))
    found = segments(scene, name)
    record = {"image_id": name, "caption": scene.caption, "segments": found}
    files = {
        f"{name}.jpg": encoded(scene.picture, "JPEG", quality=95, subsampling=0),
        f"{name}.npy": numbers.getvalue(),
        f"{name}.json": json.dumps(record).encode(),
    }
    pictures = references(scene, seed)
    return files | {one["reference"]: encoded(picture, "PNG") for one, picture in zip(found, pictures, strict=True)}


def encoded(picture: np.ndarray, kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


def segment_map(scene: Scene) -> np.ndarray:
    """(h, w) float32: 0 for the background, k for the k-th character of the caption."""
    numbers = np.zeros(scene.picture.shape[:2], dtype=np.float32)
    for number, mask in enumerate(scene.masks, start=1):
        numbers[mask >= VISIBLE] = number
    return numbers


def segments(scene: Scene, name: str) -> list[dict]:
    """The class word, box (left, top, right, bottom) and reference of every character."""
    found = []
    for number, ((start, end), mask) in enumerate(zip(scene.spans, scene.masks, strict=True), start=1):
        rows, columns = np.nonzero(mask >= VISIBLE)
        box = [int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        word = {"id": number, "word": scene.caption[start:end], "start": start, "end": end}
        found.append({**word, "box": box, "reference": f"{name}_{number}.png"})
    return found
