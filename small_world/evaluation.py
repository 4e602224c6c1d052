"""The evaluation: the scores of several painters on the same held-out characters, as a table and as JSON."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .cases import Case, draw_cases, draw_truths
from .painters import Painter, codec_painter, paint_chance, sampling_painter
from .personalise import How
from .reader import Reader
from .scores import ATTRIBUTES, COLOUR_DISTANCES, Figure, figure, score_all

OURS = "MM-Diff"
MAIN = (
    "single.attributes",
    "single.text",
    "single.product",
    "pair.binding",
    "pair.swaps",
    "pair.blends",
    "pair.attributes",
    "pair.text",
)
DETAILS = tuple(f"single.{name}" for name in (*ATTRIBUTES, "word", "place", "action", "night"))

logger = logging.getLogger(__name__)
Figures = dict[str, Figure]


@dataclass(frozen=True)
class Trial:
    """The cases that all painters paint, and who reads their pictures."""

    seed: int
    singles: Sequence[Case]
    pairs: Sequence[Case]
    reader: Reader

    def figures(self, name: str, painter: Painter) -> Figures:
        """Every score of a painter, "single.*" and "pair.*"."""
        begin, figures = time.monotonic(), {}
        for kind, cases in (("single", self.singles), ("pair", self.pairs)):
            contents = self.reader.read(painter(cases), characters=len(cases[0].looks))
            scores = score_all(cases, contents)
            figures |= {f"{kind}.{score}": figure(values) for score, values in scores.items()}
        logger.info("%s: %d pictures, %.0f s", name, len(self.singles) + len(self.pairs), time.monotonic() - begin)
        return figures


def draw_trial(seed: int, singles: int, pairs: int, reader: Reader) -> Trial:
    return Trial(seed, draw_cases(seed, 1, singles), draw_cases(seed, 2, pairs), reader)


def references_of_scale(weights: Path) -> dict[str, Painter]:
    """What figures are measured against: the truth, the truth through the codec, chance, and the base alone."""
    return {
        "drawn": draw_truths,
        "codec": codec_painter(weights),
        "chance": paint_chance,
        "base": sampling_painter(weights),
    }


def variants_of(weights: Path, folder: Path) -> dict[str, Painter]:
    """A painter for each row of an ablation: `folder` holds checkpoints NAME.safetensors.

    NAME.json beside one gives its rows, each with options of How: {"routing off": {"routing": "off"}}; without it there
    is one row of that name. Raises FileNotFoundError for a folder without checkpoints, ValueError for unknown options.
    """
    checkpoints = sorted(folder.glob("*.safetensors"))
    if not checkpoints:
        raise FileNotFoundError(f"{folder}: no checkpoints (.safetensors). Train some with small_world.train_adapter")
    painters = {}
    for checkpoint in checkpoints:
        notes = checkpoint.with_suffix(".json")
        rows = json.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {checkpoint.stem: {}}
        for row, options in rows.items():
            unknown = sorted(set(options) - set(How.__dataclass_fields__))
            if unknown:
                known = ", ".join(How.__dataclass_fields__)
                raise ValueError(f"{notes}: '{row}' has unknown options {', '.join(unknown)}. Known ones: {known}")
            painters[row] = sampling_painter(weights, checkpoint, How(**options))
    return painters


def to_table(rows: Mapping[str, Figures], columns: Sequence[str]) -> str:
    """Percentages with their intervals, a painter a line, a blank between the aligned columns."""
    cells = [["", *columns]]
    for name, figures in rows.items():
        cells.append([name, *(to_cell(figures[column]) for column in columns)])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in cells
    )


def to_cell(found: Figure) -> str:
    value, lower, upper = (100 * part for part in (found.value, found.lower, found.upper))
    return f"{value:.1f} [{lower:.1f}, {upper:.1f}]"


def to_json(trial: Trial, rows: Mapping[str, Figures], settings: dict) -> dict:
    """MM-Diff's own values under "single" and "pair", those of all painters with intervals under "painters"."""
    report = {
        "seed": trial.seed,
        "settings": {
            "singles": len(trial.singles),
            "pairs": len(trial.pairs),
            "colour_distances": COLOUR_DISTANCES,
            "interval": "95%, bootstrap over characters (single) and over pairs (pair)",
            **settings,
        },
        "painters": {
            name: nested({key: asdict(one) for key, one in figures.items()}) for name, figures in rows.items()
        },
    }
    if OURS in rows:
        report |= nested({key: one.value for key, one in rows[OURS].items()})
    return report


def nested(values: Mapping[str, object]) -> dict[str, dict]:
    """{"single.text": x} -> {"single": {"text": x}}."""
    tree: dict[str, dict] = {}
    for key, value in values.items():
        kind, name = key.split(".")
        tree.setdefault(kind, {})[name] = value
    return tree


def write_json(path: Path, report: dict) -> None:
    """Replaces the file as a whole. Raises OSError."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
