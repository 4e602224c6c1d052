"""Routing: which pixels may see which subject.

A subject's weight at a pixel, in 0..1, enters the image branch's softmax (its tokens' scores get its logarithm) and the
largest weight scales the image term. The fused class word carries identity too, so its text attention is kept out of
the other subjects' regions. Weights of one everywhere are the released behaviour (`off`): one softmax over all tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

OFF, MASKS, AUTO = "off", "masks", "auto"
MODES = (OFF, MASKS, AUTO)
BLOCKED = -1e4

Area = tuple[int, int, int, int]


@dataclass(frozen=True)
class Chunk:
    """A conditional part of the batch: its conditioning's number, the area of the latent it covers, its class words.

    words: (acting subject, token position) in the conditioning's `length` tokens.
    """

    conditioning: int
    area: Area | None
    words: tuple[tuple[int, int], ...]
    length: int


@dataclass(frozen=True)
class Routed:
    """Weights of the acting subjects at one resolution, as attention needs them.

    gate (b, h w, 1) scales the image term, image_bias (b, 1, h w, m) and text_bias (b, 1, h w, 77 c) are added to the
    scores; b is 1 or the rows. Without a second subject there is no text_bias.
    """

    gate: Tensor
    image_bias: Tensor
    text_bias: Tensor | None


def route(
    weights: Tensor,
    lengths: Sequence[int],
    words: Sequence[tuple[int, int]],
    length: int,
    keys: int,
    dtype: torch.dtype,
) -> Routed:
    """Weights (b, subjects, h w) -> Routed.

    lengths: tokens of each subject. words: (subject, position) of the class words in a conditioning of `length` tokens,
    which is repeated to `keys` where it runs beside a longer one.
    """
    owners = [subject for subject, length in enumerate(lengths) for _ in range(length)]
    image_bias = log_weight(weights)[:, owners].transpose(1, 2)[:, None]
    text_bias = None
    if weights.shape[1] > 1 and words:
        text_bias = torch.zeros(weights.shape[0], weights.shape[2], length, device=weights.device)
        for subject, position in words:
            others = torch.cat((weights[:, :subject], weights[:, subject + 1 :]), dim=1).amax(dim=1)
            text_bias[..., position] = log_weight(torch.maximum(weights[:, subject], 1 - others))
        text_bias = text_bias.repeat(1, 1, keys // length)[:, None].to(dtype)
    return Routed(weights.amax(dim=1)[..., None].to(dtype), image_bias.to(dtype), text_bias)


def log_weight(weights: Tensor) -> Tensor:
    """Logarithm of weights in 0..1, finite at 0."""
    return weights.log().clamp(min=BLOCKED)


class MaskRouting:
    """Regions given as masks. A subject without one may go wherever no other subject's region is."""

    def __init__(self, regions: Sequence[Tensor | None]):
        given = [region for region in regions if region is not None]
        if not given:
            raise ValueError(
                "routing: 'masks' needs the region of at least one subject. Connect MM-Diff Subject Region, or "
                "choose 'auto' or 'off'."
            )
        size = tuple(max(region.shape[axis] for region in given) for axis in (0, 1))
        given = [None if region is None else resize_region(region, *size) for region in regions]
        rest = 1 - torch.stack([region for region in given if region is not None]).amax(dim=0)
        self.regions = torch.stack([rest if region is None else region for region in given])

    def weights(self, height: int, width: int, area: Area | None, latent: tuple[int, int]) -> Tensor:
        """(1, subjects, height width) for the part of a latent (H, W) that `area` (h, w, y, x) cuts out."""
        regions = self.regions
        if area is not None:
            rows, columns = regions.shape[1] / latent[0], regions.shape[2] / latent[1]
            h, w, y, x = area
            regions = regions[
                :,
                round(y * rows) : max(round((y + h) * rows), round(y * rows) + 1),
                round(x * columns) : max(round((x + w) * columns), round(x * columns) + 1),
            ]
        return nn.functional.interpolate(regions[None], (height, width), mode="area").flatten(2)


def resize_region(region: Tensor, height: int, width: int) -> Tensor:
    """(h, w) -> (height, width) by area means: a border that falls between pixels stays sharp."""
    return nn.functional.interpolate(region[None, None], (height, width), mode="area")[0, 0]
