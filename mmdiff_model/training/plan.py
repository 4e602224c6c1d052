"""How long and how fast a training goes."""

import math
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True)
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveAmount = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, config=STRICT)
class Plan:
    """Each step takes batch_size x accumulation examples on every process.

    rate: peak learning rate of AdamW, after a linear warm-up and before a cosine down to a fiftieth. ema_steps: time
    constant of the moving average that is saved.
    """

    steps: Positive
    rate: PositiveAmount = 1e-4
    warmup: Count = 500
    decay: Amount = 0.01
    clip_norm: PositiveAmount = 1.0
    ema_steps: Positive = 1000
    batch_size: Positive = 1
    accumulation: Positive = 1
    precision: Precision = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    def autocast(self, device: torch.device) -> torch.autocast:
        """Around what computes in the plan's precision."""
        return torch.autocast(device.type, self.dtype, self.precision != "fp32")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
