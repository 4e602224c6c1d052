"""The training loop: AdamW, warm-up and cosine, accumulation, scaled losses, EMA, several processes.

Step k is a function of the state after step k - 1 and of k alone, so a run that was killed ends as if it had never
stopped. A step's gradient is the mean over its micro-batches on all processes.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from .plan import Plan
from .processes import Processes
from .state import State

BETAS = 0.9, 0.99
LOWEST_SCALE = 1.0  # of fp16's losses: below it, it is not the scale that makes gradients overflow

Figures = dict[str, float]
Stop = Callable[[], bool]
After = Callable[[int, Figures], None]


def never() -> bool:
    """Not to be stopped."""
    return False


def ignore(step: int, figures: Figures) -> None:
    """Nothing to do after a step."""


class LossError(FloatingPointError):
    """A loss or gradient that is not finite: the step, and what it was computed from."""


@dataclass(frozen=True)
class Micro:
    """What a micro-batch gives: its loss, figures to log, names of its examples."""

    loss: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)


Compute = Callable[[int], Micro]


class Called(nn.Module):
    """`compute` as the forward pass of what it trains, which is where several processes prepare for a backward pass."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, compute: Compute, number: int) -> Micro:
        return compute(number)


class Loop:
    """Trains what of a module has gradients; `state` keeps everything that a resumed run needs."""

    def __init__(self, plan: Plan, module: nn.Module, state: State, processes: Processes):
        self.plan, self.module, self.processes = plan, module.train(), processes
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(self.weights.values(), betas=BETAS, weight_decay=plan.decay, fused=True)
        self.called, self.optimizer = processes.prepare(Called(self.module), optimizer, plan.accumulation)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=plan.precision == "fp16")
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.step = 0
        self.state = state
        state.load(processes.device, self.restore)

    def run(self, compute: Compute, save_seconds: float, stop: Stop = never, after: After = ignore) -> bool:
        """Trains up to the plan's steps; False where `stop` ended it on any process. Both ways the state is saved.

        compute(n) -> micro-batch n of this process; it chooses what runs in the plan's precision.
        after(step, figures) is called after every step. Raises LossError, and OSError where the state cannot be kept;
        what was saved before stays.
        """
        saved = time.monotonic()
        stopped = False
        while self.step < self.plan.steps and not stopped:
            figures, stopped = self.update(compute, stop())
            after(self.step, figures)
            if time.monotonic() - saved > save_seconds:
                self.save()
                saved = time.monotonic()
        self.save()
        return not stopped

    def update(self, compute: Compute, stop: bool = False) -> tuple[Figures, bool]:
        """One step -> its figures, and whether any process wants to stop."""
        for group in self.optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.plan.rate_at(self.step), self.plan.decay
        self.optimizer.zero_grad(set_to_none=False)
        first = self.step * self.plan.accumulation
        micros = [self.backward(compute, number) for number in range(first, first + self.plan.accumulation)]
        for weight in self.weights.values():  # what no process reached decays as what one did
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        loss = torch.stack([micro.loss for micro in micros]).mean()
        parts = {name: torch.stack([micro.figures[name] for micro in micros]).mean() for name in micros[0].figures}
        loss, stops, *means = self.processes.mean(torch.stack([loss, loss.new_tensor(stop), *parts.values()]))
        self.scaler.unscale_(self.optimizer)
        norm = self.processes.clip(self.weights.values(), self.plan.clip_norm)
        self.check(loss, norm, micros)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        self.follow()
        told = dict(zip(parts, map(float, means), strict=True))
        rate = self.optimizer.param_groups[0]["lr"]
        return {"loss": float(loss), **told, "gradient": float(norm), "rate": rate}, bool(stops > 0)

    def backward(self, compute: Compute, number: int) -> Micro:
        """Adds a micro-batch's share to the gradients."""
        with self.processes.accumulate(self.called):
            micro = self.called(compute, number)
            self.processes.backward(self.scaler.scale(micro.loss))
        return Micro(micro.loss.detach().float(), micro.figures, micro.names)

    def check(self, loss: Tensor, norm: Tensor, micros: list[Micro]) -> None:
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > LOWEST_SCALE
        if loss.isfinite() and (norm.isfinite() or overflow):
            return
        what = f"the loss is {loss.item()}" if not loss.isfinite() else f"the gradient's norm is {norm.item()}"
        batches = self.processes.gather([(bool(micro.loss.isfinite()), micro.names) for micro in micros])
        bad = [names for finite, names in batches if not finite] or [names for _, names in batches]
        path = self.state.path
        kept = f"{path} holds the last good state" if path.is_file() else "nothing has been saved yet"
        raise LossError(
            f"step {self.step}: {what}, batch: {', '.join(chain(*bad))}. Training has stopped; {kept}. "
            "Look at these examples, or run it again with a lower plan.rate or another plan.precision."
        )

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the average towards the weights, faster in the beginning."""
        keep = min(1 - 1 / self.plan.ema_steps, self.step / (self.step + 10))
        torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), 1 - keep)

    def save(self) -> None:
        """Raises OSError."""
        if self.processes.rank == 0:
            self.state.save(
                {
                    "module": self.module.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "average": self.average,
                    "step": self.step,
                }
            )

    def restore(self, saved: dict) -> None:
        self.module.load_state_dict(saved["module"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"]:  # of a training in fp16, which may go on in another precision and the other way round
            self.scaler.load_state_dict(saved["scaler"])
        for name, average in self.average.items():
            average.copy_(saved["average"][name])
        self.step = saved["step"]
