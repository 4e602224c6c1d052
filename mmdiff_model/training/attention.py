"""The attention of training is that of sampling: one Step whose rows are the examples of the batch."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..sampling.projection import BlockKey
from ..sampling.routing import BLOCKED, Chunk, Routed
from ..sampling.step import Step
from .constraint import AttentionConstraint


@dataclass(frozen=True)
class TrainingStep(Step):
    """Every row is conditional, with subjects of its own; `rows` says which of them act. The constraint reads along."""

    rows: Routed = field(kw_only=True)
    constraint: AttentionConstraint | None = field(kw_only=True)

    def attend(
        self,
        block: BlockKey,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        image: tuple[Tensor, Tensor],
        previous: Callable | None,
        extra_options: dict,
    ) -> Tensor:
        if self.constraint is not None:
            self.constraint.read(block, q, k, image[0], self.rows.image_bias, extra_options)
        return super().attend(block, q, k, v, image, previous, extra_options)

    def route(self, block: BlockKey, q: Tensor, k: Tensor, chunk: Chunk, extra_options: dict) -> Routed:
        return Routed(self.rows.gate.to(q), self.rows.image_bias.to(q), None)


def training_step(
    present: Tensor, tokens: int, latent: tuple[int, int], constraint: AttentionConstraint | None
) -> TrainingStep:
    """present (b, s): the subjects of every row whose image branch acts, with `tokens` tokens each."""
    absent = torch.zeros(present.shape, device=present.device).masked_fill(~present, BLOCKED)
    bias = absent.repeat_interleave(tokens, dim=1)[:, None, None]
    gate = present.any(dim=1)[:, None, None].float()
    subjects = tuple(range(present.shape[1]))
    chunk = Chunk(0, None, (), 0)
    return TrainingStep(
        chunks=[chunk],
        by_index={},
        subjects=subjects,
        lengths=(tokens,) * len(subjects),
        keys=None,
        latent=latent,
        masks=None,
        maps=None,
        rows=Routed(gate, bias, None),
        constraint=constraint,
    )
