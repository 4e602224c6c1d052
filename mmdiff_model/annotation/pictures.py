"""A picture of a folder with its caption, and what tells it from what it was before."""

import hashlib
import re
from pathlib import Path

from PIL import Image

from ..pictures import RefusedPicture, UnreadablePicture, read
from .words import Rejected

SMALLEST = 64
UNREADABLE, SMALL = "unreadable picture", f"picture of less than {SMALLEST} pixels"
UNREADABLE_CAPTION = "unreadable caption"
RETRIED = UNREADABLE, SMALL, UNREADABLE_CAPTION  # how these outcomes begin


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
