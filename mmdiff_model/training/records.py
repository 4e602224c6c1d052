"""Annotated training data, in the format of the released annotation tool (alibaba/mm-diff data_annotation).

A record is <id>.jpg, <id>.npy with a map of segment numbers (0 is the background), and <id>.json with the caption and
its segments: number, word, where the word starts and ends. A segment may name a "reference", a picture of that subject
alone beside the record; without it the subject is cut out of the record's own picture. Records lie in folders, at any
depth, or in WebDataset's .tar shards. Maps belong to the stored pixels, so a picture's EXIF orientation is not applied;
a reference is read as a person sees it.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any

import numpy as np
from PIL import Image

from ..digest import LENGTH
from ..pictures import UnreadablePicture, as_seen, read, rgb

PICTURES = (".jpg", ".jpeg", ".png", ".webp")
KEYS = {"id": int, "word": str, "start": int, "end": int, "reference": str | None}
BACKGROUND = 0
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
        self.files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def modified(self, name: str) -> int:
        """In nanoseconds; 0 where the file is gone."""
        path = self.path / name
        return path.stat().st_mtime_ns if path.exists() else 0

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()


class Shard:
    """The members of a .tar file, found once and read at their place."""

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            members = [member for member in archive if member.isfile()]
            file.seek(archive.offset)  # tarfile takes a damaged header, too, for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"damaged or cut off after {len(members)} files")
        self.files = {member.name.removeprefix("./"): (member.offset_data, member.size) for member in members}

    def size(self, name: str) -> int:
        return self.files[name][1]

    def modified(self, name: str) -> int:
        return self.path.stat().st_mtime_ns

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
        records = cls([source for place in places for source in open_sources(Path(place))])
        if not any(picture_of(source, stem) for source, stem in records.places):
            missing = f"{', '.join(PICTURES)} beside any .json" if records.places else ".json of a record"
            raise ValueError(f"data: no {missing} in {', '.join(map(str, places))}. {FORMAT}")
        return records

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Record:
        """Raises BadRecord."""
        source, stem = self.places[index]
        return RecordReader(source, stem).read()

    def digest(self) -> str:
        """What tells these records from others, wherever they lie: how many, and 16 hex digits of their outlines."""
        digest = hashlib.sha256()
        for source, stem in self.places:
            digest.update(json.dumps(RecordReader(source, stem).outline()).encode())
        return f"{len(self)} records {digest.hexdigest()[:LENGTH]}"

    def map_times(self) -> str:
        """16 hex digits of when the maps were written: what can be told of them without reading them all."""
        times = [source.modified(f"{stem}.npy") for source, stem in self.places]
        return hashlib.sha256(str(times).encode()).hexdigest()[:LENGTH]

    def map_digest(self) -> str:
        """16 hex digits of the maps' contents: one that is painted over has the size that it had."""
        digest = hashlib.sha256()
        with ThreadPoolExecutor() as pool:
            for of_map in pool.map(lambda place: RecordReader(*place).map_digest(), self.places):
                digest.update(of_map)
        return digest.hexdigest()[:LENGTH]


def open_sources(place: Path) -> list[Folder | Shard]:
    """A shard, or a folder with the shards in it. Raises FileNotFoundError, ValueError."""
    shards = sorted(place.rglob("*.tar")) if place.is_dir() else []
    return [open_source(place), *map(open_source, shards)]


def open_source(place: Path) -> Folder | Shard:
    """Raises FileNotFoundError, ValueError."""
    if place.is_dir():
        return Folder(place)
    if not place.is_file():
        raise FileNotFoundError(f"data: {place} does not exist. Name a folder or a .tar shard. {FORMAT}")
    try:
        return Shard(place)
    except tarfile.TarError as error:
        problem = f"{place} is neither a folder nor a whole, uncompressed .tar ({error})"
        raise ValueError(f"data: {problem}. Name the folder it was made from, or make it again.") from error


