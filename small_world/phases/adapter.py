"""Trains MM-Diff on the frozen base of the small world, and for comparison its ablations and two rivals.

Scenes are drawn as they are needed; every character's reference shows it in another pose. Writes
FOLDER/adapters/mmdiff/mmdiff.safetensors, and for the ablation FOLDER/ablation/VARIANT/mmdiff.safetensors, all of them
with the same smaller budget. Needs the base models in FOLDER.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from mmdiff_model.adapter import SUBJECT
from mmdiff_model.training import config
from mmdiff_model.training.constraint import BALANCE, MASKED, NONE, Constraint
from mmdiff_model.training.dataset import Drops
from mmdiff_model.training.examples import Example
from mmdiff_model.training.objective import Losses
from mmdiff_model.training.plan import Plan
from mmdiff_model.training.processes import Processes, signals
from mmdiff_model.training.session import Session
from mmdiff_model.training.trainable import (
    IMAGE_BRANCH,
    LORA,
    PARTS,
    REFINER,
    TEXT_FUSION,
    VISION,
    Part,
    Shape,
)

from ..drawn.drawing import SIZE
from .phase import Log, load_base, training_device
from .world import World

ADAPTERS, ABLATION = "adapters", "ablation"
STEPS, ABLATION_STEPS, BATCH, SEED, SCENES = 3000, 250, 32, 4, 12000
SHAPE = Shape(num_tokens=8, depth=1, token_hidden=48, lora_rank=12, text_lora_rank=8, vision_layers=1)
LOSSES = Losses(constraint_weight=0.1, velocity_limit=5.0)
DROPS = Drops(text=0.05, image=0.05, both=0.05, background=0.5)

Prepared = dict[int, Example]


@dataclass(frozen=True)
class Variant:
    """What a training differs in from MM-Diff's own."""

    parts: tuple[Part, ...] = PARTS
    constraint: Constraint = BALANCE
    shape: Shape = SHAPE


def without(part: Part) -> Variant:
    return Variant(tuple(other for other in PARTS if other != part))


VARIANTS = {
    "mmdiff": Variant(),
    "masked_constraint": Variant(constraint=MASKED),
    "no_constraint": Variant(constraint=NONE),
    "no_text_fusion": without(TEXT_FUSION),
    "no_refiner": without(REFINER),
    "no_lora": without(LORA),
    "fastcomposer": Variant((TEXT_FUSION, LORA, VISION)),
    "ip_adapter": Variant((IMAGE_BRANCH,), NONE, replace(SHAPE, lora_rank=64)),
}


def configure(output: Path, name: str, steps: int) -> config.Settings:
    """The settings that train a variant in `steps` steps."""
    variant = VARIANTS[name]
    return config.Settings(
        output=output,
        variant=SUBJECT,
        data=config.Data((), SIZE, cache=True),
        plan=Plan(steps, rate=2e-3, warmup=steps // 30, ema_steps=steps // 15, batch_size=BATCH),
        shape=variant.shape,
        parts=variant.parts,
        losses=replace(LOSSES, constraint=variant.constraint),
        drops=DROPS,
        checkpoint_seconds=120,
        seed=SEED,
    )


def train_adapter(folder: Path, prepared: Prepared) -> bool:
    """Trains MM-Diff up to its steps; False where it was told to stop."""
    return train_variant(folder, folder / ADAPTERS / "mmdiff", "mmdiff", STEPS, prepared)


def train_ablation(folder: Path, prepared: Prepared) -> bool:
    """Trains every variant with the ablation's budget; False where it was told to stop."""
    return all(train_variant(folder, folder / ABLATION / name, name, ABLATION_STEPS, prepared) for name in VARIANTS)


def train_variant(folder: Path, output: Path, name: str, steps: int, prepared: Prepared) -> bool:
    """Trains one variant on the base in `folder` and writes it. prepared: examples, the same for all variants."""
    settings = configure(output, name, steps)
    session = Session(settings, load_base(folder), World(SEED, SCENES), Processes(training_device()))
    session.examples.cache = prepared
    log = Log(name, session.loop.step, steps)
    with signals() as stop:
        finished = session.run(stop, log.write)
    session.close()
    logging.info("%s: %s", name, session.checkpoint)
    return finished
