"""What an evaluation found: scores by picture, their means with intervals, as Markdown tables and as JSON."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import write_whole
from .matching import Box
from .protocols import is_swapped

FORMAT, FORMAT_VERSION = "mmdiff_evaluation", 1
CONFIDENCE, RESAMPLES, SEED = 0.95, 10_000, 0
INTERVAL = f"{CONFIDENCE:.0%}, bootstrap of the mean over pictures, {RESAMPLES} resamples"
PICKS = 10_000_000
PROTOCOL_HEAD = ["protocol", "mean", "95% interval", "measured"]
WHOLE_PICTURES = "CLIP-I, DINO and DINOv2 compare the whole picture with each subject's photos."
MATCHED_FACES = (
    "Faces are matched to subjects, best pair first; a subject without a face scores 0, and the minimum is the score "
    "of the picture."
)


@dataclass(frozen=True)
class Score:
    """A metric's value for each picture; `subject` counts from 1, None where it is not about one subject.

    A value is None where the picture was not measured: it is left out of the mean, which is None without any.
    """

    metric: str
    values: tuple[float | None, ...]
    subject: int | None = None

    @property
    def measured(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.measured)) if self.measured else None

    @functools.cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95% bootstrap interval of the mean over measured pictures; None for fewer than two."""
        count = len(self.measured)
        if count < 2:
            return None
        random, values = np.random.default_rng(SEED), np.asarray(self.measured)
        # rows of the one table of picks that the seed gives, in parts that fit the memory
        parts = [
            values[random.integers(count, size=(rows, count))].mean(axis=1)
            for rows in split(RESAMPLES, max(1, PICKS // count))
        ]
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(np.concatenate(parts), (tail, 1 - tail))
        return float(low), float(high)


def split(total: int, size: int) -> list[int]:
    """`total` in parts of `size`, and what is left."""
    return [min(size, total - start) for start in range(0, total, size)]


@dataclass(frozen=True)
class SwapMatrix:
    """`rows` by picture and word: the cosines of what is at the word with every subject; None where nothing is."""

    metric: str
    words: tuple[str, ...]
    rows: tuple[Sequence[Sequence[float] | None], ...]

    @property
    def means(self) -> list[list[float] | None]:
        """(words, subjects), over the pictures in which the word was found; None where it never was."""
        found = ([row for row in column if row is not None] for column in zip(*self.rows, strict=True))
        return [np.mean(rows, axis=0).tolist() if rows else None for rows in found]

    @property
    def swapped(self) -> tuple[int, int]:
        """In how many pictures another order of the subjects is the more alike, and in how many all were found."""
        whole = [np.array(rows) for rows in self.rows if None not in rows]
        return sum(map(is_swapped, whole)), len(whole)

    def table(self) -> str:
        swapped, whole = self.swapped
        rows = [
            [word, *(["-"] * len(self.words) if row is None else (f"{value:.3f}" for value in row))]
            for word, row in zip(self.words, self.means, strict=True)
        ]
        head = [f"{self.metric} at the word", *(f"subject {number}" for number in range(1, len(self.words) + 1))]
        return f"{markdown(head, rows)}\n\nSwapped in {swapped} of {whole} pictures that show every word."


@dataclass(frozen=True)
class Report:
    """`photos` counts each subject's; `models` names them by role; `boxes` holds each picture's faces by subject.

    `protocols` are the figures of others for a picture's subjects together.
    """

    prompt: str
    photos: tuple[int, ...]
    models: dict[str, str]
    scores: tuple[Score, ...]
    boxes: tuple[tuple[Box | None, ...], ...] = ()
    protocols: tuple[Score, ...] = ()
    swaps: tuple[SwapMatrix, ...] = ()

    @property
    def pictures(self) -> int:
        return len(self.scores[0].values)

    @property
    def notes(self) -> list[str]:
        """How several subjects are told apart, or not."""
        if len(self.photos) < 2:
            return []
        metrics = {score.metric for score in self.scores}
        return [WHOLE_PICTURES] * bool(metrics & {"CLIP-I", "DINO", "DINOv2"}) + [MATCHED_FACES] * ("face" in metrics)

    def label(self, score: Score) -> str:
        """The score's name, with its subject's number where there are several."""
        return f"{score.metric} {score.subject}" if score.subject and len(self.photos) > 1 else score.metric

    def table(self) -> str:
        """Two Markdown tables, padded so that they also read as plain text: means, and a row for each picture."""
        labels = [self.label(score) for score in self.scores]
        means = [
            [label, f"{score.mean:.3f}", interval_text(score.interval)]
            for label, score in zip(labels, self.scores, strict=True)
        ]
        rows = [
            [str(number), *(f"{value:.3f}" for value in values)]
            for number, values in enumerate(zip(*(score.values for score in self.scores), strict=True), start=1)
        ]
        head = [f"{role}: {name}" for role, name in self.models.items()]
        if self.prompt:
            head.insert(0, f"prompt: {self.prompt}")
        parts = [
            "  \n".join(head),
            markdown(["score", "mean", "95% interval"], means),
            markdown(["picture", *labels], rows),
            *self.notes,
            *([markdown(PROTOCOL_HEAD, [protocol_row(score) for score in self.protocols])] if self.protocols else []),
            *(swap.table() for swap in self.swaps),
        ]
        return "\n\n".join(parts) + "\n"

    def as_json(self) -> dict:
        """Everything that was measured, as the JSON file holds it."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "prompt": self.prompt,
            "pictures": self.pictures,
            "subjects": [{"photos": count} for count in self.photos],
            "models": self.models,
            "interval": INTERVAL,
            "notes": self.notes,
            "scores": [
                {
                    "metric": score.metric,
                    "subject": score.subject,
                    "mean": score.mean,
                    "interval": score.interval,
                    "values": score.values,
                }
                for score in self.scores
            ],
            "protocols": [
                {"metric": score.metric, "mean": score.mean, "interval": score.interval, "values": score.values}
                for score in self.protocols
            ],
            "swaps": [
                {"metric": swap.metric, "words": swap.words, "means": swap.means, "rows": swap.rows}
                for swap in self.swaps
            ],
        }

    def save(self, path: Path) -> None:
        """Writes the JSON file; a failed write leaves nothing behind. Raises OSError."""
        text = json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def protocol_row(score: Score) -> list[str]:
    if score.mean is None:
        return [score.metric, "-", "-", f"0 of {len(score.values)}"]
    measured = f"{len(score.measured)} of {len(score.values)}"
    return [score.metric, f"{score.mean:.3f}", interval_text(score.interval), measured]


def interval_text(interval: tuple[float, float] | None) -> str:
    return "one picture" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column to the left, numbers to the right, columns padded to one width."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = (
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (head, rule, *rows)
    )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
