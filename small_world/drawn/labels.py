"""Looks as labels: the options of every choice, numbered, and the names of the colours."""

from .looks import GLASSES, HATS, PATTERNS, STYLES, WORDS, Look

STYLED = tuple((word, style) for word in WORDS for style in STYLES[word])
CHOICES = {"word": WORDS, "style": STYLED, "hat": HATS, "glasses": GLASSES, "pattern": PATTERNS}
COLOURS = ("skin", "accent", "top", "bottom", "hat_colour")


def labels_of(look: Look) -> list[int]:
    """The number of each choice, in CHOICES' order."""
    values = look.word, (look.word, look.style), look.hat, look.glasses, look.pattern
    return [options.index(value) for options, value in zip(CHOICES.values(), values, strict=True)]
