"""How long and how fast a training goes."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch

Positive = Annotated[int, "at least 1"]
Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Plan:
    """Each step takes batch_size x accumulation examples on every process.

    rate: peak learning rate of AdamW, after a linear warm-up and before a cosine down to a fiftieth. ema_steps: time
    constant of the moving average that is saved.
    """

    steps: Positive
    rate: float = 1e-4
    warmup: int = 500
    decay: float = 0.01
    clip_norm: float = 1.0
    ema_steps: Positive = 1000
    batch_size: Positive = 1
    accumulation: Positive = 1
    precision: Precision = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
