"""Token embeddings for the words of the world alone: every other token of CLIP's 49,408 shares one row.

A compact table has row 0 for all other tokens and one row for each token that captions can hold.
"""

from functools import cache

import torch
from comfy.sdxl_clip import SDXLTokenizer
from torch import Tensor

from ..drawn.backgrounds import PLACES
from ..drawn.captions import OPENINGS
from ..drawn.looks import WORDS
from ..drawn.poses import ACTIONS

TOKENS = 49408
START, END, PAD_G = 49406, 49407, 0
EXTRA = "and at night, ."


@cache
def known_tokens() -> tuple[int, ...]:
    """The token ids with rows of their own, sorted."""
    text = " ".join((*WORDS, *PLACES, *ACTIONS, *OPENINGS, EXTRA))
    ids = {token for token, _ in tokenizer().clip_l.tokenize_with_weights(text)[0]}
    return tuple(sorted(ids | {START, END, PAD_G}))


@cache
def rows_of_tokens() -> Tensor:
    """(49408,) row of each token in a compact table."""
    rows = torch.zeros(TOKENS, dtype=torch.long)
    rows[list(known_tokens())] = torch.arange(1, len(known_tokens()) + 1)
    return rows


@cache
def tokenizer() -> SDXLTokenizer:
    """The host's own; making one takes a tenth of a second."""
    return SDXLTokenizer()


def expand(table: Tensor) -> Tensor:
    """A compact table (1 + known, dim) -> CLIP's (49408, dim)."""
    return table[rows_of_tokens()]


def tokenize(captions: list[str]) -> dict[str, Tensor]:
    """Token ids (captions, 77) of the first chunk for "l" and "g", by the host's own tokeniser."""
    chunks = [tokenizer().tokenize_with_weights(caption) for caption in captions]
    return {key: torch.tensor([[token for token, _ in chunk[key][0]] for chunk in chunks]) for key in ("l", "g")}
