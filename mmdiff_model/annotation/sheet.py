"""A contact sheet: each picture with its masks, words and caption, or with the reason why it gives no record."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..training.records import Record
from .words import Rejected

SIDE, GAP, TEXT, COLUMNS, MOST = 320, 12, 44, 4, 64
PAPER, INK, RED = "#ffffff", "#1d2330", "#b3261e"
COLOURS = (230, 57, 70), (29, 111, 219)
TINT, FADED = 0.45, 0.35


def draw_sheet(pictures: Sequence[np.ndarray], results: Sequence[Record | Rejected]) -> Image.Image:
    """Pictures (h, w, 3) uint8 with what became of each, the first 64 of them, row by row."""
    shown = list(zip(pictures, results, strict=True))[:MOST]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    left_out = len(pictures) - len(shown)
    size = columns * (SIDE + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP + (24 if left_out else 0)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (picture, result) in enumerate(shown):
        left, top = GAP + number % columns * (SIDE + GAP), GAP + number // columns * (SIDE + TEXT + GAP)
        sheet.paste(thumbnail(picture, result), (left, top))
        text = result.caption if isinstance(result, Record) else f"{result.reason}: {result.caption}".rstrip(": ")
        lines = textwrap.wrap(text, 46, max_lines=2, placeholder=" ...")
        draw.text((left, top + SIDE + 6), "\n".join(lines), INK if isinstance(result, Record) else RED, font)
    if left_out:
        draw.text((GAP, size[1] - 24), f"and {left_out} more", INK, font)
    return sheet


def thumbnail(picture: np.ndarray, result: Record | Rejected) -> Image.Image:
    """One picture in the middle of a square."""
    image = Image.fromarray(tinted(picture, result))
    scale = SIDE / max(image.size)
    image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
    corner = (SIDE - image.width) // 2, (SIDE - image.height) // 2
    square = Image.new("RGB", (SIDE, SIDE), PAPER)
    square.paste(image, corner)
    draw, font = ImageDraw.Draw(square), ImageFont.load_default(16)
    for number, segment in enumerate(result.segments if isinstance(result, Record) else ()):
        rows, columns = np.nonzero(segment.mask)
        place = corner[0] + columns.mean() * scale, corner[1] + rows.mean() * scale
        outline = {"stroke_width": 3, "stroke_fill": COLOURS[number % len(COLOURS)]}
        draw.text(place, segment.word, PAPER, font, anchor="mm", **outline)
    return square


def tinted(picture: np.ndarray, result: Record | Rejected) -> np.ndarray:
    """The picture with each mask in a colour of its own; faded where there is no record."""
    if isinstance(result, Rejected):
        return (picture * FADED + 255 * (1 - FADED)).astype(np.uint8)
    out = picture.astype(np.float32)
    for number, segment in enumerate(result.segments):
        colour = np.array(COLOURS[number % len(COLOURS)], dtype=np.float32)
        out[segment.mask] = out[segment.mask] * (1 - TINT) + colour * TINT
    return out.astype(np.uint8)
