"""Picture files: their endings, and their colours as a person sees them."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")


class UnreadablePicture(ValueError):
    """A file that Pillow does not read; the message says why."""


def read(file: Path | BinaryIO, form: Callable[[Image.Image], Image.Image] | None = None) -> Image.Image:
    """A picture file in a form, as a person sees it where none is given. Raises UnreadablePicture."""
    try:
        with Image.open(file) as picture:
            return (form or as_seen)(picture)
    except Exception as error:  # Pillow's plug-ins raise whatever they like
        raise UnreadablePicture(str(error) or type(error).__name__) from error


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
