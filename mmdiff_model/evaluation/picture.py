"""An evaluation on one sheet: the subjects, the means with their intervals, and every picture with its scores."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .report import Report, Score, SwapMatrix, interval_text

PAPER, INK, GREY, RULE, BAR = "#ffffff", "#1d2330", "#6b7385", "#e3e6ec", "#8b94a8"
SUBJECT_COLOURS = ("#e0402f", "#2680e8", "#2fae4d", "#d99a00", "#a44fdd", "#12a5a5")
COLUMNS, CELL, GAP, MARGIN = 4, 300, 20, 40
WIDTH = 2 * MARGIN + COLUMNS * CELL + (COLUMNS - 1) * GAP
LINE, VALUE, FACE = 22, 62, 4
THUMBNAIL = 120
SHOWN = 48  # more pictures stay in the tables and the JSON file


def draw_report(report: Report, pictures: Sequence[Tensor], subjects: Sequence[Sequence[Tensor]]) -> Tensor:
    """The report with its pictures (H, W, 3) in 0..1 and each subject's photos -> a sheet (h, 1340, 3) in 0..1."""
    parts = [heading(report), *([references(subjects)] if subjects else []), means(report)]
    for swap in report.swaps:
        parts.append(text_block(swap_lines(swap), 15, GREY))
    parts += picture_rows(report, pictures[:SHOWN])
    if len(pictures) > SHOWN:
        parts.append(text_block([f"and {len(pictures) - SHOWN} more pictures in the JSON file"], 15, GREY))
    if report.notes:
        parts.append(text_block([line for note in report.notes for line in wrap(note, 15)], 15, GREY))
    sheet = Image.new("RGB", (WIDTH, 2 * MARGIN + sum(part.height + GAP for part in parts) - GAP), PAPER)
    top = MARGIN
    for part in parts:
        sheet.paste(part, (MARGIN, top))
        top += part.height + GAP
    return torch.from_numpy(np.array(sheet)).float() / 255


def heading(report: Report) -> Image.Image:
    """Title, prompt, and the models that scored."""
    count = f"{report.pictures} picture{'s' * (report.pictures > 1)}"
    models = "      ".join(f"{role}: {name}" for role, name in report.models.items())
    prompt = wrap(report.prompt, 20) if report.prompt else []
    part = block(38 + 28 * len(prompt) + LINE)
    draw = ImageDraw.Draw(part)
    draw.text((0, 0), "MM-Diff evaluation", INK, font(28))
    draw.text((part.width, 10), count, GREY, font(18), anchor="ra")
    for i, line in enumerate(prompt):
        draw.text((0, 40 + 28 * i), line, INK, font(20))
    draw.text((0, part.height - LINE + 2), models, GREY, font(15))
    return part


