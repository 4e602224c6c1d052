"""Routing: which pixels may see which subject.

A subject's weight at a pixel, in 0..1, enters the image branch's softmax (its tokens' scores get its logarithm) and the
largest weight scales the image term. The fused class word carries identity too, so its text attention is kept out of
the other subjects' regions. Weights of one everywhere are the released behaviour (`off`): one softmax over all tokens.
"""

from collections.abc import Sequence

from torch import Tensor

from .auto import Auto
from .masks import Masks
from .weights import Part, Routed, Routing, log_weight, route

OFF, MASKS, AUTO = "off", "masks", "auto"
MODES = (OFF, MASKS, AUTO)

__all__ = [
    "AUTO",
    "MASKS",
    "MODES",
    "OFF",
    "Auto",
    "Masks",
    "Part",
    "Routed",
    "Routing",
    "check",
    "log_weight",
    "make",
    "route",
]


def check(mode: str, regions: Sequence[Tensor | None]) -> None:
    """Raises ValueError where `masks` has no region to go by."""
    if mode == MASKS and all(region is None for region in regions):
        raise ValueError(
            "routing: 'masks' needs the region of at least one subject. Connect MM-Diff Subject Region, or choose "
            "'auto' or 'off'."
        )


def make(mode: str, regions: Sequence[Tensor | None], latent: tuple[int, int], blocks: Sequence) -> Routing:
    """The routing of a run with subjects of those regions on a latent (H, W); `auto` reads attentions at `blocks`."""
    return {OFF: Routing, MASKS: lambda: Masks(regions, latent), AUTO: lambda: Auto(blocks)}[mode]()
