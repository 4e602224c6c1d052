"""What an evaluation found: scores by picture, their means with intervals, as Markdown tables and as JSON."""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import write_whole
from .matching import Box

FORMAT, FORMAT_VERSION = "mmdiff_evaluation", 1
CONFIDENCE, RESAMPLES, SEED = 0.95, 10_000, 0
INTERVAL = f"{CONFIDENCE:.0%}, bootstrap of the mean over pictures, {RESAMPLES} resamples"
WHOLE_PICTURES = "CLIP-I and DINO compare the whole picture with each subject's photos."
MATCHED_FACES = (
    "Faces are matched to subjects, best pair first; a subject without a face scores 0, and the minimum is the score "
    "of the picture."
)


@dataclass(frozen=True)
class Score:
    """A metric's value for each picture; `subject` counts from 1, None where it is not about one subject."""

    metric: str
    values: tuple[float, ...]
    subject: int | None = None

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @functools.cached_property
    def interval(self) -> tuple[float, float] | None:
        """The 95% bootstrap interval of the mean over pictures; None for a single picture."""
        if len(self.values) == 1:
            return None
        picks = np.random.default_rng(SEED).integers(len(self.values), size=(RESAMPLES, len(self.values)))
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(np.asarray(self.values)[picks].mean(axis=1), (tail, 1 - tail))
        return float(low), float(high)


@dataclass(frozen=True)
class Report:
    """`photos` counts each subject's; `models` names them by role; `boxes` holds each picture's faces by subject."""

    prompt: str
    photos: tuple[int, ...]
    models: dict[str, str]
    scores: tuple[Score, ...]
    boxes: tuple[tuple[Box | None, ...], ...] = ()

    @property
    def pictures(self) -> int:
        return len(self.scores[0].values)

    @property
    def notes(self) -> list[str]:
        """How several subjects are told apart, or not."""
        if len(self.photos) < 2:
            return []
        metrics = {score.metric for score in self.scores}
        return [WHOLE_PICTURES] * bool(metrics & {"CLIP-I", "DINO"}) + [MATCHED_FACES] * ("face" in metrics)

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
        }

    def save(self, path: Path) -> None:
        """Writes the JSON file; a failed write leaves nothing behind. Raises OSError."""
        text = json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n"
        write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


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
