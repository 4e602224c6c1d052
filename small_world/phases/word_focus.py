"""Class words that find their characters: a balance on their attention maps while the base is trained.

SDXL's attention to a word lies where the word's thing is. A base this small spreads a caption over all of its tokens,
the padding too, and nothing that is said of a class word would reach its character alone.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mmdiff_model.training.constraint import balance, word_maps
from mmdiff_model.training.encoders import TOKENS, attend_by_products


class WordFocus:
    """Attention for one forward pass that reads how far the class words' maps lie in their characters.

    positions (b, s) of the class words, below 0 where there is none; masks (b, s, h, w) in 0..1 of the characters.
    """

    def __init__(self, positions: Tensor, masks: Tensor):
        self.positions, self.masks, self.terms = positions, masks, []

    def __call__(self, attention: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args, **options) -> Tensor:
        if k.shape[1] == TOKENS:
            side = math.isqrt(q.shape[1])
            masks = nn.functional.interpolate(self.masks, (side, side), mode="area").flatten(2)
            maps = word_maps(q, k, heads, self.positions.clamp(min=0))
            self.terms.append(balance(maps, masks, self.positions >= 0))
        return attend_by_products(attention, q, k, v, heads, *args, **options)

    def balance(self) -> Tensor:
        """FastComposer's balance, mean over the cross-attentions, in -1..1."""
        return torch.stack(self.terms).mean()