def references(subjects: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Each subject's first photo in its colour, with the number of further photos."""
    step = THUMBNAIL + GAP
    columns = (WIDTH - 2 * MARGIN + GAP) // step
    rows = -(-len(subjects) // columns)
    part = block(rows * (THUMBNAIL + LINE + 12) - 6)
    draw = ImageDraw.Draw(part)
    for i, photos in enumerate(subjects):
        left, top = i % columns * step, i // columns * (THUMBNAIL + LINE + 12)
        thumbnail = fitted(photos[0], THUMBNAIL, THUMBNAIL)
        part.paste(thumbnail, (left, top))
        draw.rectangle((left, top, left + THUMBNAIL - 1, top + 4), colour(i + 1))
        more = f", +{len(photos) - 1}" if len(photos) > 1 else ""
        draw.text((left, top + THUMBNAIL + 6), f"subject {i + 1}{more}", colour(i + 1), font(16))
    return part


def means(report: Report) -> Image.Image:
    """A bar from 0 to 1 for each score's mean, with its interval as a whisker."""
    scores = [score for score in (*report.scores, *report.protocols) if score.mean is not None]
    part = block(len(scores) * 30 + 8)
    draw = ImageDraw.Draw(part)
    draw.line((0, 0, part.width, 0), RULE, 2)
    start, end = 200, part.width - 300
    for i, score in enumerate(scores):
        middle = 8 + i * 30 + 15
        tint = colour(score.subject) if score.subject and len(report.photos) > 1 else BAR

        def at(value: float) -> float:
            return start + (end - start) * min(max(value, 0.0), 1.0)

        draw.text((0, middle), report.label(score), INK, font(17), anchor="lm")
        draw.rectangle((start, middle - 7, end, middle + 7), RULE)
        draw.rectangle((start, middle - 7, at(score.mean), middle + 7), tint)
        if score.interval:
            low, high = map(at, score.interval)
            draw.line((low, middle, high, middle), INK, 2)
            for x in (low, high):
                draw.line((x, middle - 5, x, middle + 5), INK, 2)
        draw.text((end + 70, middle), f"{score.mean:.3f}", INK, font(17), anchor="rm")
        draw.text((end + 90, middle), interval_text(score.interval), GREY, font(15), anchor="lm")
    return part


def swap_lines(swap: SwapMatrix) -> list[str]:
    """Each word with its cosines to the subjects, and how often another order of them is the more alike."""
    swapped, whole = swap.swapped
    rows = zip(swap.words, swap.means, strict=True)
    cells = "      ".join(
        f"{word}: {' / '.join(f'{value:.3f}' for value in row) if row else '-'}" for word, row in rows
    )
    text = (
        f"{swap.metric} of what is at each word, with subject 1 / 2 ...      {cells}      swapped: {swapped} of {whole}"
    )
    return wrap(text, 15)


def picture_rows(report: Report, pictures: Sequence[Tensor]) -> Iterator[Image.Image]:
    """Four pictures a row, each over its scores, with the faces that were matched in their subjects' colours."""
    height, width = pictures[0].shape[:2]
    tall = max(1, round(CELL * min(height / width, 1.5)))
    metrics = list(dict.fromkeys(score.metric for score in report.scores))
    lines = {metric: list(value_lines(report, metric)) for metric in metrics}
    row_height = tall + 10 + LINE * sum(map(len, lines.values()))
    for start in range(0, len(pictures), COLUMNS):
        row = block(row_height)
        draw = ImageDraw.Draw(row)
        for column, picture in enumerate(pictures[start : start + COLUMNS]):
            left, index = column * (CELL + GAP), start + column
            row.paste(with_faces(picture, report.boxes[index] if report.boxes else (), tall), (left, 0))
            top = tall + 10
            for metric, metric_lines in lines.items():
                draw.text((left, top), metric, GREY, font(16))
                for line in metric_lines:
                    for position, score in enumerate(line, start=1):
                        tint = colour(score.subject) if score.subject and len(report.photos) > 1 else INK
                        right = left + CELL - (len(lines[metric][0]) - position) * VALUE
                        draw.text((right, top), f"{score.values[index]:.3f}", tint, font(16), anchor="ra")
                    top += LINE
        yield row


def value_lines(report: Report, metric: str) -> Iterator[list[Score]]:
    """The scores of a metric, as many to a line as fit beside its name."""
    scores = [score for score in report.scores if score.metric == metric]
    fit = (CELL - 50) // VALUE
    for start in range(0, len(scores), fit):
        yield scores[start : start + fit]


def with_faces(picture: Tensor, boxes: Sequence, tall: int) -> Image.Image:
    """The picture in its cell (CELL, tall), and a frame around each subject's face."""
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


def fitted(picture: Tensor, width: int, height: int) -> Image.Image:
    """(H, W, 3) in 0..1 -> a picture of that size, whole, in the middle of a light ground."""
    image = Image.fromarray((picture * 255).round().byte().numpy())
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    ground = Image.new("RGB", (width, height), RULE)
    ground.paste(image.resize(size, Image.Resampling.LANCZOS), ((width - size[0]) // 2, (height - size[1]) // 2))
    return ground


def text_block(lines: Sequence[str], size: int, ink: str) -> Image.Image:
    part = block(len(lines) * (size + 7))
    draw = ImageDraw.Draw(part)
    for i, line in enumerate(lines):
        draw.text((0, i * (size + 7)), line, ink, font(size))
    return part


def wrap(text: str, size: int) -> list[str]:
    """The text in lines that fit the sheet; a word that does not is left to run over the margin."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > WIDTH - 2 * MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def block(height: int) -> Image.Image:
    return Image.new("RGB", (WIDTH - 2 * MARGIN, height), PAPER)


def colour(subject: int) -> str:
    return SUBJECT_COLOURS[(subject - 1) % len(SUBJECT_COLOURS)]


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
