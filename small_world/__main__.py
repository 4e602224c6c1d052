"""The small world's commands; each has --help.

python -m small_world train --folder FOLDER      # trains the whole family and MM-Diff; run again to continue
python -m small_world records --folder FOLDER    # scenes as annotated records, for tools/train.py
python -m small_world sheet FILE.png             # scenes, or their characters alone, side by side
"""

import argparse
import logging
from pathlib import Path

import numpy as np

from mmdiff_model.host import use_comfyui

from . import WEIGHTS
from .drawn.records import write_records, write_shard
from .drawn.scenes import make_scene, references


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="small_world", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_train, add_records, add_sheet):
        add(commands)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    options.run(options)


def add_train(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("train", help="the family, MM-Diff and the reader")
    command.add_argument("--folder", type=Path, required=True, help="weights, training states and caches")
    command.add_argument(
        "--phases",
        nargs="+",
        metavar="PHASE",
        help="codec, vision, base, adapter, reader, ablation; without it all but the last",
    )
    command.add_argument("--bundle", action="store_true", help=f"then copy the weights to {WEIGHTS}")
    command.add_argument("--threads", type=int, default=2, help="of the CPU; another number rounds differently")
    command.set_defaults(run=run_train)


def run_train(options: argparse.Namespace) -> None:
    use_comfyui()
    import torch

    from .phases import train

    phases = options.phases or train.FAMILY
    if unknown := set(phases) - set(train.PHASES):
        raise SystemExit(f"--phases: {', '.join(sorted(unknown))} is none of {', '.join(train.PHASES)}.")
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    if train.train(options.folder, phases) and options.bundle:
        train.bundle(options.folder)


def add_records(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("records", help="scenes as annotated records")
    command.add_argument("--folder", type=Path, required=True)
    command.add_argument("--count", type=int, default=2000)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--shard", action="store_true", help="one records.tar in the folder instead of files")
    command.set_defaults(run=run_records)


def run_records(options: argparse.Namespace) -> None:
    scenes = (make_scene(options.seed, number) for number in range(options.count))
    if options.shard:
        write_shard(options.folder / "records.tar", scenes, options.seed)
    else:
        write_records(options.folder, scenes, options.seed)


def add_sheet(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser("sheet", help="scenes side by side in one picture")
    command.add_argument("file", type=Path)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--count", type=int, default=48)
    command.add_argument("--held-out", action="store_true", help="characters of the evaluation")
    command.add_argument("--references", action="store_true", help="each alone, as the vision encoder sees it")
    command.set_defaults(run=run_sheet)


def run_sheet(options: argparse.Namespace) -> None:
    import torch
    from torchvision.utils import save_image

    scenes = [make_scene(options.seed, index, options.held_out) for index in range(options.count)]
    pictures = [scene.picture for scene in scenes]
    if options.references:
        pictures = [picture for scene in scenes for picture in references(scene, options.seed)]
    save_image(torch.from_numpy(np.stack(pictures)).movedim(-1, 1) / 255, options.file, pad_value=1)


if __name__ == "__main__":
    main()
