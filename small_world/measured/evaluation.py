"""The evaluation: the scores of several painters on the same held-out characters, as a table and as JSON."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmdiff_model.files import write_whole
from mmdiff_model.sampling.routing import OFF

from .. import ADAPTER_FILE
from .cases import Case, draw_cases, draw_truths
from .painters import Painter, codec_painter, paint_chance, sampling_painter
from .personalise import PLAIN, How
from .reader import Reader
from .scores import ATTRIBUTES, COLOUR_DISTANCES, Figure, figure, score_all

OURS, BASE = "MM-Diff", "base without adapter"
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

# row of the table: variant of phases.adapter, and how its subjects enter a picture
ABLATION = {
    "MM-Diff": ("mmdiff", PLAIN),
    "routing off": ("mmdiff", How(routing=OFF)),
    "constraint: masked": ("masked_constraint", PLAIN),
    "without constraints": ("no_constraint", PLAIN),
    "without CLS in the text": ("no_text_fusion", How(text=False)),
    "without SE-Refiner": ("no_refiner", PLAIN),
    "without LoRA": ("no_lora", PLAIN),
    "without image branch (FastComposer-style)": ("fastcomposer", How(image=False)),
    "image branch alone (IP-Adapter-style)": ("ip_adapter", How(routing=OFF, text=False)),
}

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


def bundled(weights: Path) -> dict[str, Painter]:
    """MM-Diff from a folder of weights, the base alone, chance, and the truth through the codec and as it was drawn."""
    return {
        OURS: sampling_painter(weights, weights / ADAPTER_FILE),
        BASE: sampling_painter(weights),
        "chance": paint_chance,
        "codec": codec_painter(weights),
        "drawn": draw_truths,
    }


def ablation(weights: Path) -> dict[str, Painter]:
    """A painter for each row of the paper's ablation and for two rivals, all trained with the same budget.

    Raises FileNotFoundError where a variant has not been trained.
    """
    painters = {}
    for row, (variant, how) in ABLATION.items():
        adapter = weights / "ablation" / variant / ADAPTER_FILE
        if not adapter.is_file():
            raise FileNotFoundError(
                f"{adapter}: missing. Train it with python -m small_world train --folder {weights} --phases ablation"
            )
        painters[row] = sampling_painter(weights, adapter, how)
    return painters


def to_table(rows: Mapping[str, Figures], columns: Sequence[str]) -> str:
    """Percentages with their intervals as a Markdown table, a painter a line."""
    lines = [["", *columns], ["---", *("---:" for _ in columns)]]
    lines += [[name, *(to_cell(figures[column]) for column in columns)] for name, figures in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    text = json.dumps(report, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
