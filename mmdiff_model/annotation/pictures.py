"""A folder of pictures, at any depth: what is in it, and each picture with its caption."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image

from ..pictures import ENDINGS, RefusedPicture, UnreadablePicture, is_hidden, read
from .words import Rejected

SMALLEST = 64
UNREADABLE, SMALL = "unreadable picture", f"picture of less than {SMALLEST} pixels"
UNREADABLE_CAPTION = "unreadable caption"
RETRIED = UNREADABLE, SMALL, UNREADABLE_CAPTION  # how these outcomes begin
SHEET, JOURNALS = "contact_sheet.jpg", re.compile(r"annotation_\d+\.csv")
JOURNAL_HEAD = b"picture,settings,outcome,words,caption"  # of every version


def list_pictures(folder: Path, output: Path, say: Callable[[str], None] = print) -> list[Path]:
    """The pictures below `folder`, relative to it, in an order of their names alone; none that an annotation has
    written, to `output` or, which `say` tells, elsewhere in `folder`.

    Raises FileNotFoundError, ValueError where there are none, or `output` is or holds `folder`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"pictures: {folder} is not a folder. Name the folder of your photos.")
    if folder.resolve() == output.resolve():
        raise ValueError(f"output: {output} is the folder of the pictures. Name a folder of its own.")
    if output.resolve() in folder.resolve().parents:
        raise ValueError(f"output: {output} holds the folder of the pictures, {folder}. Name a folder beside it.")
    written = output.resolve()
    below = list(files_below(folder, say))
    files = [
        file
        for file in below
        if file.suffix.lower() in ENDINGS and file.is_file() and written not in file.resolve().parents
    ]
    outputs = {file.parent for file in below if is_journal(file)}
    earlier = {file for file in files if outputs.intersection(file.parents) or is_written(file)}
    if earlier:
        places = ", ".join(sorted({str(file.parent) for file in earlier})[:4])
        say(f"left out: {len(earlier)} pictures that an annotation has written, in {places}")
    if earlier and len(earlier) == len(files):
        raise ValueError(f"pictures: all in {folder} were written by an annotation. Name the folder of your photos.")
    if not files:
        raise ValueError(f"pictures: {folder} holds none ({', '.join(ENDINGS)}). Name the folder of your photos.")
    return sorted(file.relative_to(folder) for file in files if file not in earlier)


def files_below(folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Every file that is not hidden, behind links too, each folder once; `say` tells which folders cannot be read."""
    known, starts = set(), [folder]
    while starts:
        links = []
        for place, folders, names in os.walk(starts.pop(0), onerror=lambda error: say(f"left out: {error}")):
            here = Path(place).relative_to(folder)
            if is_hidden(here) or (real := os.path.realpath(place)) in known:
                folders.clear()
                continue
            known.add(real)
            folders.sort()
            links += [folder / here / name for name in folders if os.path.islink(folder / here / name)]
            yield from (folder / here / name for name in names if not is_hidden(Path(name)))
        starts += links  # after every real folder, which keeps its own name


def is_journal(file: Path) -> bool:
    """Whether a file is the table that an annotation keeps in its output folder."""
    if JOURNALS.fullmatch(file.name):
        with suppress(OSError), file.open("rb") as opened:
            return opened.read(len(JOURNAL_HEAD)) == JOURNAL_HEAD
    return False


def is_written(file: Path) -> bool:
    """Whether a picture is a record's, or a contact sheet."""
    return file.name == SHEET or all(file.with_suffix(ending).is_file() for ending in (".npy", ".json"))


def record_name(file: Path) -> str:
    """A record's name from its picture's path: the same on every run, and no other's."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", file.stem)[:48]
    code = hashlib.sha256(file.as_posix().encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return (file.parent / f"{stem}_{code}").as_posix()


def read_picture(path: Path, size: int) -> Image.Image:
    """A picture as a person sees it: RGB, upright, on white where it is transparent, its shorter side at most `size`.

    Raises Rejected.
    """
    try:
        picture = read(path)
    except RefusedPicture as error:
        raise Rejected(f"{UNREADABLE}: {error}") from error
    except UnreadablePicture as error:
        raise Rejected(UNREADABLE) from error
    if min(picture.size) < SMALLEST:
        raise Rejected(SMALL)
    scale = size / min(picture.size)
    if scale < 1:
        picture = picture.resize([round(length * scale) for length in picture.size], Image.Resampling.LANCZOS)
    return picture


def stamp(path: Path) -> str:
    """Sizes and times of a picture and of its caption's file."""
    found = [file.stat() for file in (path, path.with_suffix(".txt")) if file.is_file()]
    return " ".join(f"{status.st_size}-{status.st_mtime_ns}" for status in found)


def content(path: Path) -> str:
    """16 hex digits of what is in a picture's file and of its caption; none where they cannot be read."""
    try:
        picture = path.read_bytes()
        caption = read_caption(path) or ""
    except OSError:
        return ""
    except Rejected as error:
        if isinstance(error.__cause__, OSError):
            return ""
        caption = error.reason
    return hashlib.sha256(hashlib.sha256(picture).digest() + caption.encode()).hexdigest()[:16]


def read_caption(path: Path) -> str | None:
    """The caption in a .txt beside a picture, as trainers of LoRAs have it. Raises Rejected."""
    try:
        return " ".join(path.with_suffix(".txt").read_text(encoding="utf-8-sig").split()) or None
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise Rejected(f"{UNREADABLE_CAPTION}: save its .txt as UTF-8") from error
    except OSError as error:
        raise Rejected(UNREADABLE_CAPTION) from error
