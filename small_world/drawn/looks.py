"""Looks of characters: what a caption never says, so that it can only come from a reference picture.

Evaluation never meets training: its combinations of style, hat, glasses and pattern are a part of their own, and its
hues and skin tones come from bands that training leaves out.
"""

import colorsys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

Colour = tuple[int, int, int]

STYLES = {
    "man": ("short", "spiky", "beard"),
    "woman": ("long", "bun", "bob"),
    "cat": ("pointed", "folded", "striped"),
    "dog": ("floppy", "upright", "patch"),
    "rabbit": ("upright", "bent", "lop"),
    "robot": ("antenna", "horns", "dome"),
}
WORDS = tuple(STYLES)
HATS = ("none", "cap", "top hat", "beanie", "crown")
GLASSES = ("none", "round", "sunglasses")
PATTERNS = ("plain", "stripes", "dots", "half")
HUMANS = ("man", "woman")

HELD_OUT_HUES = ((0.035, 0.075), (0.19, 0.23), (0.38, 0.42), (0.535, 0.575), (0.70, 0.74), (0.87, 0.91))
HELD_OUT_TONES = ((0.20, 0.27), (0.47, 0.54), (0.74, 0.81))
EVALUATION_PART = 6

TONES = {
    "human": ((255, 224, 196), (242, 198, 158), (214, 158, 112), (164, 108, 72), (106, 68, 48)),
    "animal": ((250, 246, 238), (238, 200, 140), (216, 134, 62), (146, 94, 60), (150, 150, 160), (74, 72, 82)),
    "robot": ((226, 232, 238), (150, 190, 214), (120, 134, 160), (190, 170, 140), (214, 190, 96), (104, 112, 118)),
}
HAIR_TONES = ((250, 222, 130), (214, 130, 56), (128, 76, 44), (52, 40, 40), (206, 206, 212))


@dataclass(frozen=True)
class Look:
    """One character, colours as RGB in 0..255. `skin` is skin, fur or metal; `accent` is hair, inner ears or lamps."""

    word: str
    style: str
    skin: Colour
    accent: Colour
    hat: str
    hat_colour: Colour
    glasses: str
    pattern: str
    top: Colour
    bottom: Colour

    @property
    def combination(self) -> tuple[str, ...]:
        """What decides whether the character belongs to training or to evaluation."""
        return self.word, self.style, self.hat, self.glasses, self.pattern


def sample_look(random: Random, held_out: bool = False, word: str | None = None) -> Look:
    """A random character, of evaluation if `held_out`, else of training; `word` fixes its class."""
    word = word or random.choice(WORDS)
    while True:
        style, hat, glasses = random.choice(STYLES[word]), _often_none(random, HATS), _often_none(random, GLASSES)
        pattern = random.choice(PATTERNS)
        if is_held_out((word, style, hat, glasses, pattern)) == held_out:
            break
    kind = "human" if word in HUMANS else "robot" if word == "robot" else "animal"
    natural = word in HUMANS and random.random() < 0.6
    accent = _tone(random, HAIR_TONES, held_out) if natural else sample_colour(random, held_out)
    skin = _tone(random, TONES[kind], held_out)
    hat_colour, top, bottom = (sample_colour(random, held_out) for _ in range(3))
    return Look(word, style, skin, accent, hat, hat_colour, glasses, pattern, top, bottom)


def is_held_out(combination: Sequence[str]) -> bool:
    """Whether a combination belongs to evaluation: one in six, by its checksum."""
    return zlib.crc32(" ".join(combination).encode()) % EVALUATION_PART == 0


def sample_colour(random: Random, held_out: bool) -> Colour:
    """Clothes and hats: any hue of the split, bright to deep; in training one in ten is a grey."""
    hue, value = sample_outside(random, HELD_OUT_HUES, held_out), random.uniform(0.5, 1.0)
    saturation = random.uniform(0.6, 1.0)
    if not held_out and random.random() < 0.1:
        saturation, value = 0.0, random.uniform(0.15, 1.0)
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))


def sample_outside(random: Random, bands: Sequence[tuple[float, float]], inside: bool) -> float:
    """Uniform in 0..1 outside of the bands, or in one of them if `inside`."""
    if inside:
        return random.uniform(*random.choice(bands))
    while True:
        value = random.random()
        if not any(low <= value <= high for low, high in bands):
            return value


def _often_none(random: Random, options: Sequence[str]) -> str:
    return options[0] if random.random() < 0.5 else random.choice(options[1:])


def _tone(random: Random, stops: Sequence[Colour], held_out: bool) -> Colour:
    place = sample_outside(random, HELD_OUT_TONES, held_out) * (len(stops) - 1)
    first = min(int(place), len(stops) - 2)
    part = place - first
    return tuple(round(a + (b - a) * part) for a, b in zip(stops[first], stops[first + 1], strict=True))
