"""Records as training reads them: the files of one, and where they are kept so that a kill at any moment loses none."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import flush_folder, write_whole
from ..training.records import Record

PARTIAL, SHARD = ".partial", "records"
QUALITY = {"quality": 95, "subsampling": 0}


def record_files(record: Record) -> dict[str, bytes]:
    """The files of a record by their endings, the annotation last: a record is there when it is."""
    picture, numbers = io.BytesIO(), io.BytesIO()
    Image.fromarray(record.picture).save(picture, "JPEG", **QUALITY)
    segments, places = [], np.zeros(record.picture.shape[:2], dtype=np.uint8)
    for number, segment in enumerate(record.segments, start=1):
        places[segment.mask] = number
        rows, columns = np.nonzero(segment.mask)
        box = [int(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
        segments.append({"id": number, "word": segment.word, "start": segment.start, "end": segment.end, "box": box})
    np.save(numbers, places)
    annotation = {"image_id": record.name, "caption": record.caption, "segments": segments}
    return {
        ".jpg": picture.getvalue(),
        ".npy": numbers.getvalue(),
        ".json": json.dumps(annotation, ensure_ascii=False).encode(errors="backslashreplace"),  # JSON's own escapes
    }


def names_in(folder: Path) -> set[str]:
    """The records that are there as files or in shards, whole ones of unfinished shards too."""
    names = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.json")}
    while True:
        try:
            shards = [*partials(folder), *folder.glob(f"{SHARD}-*.tar")]  # else a rename meanwhile hides one
            return names.union(name for path in shards for name, _ in whole_records(path))
        except FileNotFoundError:  # another process has just finished that shard
            continue


class FolderWriter:
    """Records as files below a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, record: Record) -> None:
        """Raises OSError; what is there then, or after a kill, is no record or a whole one."""
        files = {self.folder / f"{record.name}{ending}": content for ending, content in record_files(record).items()}
        if all(path.is_file() and path.read_bytes() == content for path, content in files.items()):
            return
        self.remove(record.name)
        for path, content in files.items():
            write_whole(path, partial(store, content))

    def remove(self, name: str) -> None:
        """Takes a record away where there is one: its other files are no record without the annotation."""
        annotation = self.folder / f"{name}.json"
        with suppress(FileNotFoundError):
            annotation.unlink()
            flush_folder(annotation.parent)

    def close(self) -> None:
        """Every record is whole already."""


class ShardWriter:
    """Records in WebDataset's .tar shards of `size` records: one is a hidden .partial until it is full or closed.

    rank, ranks: of this process. It finishes what dead processes of its rank, or of ranks that are no more, have left:
    whoever makes one holds the locks of `lock_share`.
    """

    def __init__(self, folder: Path, size: int, rank: int = 0, ranks: int = 1):
        self.folder, self.size, self.rank = folder, size, rank
        self.file, self.path, self.count = None, None, 0
        for path in partials(folder):
            if int(path.name.split("-")[1]) % ranks == rank:
                finish(path)

    def write(self, record: Record) -> None:
        """Raises OSError; the shard then ends before the record."""
        if self.file is None:
            self.open()
        start = self.file.tell()
        try:
            write_all(
                self.file, b"".join(member(record.name + end, data) for end, data in record_files(record).items())
            )
        except OSError:
            self.file.truncate(start)
            raise
        self.remove(record.name)
        self.count += 1
        if self.count == self.size:
            self.close()

    def remove(self, name: str) -> None:
        """Takes a record away that an earlier run has kept as files."""
        FolderWriter(self.folder).remove(name)

    def open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        taken = [path.stem.split("-")[2] for path in self.folder.glob(f"{SHARD}-{self.rank:05d}-*.tar")]
        name = f"{SHARD}-{self.rank:05d}-{max(map(int, taken), default=-1) + 1:06d}.tar"
        self.path, self.count = self.folder / f".{name}{PARTIAL}", 0
        self.file = self.path.open("wb", buffering=0)

    def close(self) -> None:
        """The shard becomes a .tar of its own."""
        if self.file is not None:
            self.file.close()
            self.file = None
            finish(self.path)


def store(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def write_all(file: io.RawIOBase, content: bytes) -> None:
    """Unbuffered, so that nothing is left to be written where the disk is full."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def partials(folder: Path) -> list[Path]:
    return sorted(folder.glob(f".{SHARD}-*.tar{PARTIAL}"))


def member(name: str, content: bytes) -> bytes:
    """A file as .tar holds it."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    padding = -len(content) % tarfile.BLOCKSIZE
    return header.tobuf(tarfile.PAX_FORMAT) + content + bytes(padding)


def whole_records(path: Path) -> Iterator[tuple[str, int]]:
    """The records of a shard that may be cut off, and where each ends in it. Raises FileNotFoundError."""
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(0)
        with suppress(tarfile.ReadError), tarfile.open(fileobj=file, mode="r:") as archive:  # it ends where it is cut
            for found in archive:
                end = found.offset_data + -(-found.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if found.name.endswith(".json") and end <= length:
                    yield found.name.removesuffix(".json"), end


def finish(path: Path) -> None:
    """Makes a .tar of a partial shard's whole records, which a power cut leaves whole."""
    ends = [end for _, end in whole_records(path)]
    if not ends:
        path.unlink()
        return
    with path.open("r+b") as file:
        file.truncate(ends[-1])
        file.seek(ends[-1])
        file.write(bytes(2 * tarfile.BLOCKSIZE))
        file.flush()
        os.fsync(file.fileno())
    os.replace(path, path.with_name(path.name.removeprefix(".").removesuffix(PARTIAL)))
    flush_folder(path.parent)
