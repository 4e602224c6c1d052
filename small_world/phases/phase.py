"""What the phases share: the loop of mmdiff_model.training with a log, weights in half precision."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmdiff_model.files import write_whole
from mmdiff_model.training.loop import Figures, Loop, Micro
from mmdiff_model.training.plan import Plan
from mmdiff_model.training.processes import Processes, signals
from mmdiff_model.training.session import BaseModels
from mmdiff_model.training.state import State

from ..family.models import load_clip, load_model, load_vae, load_vision

STATE_SECONDS = 120
LOG_SECONDS = 20

logger = logging.getLogger(__name__)
Loss = Callable[[int], tuple[Tensor, dict[str, Tensor]]]


class Trainer(Loop):
    """A phase on one device; `folder`/<name>.state holds where it stands. All of its loss runs in the plan's precision,
    unless the loss itself chooses more."""

    def __init__(self, name: str, plan: Plan, folder: Path, module: nn.Module):
        super().__init__(plan, module, State(folder / f"{name}.state", {}), Processes(training_device()))
        self.name = name

    def averaged(self) -> dict[str, Tensor]:
        """The module's state with the averaged weights."""
        return {**self.module.state_dict(), **self.average}

    def train(self, loss_of: Loss) -> bool:
        """Trains up to the plan's steps; False where SIGTERM or SIGINT ended it early.

        loss_of(step) -> the loss, and figures for the log. Raises LossError, OSError.
        """

        def compute(step: int) -> Micro:
            with self.plan.autocast(self.processes.device):
                return Micro(*loss_of(step))

        with signals() as stop:
            log = Log(self.name, self.step, self.plan.steps)
            return self.run(compute, STATE_SECONDS, stop, log.write)


class Log:
    """A line every LOG_SECONDS and after the last step."""

    def __init__(self, name: str, step: int, steps: int):
        logger.info("%s: from step %d to %d", name, step, steps)
        self.name, self.step, self.steps, self.time = name, step, steps, time.monotonic()

    def write(self, step: int, figures: Figures) -> None:
        now = time.monotonic()
        if now - self.time < LOG_SECONDS and step < self.steps:
            return
        seconds = (now - self.time) / (step - self.step)
        left = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.steps - step)))
        values = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        logger.info("%s %d/%d, %s, %.2f s a step, %s left", self.name, step, self.steps, values, seconds, left)
        self.step, self.time = step, now


def generator(name: str, step: int) -> torch.Generator:
    """The randomness of one step, on the CPU whatever trains, so that every machine draws the same."""
    seed = int.from_bytes(name.encode()[:4], "big") * 1_000_003 + step
    return torch.Generator().manual_seed(seed)


def autocast(device: torch.device) -> torch.autocast:
    """To bfloat16 where the device computes in it; a CPU that has none imitates it, five times slower than float32."""
    imitated = device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=not imitated)


def training_device() -> torch.device:
    return comfy.model_management.get_torch_device()


def load_base(weights: Path) -> BaseModels:
    """The trained base, for an adapter to be trained on it."""
    return BaseModels(*(load(weights) for load in (load_model, load_clip, load_vae, load_vision)))


def write_weights(folder: Path, name: str, state: dict[str, Tensor]) -> None:
    """`folder`/<name>.safetensors in half precision, replaced as a whole. Raises OSError."""
    tensors = {key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in state.items()}
    write_whole(folder / f"{name}.safetensors", lambda partial: save_file(tensors, partial))