def picture_of(source: Folder | Shard, stem: str) -> str | None:
    """The file of a record's picture."""
    return next((stem + ending for ending in PICTURES if stem + ending in source.files), None)


def parse(content: bytes) -> tuple[str, list[dict[str, Any]]]:
    """A .json's caption and segments, with all of KEYS. Raises ValueError, KeyError, TypeError, RecursionError."""
    values = json.loads(content)
    segments = [{"reference": None, **segment} for segment in values["segments"]]
    typed = all(isinstance(segment[key], kind) for segment in segments for key, kind in KEYS.items())
    if not typed or not isinstance(values["caption"], str):
        raise TypeError("a value of another type than the format's")
    return values["caption"], segments


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

    def outline(self) -> list[Any]:
        """What can be told without reading pictures and maps: the name, the annotation, and the bytes of each file."""
        try:
            caption, segments = self.annotation()
        except BadRecord as error:
            return [self.stem, error.reason]
        named = [self.beside(one["reference"]) for one in segments if one["reference"] is not None]
        files = [picture_of(self.source, self.stem), f"{self.stem}.npy", *named]
        sizes = [self.source.size(file) if file in self.source.files else None for file in files]
        return [self.stem, caption, [[one[key] for key in KEYS] for one in segments], sizes]

    def map_digest(self) -> bytes:
        """The digest of the map's file, or of nothing where it cannot be read."""
        try:
            content = self.source.read(f"{self.stem}.npy")
        except (OSError, KeyError):
            content = b""
        return hashlib.sha256(content).digest()

    def annotation(self) -> tuple[str, list[dict[str, Any]]]:
        """The caption, and at least one segment."""
        try:
            caption, segments = parse(self.source.read(f"{self.stem}.json"))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self.bad("unreadable annotation") from error
        if not segments:
            raise self.bad("no segments")
        spans = [(one["word"], one["start"], one["end"]) for one in segments]
        if not all(0 <= start < end <= len(caption) and caption[start:end] == word for word, start, end in spans):
            raise self.bad("word not in the caption where the record says")
        if len({end for _, _, end in spans}) < len(spans):
            raise self.bad("two segments of one word")
        return caption, segments

    def picture(self) -> np.ndarray:
        if (file := picture_of(self.source, self.stem)) is None:
            raise self.bad("missing picture")
        return self.pixels(file, rgb, "unreadable picture")

    def pixels(self, file: str, form: Callable[[Image.Image], Image.Image], reason: str) -> np.ndarray:
        try:
            return np.array(read(io.BytesIO(self.source.read(file)), form))
        except (OSError, UnreadablePicture) as error:
            raise self.bad(reason) from error

    def numbers(self) -> np.ndarray:
        if (file := f"{self.stem}.npy") not in self.source.files:
            raise self.bad("missing map")
        try:
            numbers = np.lib.format.read_array(io.BytesIO(self.source.read(file)), allow_pickle=False)
        except (OSError, ValueError, TokenError, MemoryError) as error:  # the last two: a damaged header
            raise self.bad("unreadable map") from error
        if numbers.dtype.kind not in "biuf":
            raise self.bad("unreadable map")
        return numbers

    def segment(self, numbers: np.ndarray, annotation: dict[str, Any]) -> Segment:
        mask = numbers == annotation["id"]
        if annotation["id"] == BACKGROUND or not mask.any():
            raise self.bad("empty segment")
        word, start, end = (annotation[key] for key in ("word", "start", "end"))
        return Segment(word, start, end, mask, self.reference(annotation["reference"]))

    def reference(self, file: str | None) -> np.ndarray | None:
        if file is None:
            return None
        path = self.beside(file)
        if path not in self.source.files:
            raise self.bad("missing reference")
        return self.pixels(path, as_seen, "unreadable reference")

    def beside(self, file: str) -> str:
        return str(PurePosixPath(self.stem).parent / file)

    def bad(self, reason: str) -> BadRecord:
        return BadRecord(self.name, reason)
