"""A training from its configuration: what is trained, on which examples, and the checkpoint that comes of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import nn

from ..checkpoint import write_safetensors
from ..digest import whole_fingerprint
from ..faces import FaceFinder
from ..files import lock_training, naming
from .checkpointing import checkpoint_blocks
from .config import Settings
from .dataset import Examples
from .examples import Preparation
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
    find_face: FaceFinder | None = None

    def to(self, device: torch.device) -> None:
        for module in (self.model.model, self.clip.cond_stage_model, self.clip_vision.model):
            module.to(device)

    def fingerprints(self) -> dict[str, str]:
        """Of everything that is frozen, part by part, and the same whatever precision it was loaded in."""
        modules = {
            "model": self.model.model.diffusion_model,
            "clip": self.clip.cond_stage_model,
            "vae": self.vae.first_stage_model,
            "clip_vision": self.clip_vision.model,
        }
        digits = {key: fingerprint(module) for key, module in modules.items()}
        return {**digits, "face_analysis": self.find_face.fingerprint() if self.find_face else "none"}

    def sampling(self) -> str:
        """What the UNet predicts, at which noise levels."""
        sampling = self.model.model.model_sampling
        kinds = ", ".join(kind.__name__ for kind in type(sampling).__bases__)
        return f"{kinds} from {float(sampling.sigma_min):.3g} to {float(sampling.sigma_max):.3g}"


class Session:
    """One process's side of a training. It goes on from the state in `settings.output`, where there is one.

    Until it is closed no other training can use that folder. Raises StateError where the state is another training's,
    ValueError where another training is at work there.
    """

    def __init__(self, settings: Settings, base: BaseModels, records: Records, processes: Processes):
        self.settings, self.base, self.processes = settings, base, processes
        self.undo = [lock_training(settings.output)] if processes.rank == 0 else []
        try:
            self.start(records)
        except BaseException:
            self.close()
            raise

    def start(self, records: Records) -> None:
        """Makes what is trained, its examples and its loss, and reads the state."""
        settings, base, processes = self.settings, self.base, self.processes
        base.to(processes.device)
        torch.manual_seed(settings.seed)
        model, clip, clip_vision, variant = base.model.model, base.clip, base.clip_vision, settings.variant
        self.trainable = Trainable(model, clip, clip_vision, variant, settings.shape, settings.parts)
        self.trainable.to(processes.device)
        prepare = Preparation(model, clip, base.vae, clip_vision, variant, settings.data.size, base.find_face)
        self.examples = Examples(records, prepare, settings.drops, settings.seed, settings.data.cache)
        self.objective = Objective(
            base.model, clip, clip_vision, self.trainable, settings.losses, prepare.empty, settings.plan
        )
        self.undo.append(self.objective.close)
        if settings.gradient_checkpointing:
            self.undo.append(checkpoint_blocks(base.model.model.diffusion_model))
        state = State(settings.output / STATE_FILE, identity(settings, base, records, processes))
        self.loop = Loop(settings.plan, self.trainable, state, processes)

    @property
    def checkpoint(self) -> Path:
        """Where `export` writes the averaged weights."""
        return self.settings.output / CHECKPOINT_FILE

    def compute(self, micro: int) -> Micro:
        batch = self.examples.batch(micro, self.settings.plan.batch_size, self.processes.rank, self.processes.ranks)
        return Micro(*self.objective.loss(batch), batch.names)

    def run(self, stop: Stop = never, after: After = ignore) -> bool:
        """Trains and writes the checkpoint; False where `stop` ended it. Raises LossError, OSError."""
        with torch.enable_grad():
            finished = self.loop.run(self.compute, self.settings.checkpoint_seconds, stop, after)
        self.export()
        return finished

    def keep(self) -> None:
        """After an exception within a step: writes the state before that step, and the checkpoint. Raises OSError."""
        self.loop.save()
        self.export()

    def export(self) -> None:
        """Writes `checkpoint` in half precision, as the whole file or not at all. Raises OSError."""
        if self.processes.rank == 0:
            tensors, metadata = self.trainable.export(self.loop.average)
            with naming(self.checkpoint):
                write_safetensors({key: tensor.half() for key, tensor in tensors.items()}, metadata, self.checkpoint)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The base without what training adds to it, for sampling."""
        self.objective.close()
        yield
        self.base.to(self.processes.device)
        self.objective.open()

    def close(self) -> None:
        """Leaves the base as it was, and the folder to others."""
        for undo in reversed(self.undo):
            undo()


def fingerprint(module: nn.Module) -> str:
    """In bfloat16, to which float32 and float16 are rounded alike."""
    return whole_fingerprint({name: weight.detach() for name, weight in module.named_parameters()}, torch.bfloat16)


def identity(settings: Settings, base: BaseModels, records: Records, processes: Processes) -> dict[str, str]:
    """What a resumed training must share with the one that it goes on with: the node's inputs that digests stand for,
    and the configuration's keys."""
    return {
        "variant": settings.variant,
        **base.fingerprints(),
        "model sampling": base.sampling(),
        "data": records.digest(),
        "maps": records.map_digest(),
        "data.size": str(settings.data.size),
        "shape": str(settings.shape),
        "parts": ", ".join(settings.parts),
        "seed": str(settings.seed),
        "plan.batch_size on all processes": str(settings.plan.batch_size * processes.ranks),
        "plan.accumulation": str(settings.plan.accumulation),
    }
