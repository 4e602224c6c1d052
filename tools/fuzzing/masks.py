"""Masks and pictures."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from hypothesis import strategies as st

from .outcome import RIGHT, Wrong, make_subject

NUMBERS = [0.0, 1.0, 0.5, -1.0, 2.0, 1e30, math.nan, math.inf]
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


def array(shape, dtype, values) -> torch.Tensor:
    made = torch.full(shape, values[0], dtype=torch.float64)
    if made.numel() and len(values) > 1:
        made.view(-1)[-1] = values[1]
    return made.to(dtype)


class Masks:
    """Masks and pictures of every shape and dtype: finite and in 0..1, or refused."""

    def __init__(self, folder: Path):
        from mm_diff_pack.nodes import images, subjects

        self.images, self.region = images, subjects.MMDiffSubjectRegion.execute
        self.subject = make_subject(4, 2, 8)
        self.cases = st.tuples(st.sampled_from(["region", "masks", "photos"]), arrays)

    def __call__(self, case) -> str:
        kind, values = case
        given = array(*values)
        if kind == "region":
            found = [self.region(self.subject, 1.0, "", 0.0, 1.0, mask=given).args[0].region]
        elif kind == "masks":
            found = self.images.masks_from(given, [torch.rand(6, 4, 3), torch.rand(5, 5, 3)])
        else:
            found = self.images.photos_from(given)
        for one in found:
            if not (one.isfinite().all() and one.dtype == torch.float32 and 0 <= one.min() <= one.max() <= 1):
                raise Wrong(f"gave {tuple(one.shape)} {one.dtype} beyond 0..1")
        return RIGHT
