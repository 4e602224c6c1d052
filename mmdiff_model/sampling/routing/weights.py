"""What a way of routing is, and its weights as attention needs them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention import Attention
from ..conditionings import Area

BLOCKED = -1e4


class Part(NamedTuple):
    """Consecutive rows of a batch that are treated alike.

    subjects: those that act in them, none where unconditional; words: whose each class word is (an index into
    `subjects`), at `positions` (words) in a text of `period` keys; conditioning: its number in the run; place: the area
    of the latent that they see, pictures: their numbers in the run's batch, both None where unknown; whole: they see
    all of the picture.
    """

    rows: slice
    subjects: tuple[int, ...]
    words: tuple[int, ...] = ()
    positions: Tensor | None = None
    period: int = 1
    conditioning: int = 0
    place: Area | None = None
    pictures: tuple[int, ...] | None = None
    whole: bool = False


class Routing:
    """A way of routing in one run; what is written here is `off`: every subject may go everywhere."""

    apart = False  # whether rows of different conditionings may be routed differently
    name = "off"

    def lacks(self, part: Part) -> str | None:
        """What is not known of the rows, in words; then they are routed as `off` is."""
        return None

    def read(self, attention: Attention, part: Part) -> bool:
        """Looks at an attention before it is routed. True where weights given before do not hold any more."""
        return False

    def weights(self, part: Part, size: tuple[int, int]) -> Tensor | None:
        """(b, subjects, h w) in 0..1 of the part's subjects at (h, w), b and h w possibly 1; None for one everywhere.

        The part lacks nothing.
        """
        return None

    def trace(self, part: Part) -> Hashable:
        """What a trace of the part's attentions depends on, beside rows, subjects and tensors."""
        return None

    def decided(self, batch: int, subjects: int) -> Tensor | None:
        """What it decided in the run, for the preview: (b, subjects, h, w) on the CPU."""
        return None


@dataclass(frozen=True, eq=False)
class Routed:
    """Weights of the acting subjects at one resolution, as attention needs them.

    gate (b, h w, 1) scales the image term, image_bias (b, 1, h w, m) and text_bias (b, 1, h w, keys) are added to the
    scores; b is 1 or the rows. Without a second subject there is no text_bias. A subject without tokens is in the text
    alone.
    """

    gate: Tensor
    image_bias: Tensor
    text_bias: Tensor | None


def route(weights: Tensor, lengths: Sequence[int], part: Part, keys: int, dtype: torch.dtype) -> Routed:
    """Weights (b, subjects, h w) -> Routed. lengths: tokens of each subject; keys: those of the text.

    A text is repeated where it runs beside a longer one. Where keys are no multiple of its period they are not its
    own, and the class words are left alone.
    """
    owners = [subject for subject, length in enumerate(lengths) for _ in range(length)]
    image_bias = log_weight(weights)[:, owners].transpose(1, 2)[:, None]
    text_bias = None
    if weights.shape[1] > 1 and part.words and keys % part.period == 0:
        text_bias = torch.zeros(weights.shape[0], weights.shape[2], part.period, device=weights.device)
        allowed = log_weight(torch.stack([own_region(weights, subject) for subject in part.words], dim=-1))
        text_bias = text_bias.index_copy(-1, part.positions, allowed)
        text_bias = text_bias.repeat(1, 1, keys // part.period)[:, None].to(dtype)
    present = [subject for subject, length in enumerate(lengths) if length] or [0]
    return Routed(weights[:, present].amax(dim=1)[..., None].to(dtype), image_bias.to(dtype), text_bias)


def own_region(weights: Tensor, subject: int) -> Tensor:
    """Where a subject's class word is seen, (b, h w): in its own region and in nobody's."""
    others = torch.cat((weights[:, :subject], weights[:, subject + 1 :]), dim=1).amax(dim=1)
    return torch.maximum(weights[:, subject], 1 - others)


def log_weight(weights: Tensor) -> Tensor:
    """Logarithm of weights in 0..1, finite at 0."""
    return weights.log().clamp(min=BLOCKED)
