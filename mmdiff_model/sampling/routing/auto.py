"""Regions without a layout: read while sampling from the class words' own cross-attention.

These are the maps that MM-Diff's training constraint shapes. They are read at the deepest level's attentions, smoothed
over layers and steps, and turned into weights that fall back towards one (`off`) wherever a map is diffuse or subjects
overlap.
"""

from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ..projection import BlockKey
from . import Chunk

KEEP = 0.8
SHARPNESS = 4.0


class AttentionMaps:
    """A run's maps: class word attention (b, subjects, h, w) of each conditional part of the batch."""

    def __init__(self, blocks: Iterable[BlockKey]):
        self.blocks = frozenset(blocks)
        self.maps: dict[object, Tensor] = {}

    def readable(self, chunk: Chunk, subjects: int) -> bool:
        """Maps are read of a whole picture with at least two subjects, each with a class word."""
        return subjects > 1 and chunk.area is None and len({subject for subject, _ in chunk.words}) == subjects

    def read(self, chunk: Chunk, q: Tensor, k: Tensor, heads: int, size: tuple[int, int]) -> None:
        """Adds one layer's attention of q (b, h w, width) to the class words among k (b, 77 c, width)."""
        seen = smooth(rearrange(word_attention(q, k, heads, chunk.words), "b s (h w) -> b s h w", h=size[0]))
        before = self.maps.get(chunk)
        if before is not None and before.shape == seen.shape:
            seen = torch.lerp(seen, before, KEEP)
        self.maps[chunk] = seen

    def weights(self, chunk: Chunk, size: tuple[int, int]) -> Tensor | None:
        """(b, subjects, h w) at another resolution, or None before anything was read."""
        maps = self.maps.get(chunk)
        if maps is None:
            return None
        return separate(nn.functional.interpolate(maps, size, mode="bilinear").flatten(2))


def reading_blocks(widths: dict[BlockKey, int]) -> list[BlockKey]:
    """The last attention of each deepest-level block outside the middle: 5 in SDXL."""
    deepest = max(widths.values())
    last = {
        (kind, number): (kind, number, index)
        for kind, number, index in sorted(widths)
        if widths[kind, number, index] == deepest and kind != "middle"
    }
    return list(last.values())


def word_attention(q: Tensor, k: Tensor, heads: int, words: Sequence[tuple[int, int]]) -> Tensor:
    """Attention to each subject's class words (subject, position), mean over words and heads: (b, subjects, h w)."""
    q, k = (rearrange(x.float(), "b n (h d) -> b h n d", h=heads) for x in (q, k))
    attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)
    positions = {subject: [position for owner, position in words if owner == subject] for subject, _ in sorted(words)}
    return torch.stack([attention[..., found].mean(dim=-1) for found in positions.values()], dim=1)


def smooth(maps: Tensor) -> Tensor:
    """3 x 3 mean of maps (b, s, h, w), so that single pixels do not decide."""
    return nn.functional.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)


def separate(maps: Tensor) -> Tensor:
    """Attention (b, subjects, h w) -> weights in 0..1 of the same shape.

    A subject loses a pixel as far as another one is strong there (near its own peak), peaked (its map has contrast) and
    ahead of it (a larger share of the attention). A flat map takes nothing from anybody.
    """
    peak = maps.amax(dim=-1, keepdim=True)
    presence = maps / peak
    contrast = 1 - maps.mean(dim=-1, keepdim=True) / peak
    share = presence / presence.sum(dim=1, keepdim=True)
    ahead = (share[:, :, None] - share[:, None, :]).clamp(min=0)
    taken = (SHARPNESS * (presence * contrast)[:, :, None] * ahead).clamp(max=1)
    return 1 - taken.amax(dim=1)
