"""Trains MM-Diff on the frozen base of the small world, and for comparison its ablations and two rivals.

    python -m small_world.train_adapter --folder FOLDER [--variant NAME ...] [--steps STEPS]

Scenes are drawn as they are needed; every character's reference shows it in another pose. Writes
FOLDER/adapters/NAME.safetensors. Needs the base models in FOLDER.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

from .host import use_comfyui

use_comfyui()

import torch  # noqa: E402

from mmdiff_model.adapter import SUBJECT  # noqa: E402
from mmdiff_model.checkpoint import write_safetensors  # noqa: E402
from mmdiff_model.training.constraint import BALANCE, MASKED, NONE  # noqa: E402
from mmdiff_model.training.dataset import Drops, Examples  # noqa: E402
from mmdiff_model.training.examples import Preparation  # noqa: E402
from mmdiff_model.training.objective import Losses, Objective  # noqa: E402
from mmdiff_model.training.trainable import (  # noqa: E402
    IMAGE_BRANCH,
    LORA,
    PARTS,
    REFINER,
    TEXT_FUSION,
    VISION,
    Shape,
    Trainable,
)

from .drawing import SIZE  # noqa: E402
from .models import load_clip, load_model, load_vae, load_vision  # noqa: E402
from .training import Plan, Trainer, start, training_device  # noqa: E402
from .world import World  # noqa: E402

ADAPTERS = "adapters"
STEPS, BATCH, SEED, SCENES = 4000, 32, 4, 12000
SHAPE = Shape(num_tokens=4, depth=1, token_hidden=96, lora_rank=12, text_lora_rank=8, vision_layers=1)
LOSSES = Losses(constraint=BALANCE, constraint_weight=0.05, snr_limit=5.0)
DROPS = Drops(text=0.05, image=0.05, both=0.05, background=0.25)


@dataclass(frozen=True)
class Variant:
    """What a training differs in from MM-Diff's own."""

    parts: tuple[str, ...] = PARTS
    constraint: str = BALANCE
    shape: Shape = SHAPE


def without(part: str) -> Variant:
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


def train_adapter(folder: Path, name: str, steps: int) -> bool:
    """Trains one variant up to its steps and writes it, also if told to stop (False)."""
    variant = VARIANTS[name]
    torch.manual_seed(SEED)
    device = training_device()
    model, clip, vae, clip_vision = (load(folder) for load in (load_model, load_clip, load_vae, load_vision))
    trainable = Trainable(model.model, clip, clip_vision, SUBJECT, variant.shape, variant.parts)
    for module in (model.model, clip.cond_stage_model, clip_vision.model, trainable):
        module.to(device)
    prepare = Preparation(model.model, clip, vae, clip_vision, SUBJECT, SIZE)
    examples = Examples(World(SEED, SCENES), prepare, DROPS, SEED, cache=True)
    losses = replace(LOSSES, constraint=variant.constraint)
    objective = Objective(model, clip, clip_vision, trainable, losses, prepare.empty)

    def loss_of(step: int):
        batch = examples.batch(step, BATCH)
        with torch.autocast(device.type, torch.bfloat16):
            return objective.loss(batch)

    plan = Plan(name, steps, rate=1.5e-3, warmup=100, ema_steps=300)
    trainer = Trainer(plan, folder / ADAPTERS, trainable)
    finished = trainer.run(loss_of)
    write_safetensors(*trainable.export(trainer.averaged()), folder / ADAPTERS / f"{name}.safetensors")
    return finished


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", nargs="+", default=["mmdiff"], choices=VARIANTS)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = start(parser)
    for name in options.variant:
        if not train_adapter(options.folder, name, options.steps):
            return


if __name__ == "__main__":
    main()
