"""Looks as words: a code of a character's look, added to its class word while the base is trained.

SDXL has words for hats, patterns and colours; the captions of the small world have none. With the codes its base learns
all the same to draw what its text says of a look. They are trained along and then thrown away: what is left of them is
a base that listens to more than the class word's own embedding.
"""

import numpy as np
from torch import Tensor, nn

from ..drawn.labels import CHOICES, COLOURS, labels_of
from ..drawn.looks import Look
from ..family.models import TEXT
from ..family.vocabulary import tokenize

TOLD = {name: len(options) for name, options in CHOICES.items() if name != "word"}
LOOK = sum(TOLD.values()) + 3 * len(COLOURS)
HIDDEN = 128


class LookCodes(nn.Module):
    """Looks (..., LOOK) -> codes (..., dim) for the token embeddings of both text encoders; zero before training."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(LOOK, HIDDEN), nn.GELU())
        self.codes = nn.ModuleDict({key: nn.Linear(HIDDEN, sizes["hidden_size"]) for key, sizes in TEXT.items()})
        for code in self.codes.values():
            nn.init.zeros_(code.weight)
            nn.init.zeros_(code.bias)

    def forward(self, looks: Tensor) -> dict[str, Tensor]:
        hidden = self.hidden(looks)
        return {key: code(hidden) for key, code in self.codes.items()}


def look_vector(look: Look) -> np.ndarray:
    """A look as numbers (LOOK,): its choices as one-hot, its colours in -1..1, a hat's only where there is one."""
    labels = dict(zip(CHOICES, labels_of(look), strict=True))
    choices = [np.eye(size, dtype=np.float32)[labels[name]] for name, size in TOLD.items()]
    colours = np.array([getattr(look, name) for name in COLOURS], dtype=np.float32) / 127.5 - 1
    if look.hat == "none":
        colours[COLOURS.index("hat_colour")] = 0
    return np.concatenate([*choices, colours.ravel()])


def add_at(positions: Tensor, codes: Tensor, length: int) -> Tensor:
    """codes (b, s, dim) at positions (b, s), those below 0 left out -> (b, length, dim), zero elsewhere."""
    added = codes.new_zeros(len(codes), length, codes.shape[2])
    kept = codes * (positions >= 0)[..., None]
    return added.scatter_add(1, positions.clamp(min=0)[..., None].expand_as(kept), kept)


def word_tokens(words: tuple[str, ...]) -> dict[str, int]:
    """The token id of each class word."""
    return {word: int(row[1]) for word, row in zip(words, tokenize(list(words))["l"], strict=True)}
