"""Regions given as masks."""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, nn

from .weights import Part, Routing


class Masks(Routing):
    """Regions of a latent (H, W), one for each subject, in the resolution of the finest, the latent's at least.

    A subject without one may go wherever no other subject's region is.
    """

    apart, name = True, "masks"

    def __init__(self, regions: Sequence[Tensor | None], latent: tuple[int, int]):
        given = [region for region in regions if region is not None]
        size = tuple(max(latent[axis], *(region.shape[axis] for region in given)) for axis in (0, 1))
        given = [None if region is None else resize_region(region, *size) for region in regions]
        rest = 1 - torch.stack([region for region in given if region is not None]).amax(dim=0)
        self.regions = torch.stack([rest if region is None else region for region in given])
        self.scale = [pixels / latents for pixels, latents in zip(size, latent, strict=True)]

    def lacks(self, part: Part) -> str | None:
        return None if part.place is not None else "where in the picture they are"

    def weights(self, part: Part, size: tuple[int, int]) -> Tensor:
        h, w, y, x = part.place
        rows = cut_out(y, y + h, self.scale[0], self.regions.shape[1])
        columns = cut_out(x, x + w, self.scale[1], self.regions.shape[2])
        regions = self.regions[list(part.subjects), rows, columns]
        return nn.functional.interpolate(regions[None], size, mode="area").flatten(2)

    def trace(self, part: Part) -> Hashable:
        return part.words, part.period, part.place, self.regions.shape

    def decided(self, batch: int, subjects: int) -> Tensor:
        return self.regions[None]


def cut_out(start: int, stop: int, scale: float, size: int) -> slice:
    """The pixels of a mask side of `size` that show latents start to stop, one at least."""
    first = min(round(start * scale), size - 1)
    return slice(first, max(round(stop * scale), first + 1))


def resize_region(region: Tensor, height: int, width: int) -> Tensor:
    """(h, w) -> (height, width) by area means: a border that falls between pixels stays sharp."""
    return nn.functional.interpolate(region[None, None], (height, width), mode="area")[0, 0]
