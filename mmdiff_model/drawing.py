"""Sheets: blocks of text and pictures under each other, each subject in a colour of its own."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor, nn

PAPER, INK, GREY, RULE, BAR = "#ffffff", "#1d2330", "#6b7385", "#e3e6ec", "#8b94a8"
SUBJECT_COLOURS = ("#e0402f", "#2680e8", "#2fae4d", "#d99a00", "#a44fdd", "#12a5a5")
COLUMNS, CELL, GAP, MARGIN = 4, 300, 20, 40
WIDTH = 2 * MARGIN + COLUMNS * CELL + (COLUMNS - 1) * GAP
LINE, FACE = 22, 4
THUMBNAIL = 120


def sheet_of(parts: Sequence[Image.Image]) -> Tensor:
    """Blocks -> a sheet (h, 1340, 3) in 0..1."""
    sheet = Image.new("RGB", (WIDTH, 2 * MARGIN + sum(part.height + GAP for part in parts) - GAP), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height + GAP
    return torch.from_numpy(np.array(sheet)).float() / 255


def block(height: int) -> Image.Image:
    return Image.new("RGB", (WIDTH - 2 * MARGIN, height), PAPER)


def text_block(lines: Sequence[str], size: int, ink: str) -> Image.Image:
    part = block(len(lines) * (size + 7))
    draw = ImageDraw.Draw(part)
    for i, line in enumerate(lines):
        draw.text((0, i * (size + 7)), line, ink, font(size))
    return part


def wrap(text: str, size: int, width: int = WIDTH - 2 * MARGIN) -> list[str]:
    """The text in lines that fit; a word that does not is left to run over the margin."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def fitted(picture: Tensor, width: int, height: int) -> Image.Image:
    """(H, W, 3) in 0..1 -> a picture of that size, whole, in the middle of a light ground."""
    image = Image.fromarray((picture * 255).round().byte().numpy())
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    ground = Image.new("RGB", (width, height), RULE)
    ground.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return ground


def with_faces(picture: Tensor, boxes: Sequence, tall: int) -> Image.Image:
    """The picture in a cell (CELL, tall), and a frame around each subject's face; None is a face not found."""
    height, width = picture.shape[:2]
    scale = min(CELL / width, tall / height)
    cell = fitted(picture, CELL, tall)
    draw = ImageDraw.Draw(cell)
    x, y = (CELL - round(width * scale)) // 2, (tall - round(height * scale)) // 2
    for subject, box in enumerate(boxes, start=1):
        if box:
            frame = [x + box[0] * scale, y + box[1] * scale, x + box[2] * scale, y + box[3] * scale]
            draw.rounded_rectangle(frame, 6, outline=colour(subject), width=FACE)
    return cell


def heat_maps(picture: Tensor, weights: Tensor, opacity: float) -> Tensor:
    """picture (H, W, 3) and weights (subjects, h, w) -> (subjects, H, W, 3), each subject's weight in its colour."""
    weights = nn.functional.interpolate(weights[None], picture.shape[:2], mode="bilinear")[0, ..., None]
    rgb = [ImageColor.getrgb(colour(subject)) for subject in range(1, len(weights) + 1)]
    colours = torch.tensor(rgb)[:, None, None] / 255
    grey = picture[..., :3].cpu().mean(dim=-1, keepdim=True).expand(-1, -1, 3)
    return torch.lerp(grey.expand(len(weights), -1, -1, -1), colours * (0.3 + 0.7 * grey), opacity * weights)


def colour(subject: int) -> str:
    """The colour of a subject, counted from 1."""
    return SUBJECT_COLOURS[(subject - 1) % len(SUBJECT_COLOURS)]


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
