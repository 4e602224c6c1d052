"""Annotated training data, in the format of the released annotation tool (alibaba/mm-diff data_annotation).

A record is <id>.jpg, <id>.npy with a map of segment numbers (0 is the background), and <id>.json with the caption and
its segments: number, word, where the word starts and ends. A segment may name a "reference", a picture of that subject
alone beside the record; without it the subject is cut out of the record's own picture. Records lie in folders, at any
depth, or in WebDataset's .tar shards. Maps belong to the stored pixels, so a picture's EXIF orientation is not applied.
"""

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
FORMAT = "A record is a picture, an .npy map of its segments and a .json with the caption, of one name."


@dataclass(frozen=True)
class Segment:
    """A subject: its class word at start..end of the caption, its mask (h, w) bool, a picture (H, W, 3) uint8 of it."""

    word: str
    start: int
    end: int
    mask: np.ndarray
    reference: np.ndarray | None


@dataclass(frozen=True)
class Record:
    """A picture (h, w, 3) uint8 with its caption and subjects."""

    name: str
    picture: np.ndarray
    caption: str
    segments: tuple[Segment, ...]


class BadRecord(ValueError):
    """A record that cannot be used. `reason` is one of few phrases, to be counted."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Folder:
    """The files below a folder."""

    def __init__(self, path: Path):
        self.path = path
        self.files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}

    def read(self, name: str) -> bytes:
        return self.files[name].read_bytes()


class Shard:
    """The members of a .tar file, found once and read at their place."""

    def __init__(self, path: Path):
        self.path = path
        with tarfile.open(path, "r:") as archive:
            members = [member for member in archive if member.isfile()]
        self.files = {member.name.removeprefix("./"): (member.offset_data, member.size) for member in members}

    def read(self, name: str) -> bytes:
        offset, size = self.files[name]
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


class Records:
    """Records by number, in an order that depends on their places and names alone."""

    def __init__(self, sources: Sequence[Folder | Shard]):
        self.places = [
            (source, name.removesuffix(".json"))
            for source in sources
            for name in sorted(source.files)
            if name.endswith(".json")
        ]

    @classmethod
    def open(cls, places: Sequence[Path]) -> "Records":
        """Raises FileNotFoundError for a place that is not there, ValueError for one that holds no records."""
        records = cls([open_source(Path(place)) for place in places])
        if not records.places:
            raise ValueError(f"data: no .json of a record in {', '.join(map(str, places))}. {FORMAT}")
        return records

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Record:
        """Raises BadRecord."""
        source, stem = self.places[index]
        return RecordReader(source, stem).read()


def open_source(place: Path) -> Folder | Shard:
    """Raises FileNotFoundError, ValueError."""
    if place.is_dir():
        return Folder(place)
    if not place.is_file():
        raise FileNotFoundError(f"data: {place} does not exist. Name a folder or a .tar shard. {FORMAT}")
    try:
        return Shard(place)
    except tarfile.TarError as error:
        raise ValueError(f"data: {place} is neither a folder nor a whole, uncompressed .tar ({error})") from error


class RecordReader:
    """Reads the record `stem` of a source; whatever is wrong with it becomes a BadRecord."""

    def __init__(self, source: Folder | Shard, stem: str):
        self.source, self.stem = source, stem
        self.name = f"{source.path.name}/{stem}"

    def read(self) -> Record:
        caption, annotations = self.annotation()
        picture = self.picture()
        numbers = self.numbers()
        if numbers.shape != picture.shape[:2]:
            raise self.bad("map of another size than the picture")
        return Record(self.name, picture, caption, tuple(self.segment(numbers, one) for one in annotations))

    def annotation(self) -> tuple[str, list[dict[str, Any]]]:
        """The caption, and at least one segment."""
        try:
            values = json.loads(self.source.read(f"{self.stem}.json"))
            caption = values["caption"]
            segments = [{"reference": None, **segment} for segment in values["segments"]]
            words = [(one["word"], caption[one["start"] : one["end"]], one["id"]) for one in segments]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self.bad("unreadable annotation") from error
        if not segments:
            raise self.bad("no segments")
        if any(not word or word != found for word, found, _ in words):
            raise self.bad("word not in the caption where the record says")
        return caption, segments

    def picture(self) -> np.ndarray:
        for ending in PICTURES:
            if (file := self.stem + ending) in self.source.files:
                return self.pixels(file, "unreadable picture")
        raise self.bad("missing picture")

    def pixels(self, file: str, reason: str) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(self.source.read(file))) as picture:
                return np.array(picture.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self.bad(reason) from error

    def numbers(self) -> np.ndarray:
        if (file := f"{self.stem}.npy") not in self.source.files:
            raise self.bad("missing map")
        try:
            return np.lib.format.read_array(io.BytesIO(self.source.read(file)), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise self.bad("unreadable map") from error

    def segment(self, numbers: np.ndarray, annotation: dict[str, Any]) -> Segment:
        mask = numbers == annotation["id"]
        if not mask.any():
            raise self.bad("empty segment")
        word, start, end = (annotation[key] for key in ("word", "start", "end"))
        return Segment(word, start, end, mask, self.reference(annotation["reference"]))

    def reference(self, file: str | None) -> np.ndarray | None:
        if file is None:
            return None
        path = str(PurePosixPath(self.stem).with_name(file))
        if path not in self.source.files:
            raise self.bad("missing reference")
        return self.pixels(path, "unreadable reference")

    def bad(self, reason: str) -> BadRecord:
        return BadRecord(self.name, reason)
