"""Trains the whole family and MM-Diff on it: codec, vision encoder, text encoders with the UNet, adapter, reader.

    python -m small_world.drive --folder FOLDER [--bundle] [--ablation]

Finished phases are passed over and an unfinished one continues, so the same command starts it and goes on after a kill.
With --bundle the weights are then copied to where the demo finds them; with --ablation the variants are trained too.
"""

import argparse
import shutil
from functools import partial
from pathlib import Path

from .training import start  # isort: skip  (first: it finds ComfyUI)

from . import ADAPTER_FILE, WEIGHTS
from .models import CODEC, TEXT_ENCODERS, UNET_MODEL, VISION_ENCODER
from .reader import READER
from .train_adapter import ADAPTERS, Prepared, train_ablation, train_adapter
from .train_base import train_base
from .train_codec import train_codec
from .train_reader import train_reader
from .train_vision import train_vision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", action="store_true", help=f"copy the weights to {WEIGHTS}")
    parser.add_argument("--ablation", action="store_true", help="train the ablation's variants and the rivals too")
    options = start(parser)
    prepared: Prepared = {}
    adapter = partial(train_adapter, prepared=prepared)
    for train in (train_codec, train_vision, train_base, adapter, train_reader):
        if not train(options.folder):
            return
    if options.bundle:
        bundle(options.folder)
    if options.ablation:
        train_ablation(options.folder, prepared)


def bundle(folder: Path) -> None:
    """Copies a folder's weights to the pack's own."""
    WEIGHTS.mkdir(exist_ok=True)
    for name in (CODEC, VISION_ENCODER, TEXT_ENCODERS, UNET_MODEL, READER):
        shutil.copy(folder / f"{name}.safetensors", WEIGHTS)
    shutil.copy(folder / ADAPTERS / "mmdiff" / ADAPTER_FILE, WEIGHTS)


if __name__ == "__main__":
    main()
