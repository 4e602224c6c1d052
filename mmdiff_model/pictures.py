"""Picture files: which are a person's own, and their colours as a person sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, features

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")
OF_SYSTEMS = {"__macosx", "@eadir", "@recycle", "#recycle", "$recycle.bin", "system volume information"}
HEIC, AVIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), (b"avif", b"avis")


class UnreadablePicture(ValueError):
    """A file that Pillow does not read; the message says why."""


class RefusedPicture(UnreadablePicture):
    """A file that may be whole and that Pillow refuses all the same; the message says what to do."""


def is_hidden(file: Path) -> bool:
    """Whether a path below a person's folder is hidden, or in a folder that systems and network drives keep there."""
    return any(part.startswith(".") or part.lower() in OF_SYSTEMS for part in file.parts)


def read(file: Path | BinaryIO, form: Callable[[Image.Image], Image.Image] | None = None) -> Image.Image:
    """A picture file in a form, as a person sees it where none is given. Raises UnreadablePicture."""
    try:
        with Image.open(file) as picture:
            return (form or as_seen)(picture)
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise RefusedPicture(f"it has more than {limit} megapixels, Pillow's limit. Save it smaller") from error
    except Exception as error:  # Pillow's plug-ins raise whatever they like
        if kind := unknown_kind(file):
            raise RefusedPicture(f"it is {kind}, which Pillow does not read here. Save it as JPEG") from error
        raise UnreadablePicture(str(error) or type(error).__name__) from error


def unknown_kind(file: Path | BinaryIO) -> str | None:
    """What phones write and this Pillow has no reader for, by the first bytes of a file."""
    if not isinstance(file, Path):
        return None
    try:
        with file.open("rb") as opened:
            head = opened.read(12)
    except OSError:
        return None
    if head[4:8] != b"ftyp":
        return None
    if head[8:] in HEIC and "HEIF" not in Image.OPEN:  # as plug-ins name it
        return "HEIC"
    return "AVIF" if head[8:] in AVIF and not features.check("avif") else None


def as_seen(picture: Image.Image) -> Image.Image:
    """A picture as a person sees it: turned as its EXIF says, RGB, on white where it is transparent."""
    return rgb(ImageOps.exif_transpose(picture))


def rgb(picture: Image.Image) -> Image.Image:
    """Any mode -> RGB, on white where it is transparent."""
    if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")
