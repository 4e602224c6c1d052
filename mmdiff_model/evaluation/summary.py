"""A folder's figures as tables: by number of subjects, by subject, and beside DreamBench's published rows."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import write_whole
from .cases import BETWEEN
from .published import METRICS, PUBLISHED, Row, published_table
from .report import INTERVAL, PROTOCOL_HEAD, Score, SwapMatrix, markdown, protocol_row
from .results import Measured

FORMAT, FORMAT_VERSION = "mmdiff_evaluation_folder", 1


def metric_scores(lines: Sequence[Measured]) -> list[Score]:
    """Every metric over pictures, each picture's value being the mean over its subjects; None where not measured."""
    by_picture = []
    for line in lines:
        values: dict[str, list[float]] = {}
        for metric, _, value in line.scores:
            values.setdefault(metric, []).append(value)
        by_picture.append({metric: float(np.mean(found)) for metric, found in values.items()} | line.protocols)
    metrics = dict.fromkeys(metric for values in by_picture for metric in values)
    return [Score(metric, tuple(values.get(metric) for values in by_picture)) for metric in metrics]


def swap_matrices(lines: Sequence[Measured]) -> list[SwapMatrix]:
    """Over all pictures, whatever their words: row i is the i-th subject's word."""
    metrics = dict.fromkeys(metric for line in lines for metric in line.swaps)
    count = len(lines[0].subjects)
    words = tuple(f"word of subject {number}" for number in range(1, count + 1))
    return [
        SwapMatrix(metric, words, tuple(line.swaps[metric] for line in lines if metric in line.swaps))
        for metric in metrics
    ]


def by_subjects(lines: Sequence[Measured]) -> dict[int, list[Measured]]:
    """Pictures of one subject, of two, ...: their figures mean different things."""
    groups: dict[int, list[Measured]] = {}
    for line in lines:
        groups.setdefault(len(line.subjects), []).append(line)
    return dict(sorted(groups.items()))


def between_photos(photos: dict[str, Tensor]) -> dict[str, float]:
    """A subject's unit vectors by metric -> the mean cosine of two different photos; nothing for a single photo."""
    return {
        metric: float((vectors @ vectors.T)[~torch.eye(len(vectors), dtype=torch.bool)].mean())
        for metric, vectors in photos.items()
        if len(vectors) > 1
    }


def tables(lines: Sequence[Measured], references: Sequence[dict[str, float]], dreambench: bool) -> str:
    """Markdown of everything; `references` has each subject's between_photos."""
    parts = []
    for count, group in by_subjects(lines).items():
        scores = metric_scores(group)
        parts.append(f"## {count} subject{'s' * (count > 1)}: {len(group)} pictures")
        parts.append(markdown(["score", *PROTOCOL_HEAD[1:]], [protocol_row(score) for score in scores]))
        parts += [swap.table() for swap in swap_matrices(group)]
        parts.append(subject_table(group))
        if dreambench and count in PUBLISHED and {score.metric for score in scores} & set(METRICS):
            parts.append(published_table(count, own_rows(scores, references if count == 1 else [])))
    return "\n\n".join(parts) + "\n"


def subject_table(lines: Sequence[Measured]) -> str:
    """The means of each subject, or of each set of subjects."""
    groups: dict[str, list[Measured]] = {}
    for line in lines:
        groups.setdefault(BETWEEN.join(line.subjects), []).append(line)
    metrics = [score.metric for score in metric_scores(lines)]
    rows = []
    for name, group in groups.items():
        means = {score.metric: score.mean for score in metric_scores(group)}
        cells = ["-" if means.get(metric) is None else f"{means[metric]:.3f}" for metric in metrics]
        rows.append([name, str(len(group)), *cells])
    return markdown(["subject", "pictures", *metrics], rows)


def own_rows(scores: Sequence[Score], references: Sequence[dict[str, float]]) -> list[Row]:
    means = {score.metric: score.mean for score in scores}
    rows = [Row("these pictures", tuple(means.get(metric) for metric in METRICS), "this run")]
    if any(references):
        found = {metric: [values[metric] for values in references if metric in values] for metric in METRICS}
        values = tuple(float(np.mean(cosines)) if cosines else None for cosines in found.values())
        rows.append(Row("these references", values, "this run"))
    return rows


def save(folder: Path, lines: Sequence[Measured], text: str, models: dict[str, str]) -> None:
    """Writes summary.json and summary.md, each as a whole. Raises OSError."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "models": models,
        "interval": INTERVAL,
        "groups": [
            {
                "subjects": count,
                "pictures": len(group),
                "scores": [
                    {
                        "metric": score.metric,
                        "mean": score.mean,
                        "interval": score.interval,
                        "measured": len(score.measured),
                    }
                    for score in metric_scores(group)
                ],
                "swaps": [
                    {"metric": swap.metric, "means": swap.means, "swapped": swap.swapped}
                    for swap in swap_matrices(group)
                ],
            }
            for count, group in by_subjects(lines).items()
        ],
    }
    whole = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / "summary.json", lambda partial: partial.write_text(whole, "utf-8", "backslashreplace"))
    write_whole(folder / "summary.md", lambda partial: partial.write_text(text, "utf-8", "backslashreplace"))
