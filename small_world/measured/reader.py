"""The reader: a small network that says what a picture of the world shows, for the evaluation to compare.

A convolutional trunk runs over the whole picture. Each character is read from a window of its features, each attribute
by attention of its own over the window; place and time of day are read from all of it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..drawn.backgrounds import PLACES
from ..drawn.labels import CHOICES, COLOURS, STYLED
from ..drawn.looks import STYLES, Look
from ..drawn.poses import ACTIONS
from ..drawn.scenes import Content
from ..family.pixels import to_pixels

READER = "reader"
WIDTHS, BLOCKS, QUERIES = (16, 32, 64), 2, 2
GRID, WINDOW = 16, 10  # features a side of a picture, and columns of a character's window
STARTS = {1: (3,), 2: (0, 6)}  # first columns of the windows of one character and of two
CHARACTER = {**{name: len(options) for name, options in CHOICES.items()}, "action": len(ACTIONS)}
SCENE = {"place": len(PLACES), "night": 2}
READ_BATCH = 32


class Block(nn.Module):
    """A residual block: a depthwise convolution, then a perceptron at each place."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 2 * width, 1),
            nn.SiLU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class AttentionHeads(nn.Module):
    """Linear readings, each of the features (b, dim, h, w) that its own queries attend to, by content and by place."""

    def __init__(self, dim: int, height: int, width: int, sizes: dict[str, int]):
        super().__init__()
        self.queries = nn.Conv2d(dim, QUERIES * len(sizes), 1, bias=False)
        self.places = nn.Parameter(torch.zeros(QUERIES * len(sizes), height, width))
        self.heads = nn.ModuleDict({name: nn.Linear(QUERIES * dim, size) for name, size in sizes.items()})

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        attention = (self.queries(features) + self.places).flatten(2).softmax(dim=2)
        pooled = attention @ features.flatten(2).transpose(1, 2)
        parts = pooled.unflatten(1, (len(self.heads), QUERIES)).flatten(2).unbind(1)
        return {name: head(part) for (name, head), part in zip(self.heads.items(), parts, strict=True)}


class Reader(nn.Module):
    """Reads pictures of 128 x 128."""

    def __init__(self):
        super().__init__()
        layers, inputs = [], 3
        for width in WIDTHS:
            layers += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
            inputs = width
        self.trunk = nn.Sequential(*layers, *(Block(inputs) for _ in range(BLOCKS)), nn.GroupNorm(8, inputs))
        self.character = AttentionHeads(inputs, GRID, WINDOW, {**CHARACTER, **dict.fromkeys(COLOURS, 3)})
        self.scene = AttentionHeads(inputs, GRID, GRID, SCENE)

    def forward(self, pixels: Tensor, characters: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """pixels (b, 3, 128, 128) in -1..1, and how many characters each picture has: n in all.

        -> of the characters, picture by picture and from left to right, logits of each choice (n, options) and colours
        (n, 3) in 0..1; of the scenes, logits (b, options).
        """
        features = self.trunk(pixels)
        windows = [
            feature[:, :, start : start + WINDOW]
            for feature, count in zip(features.unbind(), characters, strict=True)
            for start in STARTS[count]
        ]
        return self.character(torch.stack(windows)), self.scene(features)

    @torch.no_grad()
    def read(self, pictures: np.ndarray, characters: int) -> list[Content]:
        """Pictures (n, 128, 128, 3) uint8 with that many characters each -> what they show."""
        contents = []
        for first in range(0, len(pictures), READ_BATCH):
            pixels = to_pixels(pictures[first : first + READ_BATCH])
            seen, scenes = self(pixels, [characters] * len(pixels))
            contents += to_contents(seen, scenes, characters)
        return contents


def to_contents(seen: dict[str, Tensor], scenes: dict[str, Tensor], characters: int) -> list[Content]:
    """The likeliest choice of each, a style among those of the word that was read."""
    choices = {name: seen[name].argmax(dim=1).tolist() for name in CHARACTER}
    colours = {name: (seen[name].clamp(0, 1) * 255).round().int().tolist() for name in COLOURS}
    looks, actions = [], [ACTIONS[number] for number in choices["action"]]
    for number in range(len(actions)):
        options = {name: CHOICES[name][choices[name][number]] for name in ("word", "hat", "glasses", "pattern")}
        style = likeliest_style(options["word"], seen["style"][number])
        looks.append(Look(style=style, **options, **{name: tuple(colours[name][number]) for name in COLOURS}))
    contents = []
    for number, (place, night) in enumerate(zip(*(scenes[name].argmax(dim=1).tolist() for name in SCENE), strict=True)):
        own = slice(number * characters, (number + 1) * characters)
        contents.append(Content(tuple(looks[own]), tuple(actions[own]), tuple(PLACES)[place], bool(night)))
    return contents


def likeliest_style(word: str, logits: Tensor) -> str:
    return max(STYLES[word], key=lambda style: logits[STYLED.index((word, style))].item())


def labels_of_contents(contents: Sequence[Content]) -> dict[str, Tensor]:
    """What the heads should say of contents whose characters stand from left to right."""
    looks = [look for content in contents for look in content.looks]
    actions = [action for content in contents for action in content.actions]
    options = {name: [getattr(look, name) for look in looks] for name in CHOICES if name != "style"}
    options["style"] = [(look.word, look.style) for look in looks]
    labels = {name: torch.tensor([CHOICES[name].index(value) for value in options[name]]) for name in CHOICES}
    labels["action"] = torch.tensor([ACTIONS.index(action) for action in actions])
    labels["place"] = torch.tensor([tuple(PLACES).index(content.place) for content in contents])
    labels["night"] = torch.tensor([int(content.night) for content in contents])
    return {**labels, **{name: torch.tensor([getattr(look, name) for look in looks]) / 255 for name in COLOURS}}


def load_reader(weights: Path) -> Reader:
    """The trained reader, from a folder of weights. Raises FileNotFoundError."""
    reader = Reader()
    reader.load_state_dict(load_file(weights / f"{READER}.safetensors"))
    return reader.eval()
