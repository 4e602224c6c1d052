"""Measures MM-Diff in the small world: python tools/evaluate_world.py [--seed S] [--json FILE] [--ablation FOLDER]

Characters of the seed, never trained on, are painted from their references and read by a network trained for that.
Printed are, in percent with 95% intervals: MM-Diff's bundled weights, the base alone, chance, and what the codec and
the drawings themselves give. With --ablation the variants that the small world's phase of that name has trained in
FOLDER.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    """The exit status: 1 where weights are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--singles", type=int, default=100, help="cases with one character")
    parser.add_argument("--pairs", type=int, default=100, help="cases with two characters")
    parser.add_argument("--json", type=Path, help="writes all figures there")
    parser.add_argument("--ablation", type=Path, metavar="FOLDER", help="weights with adapters of all variants")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("small_world").setLevel(logging.INFO)

    import torch

    from mmdiff_model.host import use_comfyui

    use_comfyui()
    from small_world import WEIGHTS
    from small_world.measured import evaluation, personalise, reader

    torch.set_num_threads(options.threads)
    try:
        reading = reader.load_reader(WEIGHTS)
        painters = evaluation.ablation(options.ablation) if options.ablation else evaluation.bundled(WEIGHTS)
    except FileNotFoundError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    trial = evaluation.draw_trial(options.seed, options.singles, options.pairs, reading)
    rows = {name: trial.figures(name, painter) for name, painter in painters.items()}
    print(evaluation.to_table(rows, evaluation.MAIN))
    if not options.ablation:
        print("\n" + evaluation.to_table(rows, evaluation.DETAILS))
    if options.json:
        evaluation.write_json(options.json, evaluation.to_json(trial, rows, vars(personalise.PLAIN)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
