"""Regions without a layout: read while sampling from the class words' own cross-attention.

These are the maps that MM-Diff's training constraint shapes. They are read at the deepest level's attentions, smoothed
over layers and steps, and turned into weights that fall back towards one (`off`) wherever a map is diffuse or subjects
overlap.
"""

from collections.abc import Hashable, Iterable, Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Attention, attention_maps
from ..projection import BlockKey
from .weights import Part, Routing

KEEP = 0.8
SHARPNESS = 4.0


class Auto(Routing):
    """A run's maps: class word attention (b, subjects, h w) of every conditioning and window of pictures."""

    apart, name = True, "auto"

    def __init__(self, blocks: Iterable[BlockKey]):
        self.blocks = frozenset(blocks)
        self.maps: dict[Hashable, Tensor] = {}

    def lacks(self, part: Part) -> str | None:
        if len(part.subjects) < 2 or (part.whole and part.pictures is not None):
            return None
        return "which of the batch's whole pictures they are"

    def readable(self, part: Part) -> bool:
        """Maps are read of whole known pictures with at least two subjects, each with a class word."""
        return len(part.subjects) > 1 and len(set(part.words)) == len(part.subjects) and self.lacks(part) is None

    def read(self, attention: Attention, part: Part) -> bool:
        """Adds one layer's attention to the class words."""
        if attention.block not in self.blocks or not self.readable(part):
            return False
        q, k = attention.q[part.rows], attention.k[part.rows]
        seen = word_attention(q, k, attention.heads, part.words, part.positions)
        seen = smooth(rearrange(seen, "b s (h w) -> b s h w", h=attention.size[0]))
        before = self.maps.get(key(part))
        if before is not None and before.shape == seen.shape:
            seen = torch.lerp(seen, before.to(seen.device), KEEP)
        self.maps[key(part)] = seen
        return True

    def weights(self, part: Part, size: tuple[int, int]) -> Tensor | None:
        maps = self.maps.get(key(part))
        if maps is None:
            return None
        return separate(nn.functional.interpolate(maps, size, mode="bilinear").flatten(2))

    def trace(self, part: Part) -> Hashable:
        return part.words, part.period, part.place, key(part), tuple(self.maps)

    def decided(self, batch: int, subjects: int) -> Tensor | None:
        """The last weights of each picture and subject; nothing where a subject was never read."""
        if not self.maps:
            return None
        size = next(reversed(self.maps.values())).shape[2:]
        record = torch.zeros(batch, subjects, *size)
        for (_, acting, pictures), maps in self.maps.items():
            if maps.shape[2:] == size:
                weights = separate(maps.flatten(2)).view_as(maps).cpu()
                for number, subject in enumerate(acting):
                    record[list(pictures), subject] = weights[:, number]
        return record


def key(part: Part) -> Hashable:
    return part.conditioning, part.subjects, part.pictures


def reading_blocks(widths: dict[BlockKey, int]) -> list[BlockKey]:
    """The last attention of each deepest-level block outside the middle: 5 in SDXL."""
    deepest = max(widths.values())
    last = {
        (kind, number): (kind, number, index)
        for kind, number, index in sorted(widths)
        if widths[kind, number, index] == deepest and kind != "middle"
    }
    return list(last.values())


def word_attention(q: Tensor, k: Tensor, heads: int, words: Sequence[int], positions: Tensor) -> Tensor:
    """Attention to each subject's class words, mean over words and heads: (b, subjects, h w).

    words: the subject of each; positions (words) among the keys.
    """
    attention = attention_maps(q, k, heads)[..., positions]
    own = [[i for i, owner in enumerate(words) if owner == subject] for subject in sorted(set(words))]
    return torch.stack([attention[..., found].mean(dim=-1) for found in own], dim=1)


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
