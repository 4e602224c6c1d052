"""A report on one sheet: subjects, when they act, where they went, how like they are, and whose the patches are."""

from collections.abc import Iterable, Iterator, Sequence

from PIL import Image, ImageDraw
from torch import Tensor

from ..drawing import (
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
    heat_maps,
    sheet_of,
    text_block,
    with_faces,
    wrap,
)
from .facts import CLIP, FACE, Facts, SubjectFacts
from .text import heading, lines_of, sections, who

SHOWN = 8  # more pictures stay in the text and the JSON
OPACITY = 0.7
INNER = WIDTH - 2 * MARGIN
SHORT = {FACE: "face", CLIP: "CLIP"}


def draw_report(facts: Facts, pictures: Sequence[Tensor]) -> Tensor:
    """The facts with their pictures (H, W, 3) in 0..1 -> a sheet (h, 1340, 3) in 0..1."""
    parts = [text_block(["MM-Diff report"], 28, INK)]
    parts += [text_block(lines, 16, GREY) for lines in [wrapped(heading(facts), 16)] if lines]
    parts += [card(facts, found) for found in facts.subjects]
    if facts.record is not None and facts.subjects:
        parts.append(timeline(facts))
    parts += picture_rows(facts, pictures[:SHOWN])
    if len(pictures) > SHOWN:
        parts.append(text_block([f"and {len(pictures) - SHOWN} more pictures in the text"], 15, GREY))
    parts += [section(title, wrapped(lines, 15)) for title, lines in sections(facts)]
    return sheet_of(parts)


def section(title: str, lines: Sequence[str]) -> Image.Image:
    part = block(30 + LINE * len(lines))
    ImageDraw.Draw(part).text((0, 0), title, INK, font(18))
    part.paste(text_block(lines, 15, GREY), (0, 30))
    return part


def wrapped(lines: Iterable[str], size: int) -> list[str]:
    return [part for line in lines for part in wrap(line, size)]


def card(facts: Facts, found: SubjectFacts) -> Image.Image:
    """A subject's thumbnail in its colour, and beside it what is known."""
    left = THUMBNAIL + GAP
    lines = [part for line in lines_of(facts, found) for part in wrap(line, 16, INNER - left)]
    part = block(max(THUMBNAIL, 30 + LINE * len(lines)))
    draw = ImageDraw.Draw(part)
    tint = colour(found.number)
    if found.subject.thumbnail is None:
        draw.rectangle((0, 0, THUMBNAIL - 1, THUMBNAIL - 1), RULE)
        draw.text((THUMBNAIL // 2, THUMBNAIL // 2), "no picture", GREY, font(15), anchor="mm")
    else:
        part.paste(fitted(found.subject.thumbnail, THUMBNAIL, THUMBNAIL), (0, 0))
    draw.rectangle((0, 0, THUMBNAIL - 1, 4), tint)
    draw.text((left, 0), who(found), tint, font(20))
    for i, line in enumerate(lines):
        draw.text((left, 30 + LINE * i), line, INK, font(16))
    return part


def timeline(facts: Facts) -> Image.Image:
    """The steps of the latest sampling from left to right, and a bar where each subject acted."""
    record = facts.record
    steps = record.before + len(record.sigmas) - 1
    start, end = 160, INNER
    part = block(30 + 24 * len(facts.subjects))
    draw = ImageDraw.Draw(part)

    def at(step: int) -> float:
        return start + (end - start) * step / max(steps, 1)

    draw.text((0, 10), "steps", GREY, font(15), anchor="lm")
    draw.text((start, 10), str(record.before + 1), GREY, font(15), anchor="lm")
    draw.text((end, 10), str(steps), GREY, font(15), anchor="rm")
    for i, found in enumerate(facts.subjects):
        middle = 30 + 24 * i + 10
        draw.text((0, middle), f"Subject {found.number}", colour(found.number), font(15), anchor="lm")
        draw.rectangle((at(record.before), middle - 6, end, middle + 6), RULE)
        if found.steps:
            draw.rectangle((at(found.steps[0] - 1), middle - 6, at(found.steps[1]), middle + 6), colour(found.number))
    return part


def picture_rows(facts: Facts, pictures: Sequence[Tensor]) -> list[Image.Image]:
    """Rows of cells: each picture over its likeness; where subjects were routed, each one's map follows it."""
    cells = []
    for index, picture in enumerate(pictures):
        tall = max(1, round(CELL * min(picture.shape[0] / picture.shape[1], 1.5)))
        boxes = facts.boxes[index] if facts.boxes else ()
        captions = [
            (
                f"{who(found)}: " + ", ".join(f"{SHORT[m]} {v[index]:.2f}" for m, v in found.likeness.items()),
                found.number,
            )
            for found in facts.subjects
            if found.likeness
        ]
        own = [(with_faces(picture, boxes, tall), captions)]
        if facts.record is not None and facts.record.routed is not None:
            routed = facts.record.routed[index % len(facts.record.routed)]
            for found, heat in zip(facts.subjects, heat_maps(picture, routed, OPACITY), strict=True):
                covered = found.coverage[index % len(found.coverage)]
                caption = "not routed" if covered is None else f"{covered:.0%}"
                own.append((fitted(heat, CELL, tall), [(f"Subject {found.number}: {caption}", found.number)]))
            cells += [own[start : start + COLUMNS] for start in range(0, len(own), COLUMNS)]
        elif cells and len(cells[-1]) < COLUMNS:
            cells[-1] += own
        else:
            cells.append(own)
    return [row_of(row) for row in cells]


def likeness_of(facts: Facts, index: int) -> Iterator[tuple[str, int]]:
    """A line for each subject that the picture was compared with, and its number."""
    for found in facts.subjects:
        if found.likeness:
            values = ", ".join(f"{SHORT[metric]} {values[index]:.2f}" for metric, values in found.likeness.items())
            yield f"Subject {found.number}: {values}", found.number


def row_of(cells: Sequence[tuple[Image.Image, list[tuple[str, int]]]]) -> Image.Image:
    tall = max(image.height for image, _ in cells)
    row = block(tall + 8 + LINE * max(len(captions) for _, captions in cells))
    draw = ImageDraw.Draw(row)
    for column, (image, captions) in enumerate(cells):
        left = column * (CELL + GAP)
        row.paste(image, (left, 0))
        for i, (text, number) in enumerate(captions):
            draw.text((left, tall + 8 + LINE * i), text, colour(number), font(16))
    return row
