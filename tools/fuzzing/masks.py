"""Masks and pictures, and regions whose borders are moved and faded."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import strategies as st

from .outcome import RIGHT, Wrong, make_subject
from .values import LARGE

NUMBERS = [0.0, 1.0, 0.5, -1.0, 2.0, math.nan, math.inf, *LARGE]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]
MOST = 1 << 20  # numbers in one array
arrays = st.tuples(
    st.one_of(
        st.lists(st.sampled_from([0, 1, 2, 3, 5, 64]), max_size=5).filter(lambda shape: math.prod(shape) <= MOST),
        st.sampled_from([(6, 4), (1, 6, 4), (2, 6, 4), (1, 6, 4, 3), (2, 5, 5, 4), (1, 1, 1, 1)]),
    ),
    st.sampled_from(DTYPES),
    st.lists(st.one_of(st.sampled_from(NUMBERS), st.floats(0, 1)), min_size=1, max_size=2),
)
sides = st.integers(1, 12)
masks = st.tuples(
    st.tuples(sides, sides),
    st.just(torch.float32),
    st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0]), max_size=30, min_size=1),
)
borders = st.tuples(
    st.one_of(st.integers(-3, 3), st.sampled_from([-1024, -64, 64, 1024])),
    st.one_of(st.integers(0, 3), st.sampled_from([64, 1024])),
)


def array(shape, dtype, values) -> torch.Tensor:
    """Of a shape, the values one after the other, again and again."""
    count = math.prod(shape)
    cycle = torch.tensor(values, dtype=torch.float64)
    return cycle.repeat(count // len(values) + 1)[:count].view(shape).to(dtype)


def shaped(mask: torch.Tensor, expand: int, feather: int) -> torch.Tensor:
    """Mask (h, w) grown and feathered by definition: the largest (below 0 the smallest) number at most so many steps
    away, then the mean of a window, in which the picture's edge goes on."""
    height, width = mask.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    steps = (y.flatten()[:, None] - y.flatten()).abs() + (x.flatten()[:, None] - x.flatten()).abs()
    sign = -1 if expand < 0 else 1
    near = (sign * mask.flatten()).expand(len(steps), -1).masked_fill(steps > abs(expand), -math.inf)
    grown = (sign * near.amax(dim=1)).view(height, width).double()
    return window(height, feather) @ grown @ window(width, feather).T


def window(size: int, pixels: int) -> torch.Tensor:
    """(size, size): how much each place counts in the mean around each."""
    counts = torch.zeros(size, size, dtype=torch.float64)
    for place in range(size):
        near = torch.arange(place - pixels, place + pixels + 1).clamp(0, size - 1)
        counts[place] = torch.bincount(near, minlength=size)
    return counts / (2 * pixels + 1)


class Masks:
    """Masks and pictures of every shape and dtype: finite and in 0..1, or refused; regions grown and feathered as by
    definition, or refused where nothing is left of them."""

    def __init__(self, folder: Path):
        from mm_diff_pack.nodes import images, subjects

        self.images, self.region = images, subjects.MMDiffSubjectRegion.execute
        self.subject = make_subject(4, 2, 8)
        self.cases = st.one_of(
            st.tuples(st.sampled_from(["region", "masks", "photos"]), arrays),
            st.tuples(st.just("border"), st.tuples(masks, borders)),
        )

    def __call__(self, case) -> str:
        kind, values = case
        if kind == "border":
            return self.border(*values)
        given = array(*values)
        if kind == "region":
            found = [self.region(self.subject, 1.0, "", 0.0, 1.0, mask=given).args[0].region]
        elif kind == "masks":
            found = self.images.masks_from(given, [torch.rand(6, 4, 3), torch.rand(5, 5, 3)])
        else:
            found = self.images.photos_from(given)
        for one in found:
            check(one)
        return RIGHT

    def border(self, values, border) -> str:
        """A mask whose border is moved and faded; that of the subject where none is given."""
        mask = array(*values)
        wanted = shaped(mask, *border)
        expand, feather = border
        how = {"expand": expand, "feather": feather}
        try:
            found = [
                self.region(self.subject, 1.0, "", 0.0, 1.0, mask=mask, **how),
                self.region(replace(self.subject, region=mask), 1.0, "", 0.0, 1.0, **how),
            ]
        except ValueError as error:
            if wanted.any() or not mask.any():
                raise Wrong(f"refused a border that is right: {error}") from error
            raise
        for region in (output.args[0].region for output in found):
            check(region)
            if region.shape != mask.shape or not torch.allclose(region.double(), wanted, atol=1e-5):
                raise Wrong(f"{expand}, {feather} gave another mask, {(region - wanted).abs().max():.3} away")
        return RIGHT


def check(found: torch.Tensor) -> None:
    if not (found.isfinite().all() and found.dtype == torch.float32 and 0 <= found.min() <= found.max() <= 1):
        raise Wrong(f"gave {tuple(found.shape)} {found.dtype} beyond 0..1")
