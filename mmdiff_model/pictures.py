"""Picture files: their endings, and their colours as a person sees them."""

from PIL import Image, ImageOps

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif")


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
