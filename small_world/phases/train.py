"""Trains the family and MM-Diff on it, phase by phase, in one folder that each phase finds the weights of others in.

Finished phases are passed over and an unfinished one continues, so the same command starts them and goes on after a
kill.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from .. import ADAPTER_FILE, WEIGHTS
from ..family.models import CODEC, TEXT_ENCODERS, UNET_MODEL, VISION_ENCODER
from ..measured.reader import READER
from .adapter import ABLATION, ADAPTERS, Prepared, train_ablation, train_adapter
from .base import train_base
from .codec import train_codec
from .reader import train_reader
from .vision import train_vision

FAMILY = CODEC, VISION_ENCODER, "base", "adapter", READER
PHASES = *FAMILY, ABLATION


def train(folder: Path, phases: Sequence[str] = FAMILY) -> bool:
    """Trains the named phases up to their steps; False where one was told to stop. Raises FileNotFoundError where a
    phase needs the weights of one that has not ended."""
    prepared: Prepared = {}
    trainings = {
        CODEC: train_codec,
        VISION_ENCODER: train_vision,
        "base": train_base,
        "adapter": lambda folder: train_adapter(folder, prepared),
        READER: train_reader,
        ABLATION: lambda folder: train_ablation(folder, prepared),
    }
    return all(trainings[phase](folder) for phase in PHASES if phase in phases)


def bundle(folder: Path) -> None:
    """Copies a folder's weights to the pack's own."""
    WEIGHTS.mkdir(exist_ok=True)
    for name in (CODEC, VISION_ENCODER, TEXT_ENCODERS, UNET_MODEL, READER):
        shutil.copy(folder / f"{name}.safetensors", WEIGHTS)
    shutil.copy(folder / ADAPTERS / "mmdiff" / ADAPTER_FILE, WEIGHTS)
