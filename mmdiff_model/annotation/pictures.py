"""A folder of pictures, at any depth: what is in it, and each picture with its caption."""

import hashlib
import re
from pathlib import Path

from PIL import Image

from ..pictures import ENDINGS, UnreadablePicture, read
from .words import Rejected

SMALLEST = 64
UNREADABLE, SMALL = "unreadable picture", f"picture of less than {SMALLEST} pixels"
UNREADABLE_CAPTION = "unreadable caption"
RETRIED = UNREADABLE, SMALL, UNREADABLE_CAPTION


def list_pictures(folder: Path, output: Path) -> list[Path]:
    """The pictures below `folder`, relative to it, in an order of their names alone; none of those below `output`.

    Raises FileNotFoundError, ValueError where there are none or the two are one folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"pictures: {folder} is not a folder. Name the folder of your photos.")
    if folder.resolve() == output.resolve():
        raise ValueError(f"output: {output} is the folder of the pictures. Name a folder of its own.")
    written = output.resolve()
    found = sorted(
        file.relative_to(folder)
        for file in folder.rglob("*")
        if file.suffix.lower() in ENDINGS and written not in file.resolve().parents and file.is_file()
    )
    found = [file for file in found if not any(part.startswith(".") for part in file.parts)]
    if not found:
        raise ValueError(f"pictures: {folder} holds none ({', '.join(ENDINGS)}). Name the folder of your photos.")
    return found


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
    except UnreadablePicture as error:
        raise Rejected(UNREADABLE) from error
    if min(picture.size) < SMALLEST:
        raise Rejected(SMALL)
    scale = size / min(picture.size)
    if scale < 1:
        picture = picture.resize([round(length * scale) for length in picture.size], Image.Resampling.LANCZOS)
    return picture


def read_caption(path: Path) -> str | None:
    """The caption in a .txt beside a picture, as trainers of LoRAs have it. Raises Rejected."""
    try:
        return " ".join(path.with_suffix(".txt").read_text(encoding="utf-8-sig").split()) or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected(UNREADABLE_CAPTION) from error
