"""The training loop that all phases share: AdamW, warm-up and cosine, EMA, and checkpoints that resume bit for bit.

Step k is a function of the state after step k - 1 and of k alone: batches, noise and drops come from a generator seeded
with k. So a killed run loses at most the steps since its last checkpoint, and ends as if it had never stopped.
"""

import argparse
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

CHECKPOINT_SECONDS = 120
LOG_SECONDS = 20

logger = logging.getLogger(__name__)
Loss = Callable[[int], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Plan:
    """How a phase is trained: its name, steps, peak learning rate and the time constant of its EMA in steps."""

    name: str
    steps: int
    rate: float
    warmup: int = 200
    ema_steps: int = 500
    decay: float = 0.01

    def rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to a fiftieth of the peak."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


class Trainer:
    """Trains what of a module has gradients and keeps its EMA; `folder`/<name>.checkpoint holds all of its state."""

    def __init__(self, plan: Plan, folder: Path, module: nn.Module):
        self.plan = plan
        self.path = folder / f"{plan.name}.checkpoint"
        self.module = module.train()
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), betas=(0.9, 0.99), weight_decay=plan.decay)
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.step = 0
        self.stopped = False
        if self.path.is_file():
            self.restore()

    def restore(self) -> None:
        device = next(iter(self.weights.values())).device
        state = torch.load(self.path, map_location=device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average, self.step = state["average"], state["step"]

    def save(self) -> None:
        """Replaces the checkpoint as a whole, so that a kill leaves the old one or the new one. Raises OSError."""
        state = {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.step,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def averaged(self) -> dict[str, Tensor]:
        """The module's state with the averaged weights."""
        return {**self.module.state_dict(), **self.average}

    def run(self, loss_of: Loss) -> bool:
        """Trains up to the plan's steps; False where SIGTERM or SIGINT ended it early.

        loss_of(step) -> the loss, and figures for the log. Raises FloatingPointError on a NaN.
        """
        previous = [signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)]
        logger.info("%s: from step %d to %d", self.plan.name, self.step, self.plan.steps)
        saved = logged = time.monotonic()
        seen = self.step
        while self.step < self.plan.steps and not self.stopped:
            figures = self.update(loss_of)
            now = time.monotonic()
            if now - logged > LOG_SECONDS or self.step == self.plan.steps:
                self._log(figures, (now - logged) / (self.step - seen))
                logged, seen = now, self.step
            if now - saved > CHECKPOINT_SECONDS:
                self.save()
                saved = time.monotonic()
        self.save()
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), previous, strict=True):
            signal.signal(number, handler)
        return not self.stopped

    def update(self, loss_of: Loss) -> dict[str, Tensor]:
        """One step -> its figures."""
        loss, figures = loss_of(self.step)
        if not loss.isfinite():
            raise FloatingPointError(
                f"{self.plan.name}: the loss of step {self.step} is {loss.item()}; "
                f"{self.path} holds the last good state"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate_at(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        keep = min(1 - 1 / self.plan.ema_steps, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - keep)
        return {"loss": loss.detach(), **figures}

    def _stop(self, *_) -> None:
        self.stopped = True

    def _log(self, figures: dict[str, Tensor], seconds: float) -> None:
        left = time.strftime("%H:%M:%S", time.gmtime(seconds * (self.plan.steps - self.step)))
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in figures.items())
        progress = f"{self.plan.name} {self.step}/{self.plan.steps}"
        logger.info("%s, %s, %.2f s a step, %s left", progress, values, seconds, left)


def generator(name: str, step: int) -> torch.Generator:
    """The randomness of one step, on the CPU whatever trains, so that every machine draws the same."""
    seed = int.from_bytes(name.encode()[:4], "big") * 1_000_003 + step
    return torch.Generator().manual_seed(seed)


def training_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_weights(folder: Path, name: str, state: dict[str, Tensor]) -> None:
    """`folder`/<name>.safetensors in half precision, replaced as a whole. Raises OSError."""
    partial = folder / f"{name}.partial"
    save_file({key: tensor.detach().to("cpu", torch.float16).contiguous() for key, tensor in state.items()}, partial)
    os.replace(partial, folder / f"{name}.safetensors")


def start(arguments: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line with --folder added, and sets up logging and threads."""
    arguments.add_argument("--folder", type=Path, required=True, help="weights, checkpoints and caches")
    arguments.add_argument("--threads", type=int, default=2, help="of the CPU; another number rounds differently")
    options = arguments.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    torch.set_num_threads(options.threads)
    options.folder.mkdir(parents=True, exist_ok=True)
    return options
