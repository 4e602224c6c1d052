"""The attention of training is that of sampling: one Step whose rows are the examples of the batch."""

from torch import Tensor

from ..sampling.attention import Attention
from ..sampling.routing import Part, Routing
from ..sampling.rows import UNKNOWN, Call
from ..sampling.step import Step
from .constraint import AttentionConstraint


class Present(Routing):
    """Every row has subjects of its own: present (b, s) says whose image branch acts. The constraint reads along."""

    name = "training"

    def __init__(self, present: Tensor, constraint: AttentionConstraint | None):
        self.present, self.constraint = present, constraint

    def read(self, attention: Attention, part: Part) -> bool:
        if self.constraint is not None:
            self.constraint.read(attention, self.present)
        return False

    def weights(self, part: Part, size: tuple[int, int]) -> Tensor:
        return self.present.float()[..., None]


def training_step(
    present: Tensor, tokens: int, latent: tuple[int, int], constraint: AttentionConstraint | None
) -> Step:
    """present (b, s): the subjects of every row whose image branch acts, with `tokens` tokens each."""
    rows, subjects = present.shape
    part = Part(slice(0, rows), tuple(range(subjects)))
    routing = Present(present, constraint)
    call = Call(size=latent, indices=(), rows=(UNKNOWN,) * rows)
    return Step(call, frozenset(part.subjects), (tokens,) * subjects, latent, routing, parts=[part])
