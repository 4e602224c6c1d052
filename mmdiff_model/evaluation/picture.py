"""An evaluation on one sheet: the subjects, the means with their intervals, and every picture with its scores."""

from collections.abc import Iterator, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from ..drawing import (
    BAR,
    CELL,
    COLUMNS,
    GAP,
    GREY,
    INK,
    LINE,
    MARGIN,
    RULE,
    THUMBNAIL,
    WIDTH,
    block,
    colour,
    fitted,
    font,
    sheet_of,
    text_block,
    with_faces,
    wrap,
)
from .report import Report, Score, SwapMatrix, interval_text

VALUE = 62
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
    return sheet_of(parts)


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
