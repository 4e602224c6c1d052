"""A training from its configuration: what is trained, on which examples, and the checkpoint that comes of it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE

from ..checkpoint import fingerprint, write_safetensors
from .checkpointing import checkpoint_blocks
from .config import TrainConfig
from .dataset import Examples
from .examples import FindFace, Preparation
from .loop import After, Loop, Micro, Stop, ignore, never
from .objective import Objective
from .processes import Processes
from .records import Records
from .state import State
from .trainable import Trainable

STATE_FILE, CHECKPOINT_FILE = "state.pt", "mmdiff.safetensors"


@dataclass(frozen=True)
class BaseModels:
    """The frozen base, the trainer's own to change; `find_face` is needed by `portrait`."""

    model: ModelPatcher
    clip: CLIP
    vae: VAE
    clip_vision: ClipVisionModel
    find_face: FindFace | None = None

    def to(self, device: torch.device) -> None:
        for module in (self.model.model, self.clip.cond_stage_model, self.clip_vision.model):
            module.to(device)

    def fingerprint(self) -> str:
        """Of everything that is frozen."""
        parts = self.model.model.diffusion_model, self.clip.cond_stage_model, self.clip_vision.model
        return fingerprint(
            {
                f"{number}.{name}": weight.cpu()
                for number, part in enumerate(parts)
                for name, weight in part.named_parameters()
            }
        )


class Session:
    """One process's side of a training. It goes on from the state in `config.output`, where there is one.

    Raises StateError where that is another training's.
    """

    def __init__(self, config: TrainConfig, base: BaseModels, records: Records, processes: Processes):
        self.config, self.base, self.processes = config, base, processes
        base.to(processes.device)
        torch.manual_seed(config.seed)
        models = base.model.model, base.clip, base.clip_vision
        self.trainable = Trainable(*models, config.variant, config.shape, config.parts).to(processes.device)
        prepare = Preparation(
            base.model.model, base.clip, base.vae, base.clip_vision, config.variant, config.data.size, base.find_face
        )
        self.examples = Examples(records, prepare, config.drops, config.seed, config.data.cache)
        self.objective = Objective(
            base.model, base.clip, base.clip_vision, self.trainable, config.losses, prepare.empty
        )
        self.undo = [self.objective.close]
        if config.gradient_checkpointing:
            self.undo.append(checkpoint_blocks(base.model.model.diffusion_model))
        state = State(config.output / STATE_FILE, identity(config, base, processes))
        self.loop = Loop(config.plan, self.trainable, state, processes)

    @property
    def checkpoint(self) -> Path:
        """Where `export` writes the averaged weights."""
        return self.config.output / CHECKPOINT_FILE

    def compute(self, micro: int) -> Micro:
        batch = self.examples.batch(micro, self.config.plan.batch_size, self.processes.rank, self.processes.ranks)
        return Micro(*self.objective.loss(batch), batch.names)

    def run(self, stop: Stop = never, after: After = ignore) -> bool:
        """Trains and writes the checkpoint; False where `stop` ended it. Raises LossError, OSError."""
        with torch.enable_grad():
            finished = self.loop.run(self.compute, self.config.checkpoint_seconds, stop, after)
        self.export()
        return finished

    def export(self) -> None:
        """Writes `checkpoint` in half precision, as the whole file or not at all. Raises OSError."""
        if self.processes.rank == 0:
            tensors, metadata = self.trainable.export(self.loop.average)
            write_safetensors({key: tensor.half() for key, tensor in tensors.items()}, metadata, self.checkpoint)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The base without what training adds to it, for sampling."""
        self.objective.close()
        yield
        self.base.to(self.processes.device)
        self.objective.open()

    def close(self) -> None:
        """Leaves the base as it was."""
        for undo in self.undo:
            undo()


def identity(config: TrainConfig, base: BaseModels, processes: Processes) -> dict[str, str]:
    """What a resumed training must share with the one that it goes on with, by the configuration's keys."""
    return {
        "variant": config.variant,
        "base": base.fingerprint(),
        "data": str(dataclasses.replace(config.data, cache=False)),
        "shape": str(config.shape),
        "parts": ", ".join(config.parts),
        "seed": str(config.seed),
        "plan.batch_size on all processes": str(config.plan.batch_size * processes.ranks),
        "plan.accumulation": str(config.plan.accumulation),
    }
