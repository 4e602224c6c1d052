"""What counts as right: the content of a picture, as it was asked for, against the content that was read.

A choice (style, hat, glasses, pattern) is kept if it is the same; a style belongs to a class word, so that needs the
word too. A colour is kept if it lies within a distance in CIELAB: 25, at which two random clothes colours agree by
chance in 6% of training's pairs and in 11% of the evaluation's; 15 for skin, fur and metal, whose tones lie closer
together (at 25 two humans of the evaluation agree in 80%). A hat's colour counts where there is to be a hat, and is
kept only on a hat; style and accent, which a hat covers, count where there is to be none.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from kornia.color import rgb_to_lab
from scipy.stats import bootstrap

from ..drawn.looks import Colour, Look
from ..drawn.scenes import Content

SHARED_CHOICES = "hat", "glasses", "pattern"
COLOUR_DISTANCES = {"skin": 15.0, "accent": 25.0, "hat_colour": 25.0, "top": 25.0, "bottom": 25.0}
UNDER_A_HAT = "style", "accent"
ATTRIBUTES = "style", *SHARED_CHOICES, *COLOUR_DISTANCES
RIGHT, SWAPPED, BLENDED = "right", "swapped", "blended"
RESAMPLES = 2000

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Figure:
    """A mean over `n` cases with its 95% interval."""

    value: float
    lower: float
    upper: float
    n: int


def distance(one: Colour, other: Colour) -> float:
    """Euclidean in CIELAB (CIE 1976), of sRGB colours in 0..255."""
    rgb = torch.tensor([one, other], dtype=torch.float64) / 255
    first, second = rgb_to_lab(rearrange(rgb, "colours channels -> colours channels 1 1")).flatten(1)
    return (first - second).norm().item()


def is_kept(name: str, wanted: Look, seen: Look) -> bool:
    """Whether `seen` shows that attribute of `wanted`."""
    if name == "style":
        return (seen.word, seen.style) == (wanted.word, wanted.style)
    if name in SHARED_CHOICES:
        return getattr(seen, name) == getattr(wanted, name)
    if name == "hat_colour" and seen.hat == "none":
        return False
    return distance(getattr(seen, name), getattr(wanted, name)) < COLOUR_DISTANCES[name]


def has(name: str, look: Look) -> bool:
    """Whether the attribute can be seen on the look."""
    if name in UNDER_A_HAT:
        return look.hat == "none"
    return name != "hat_colour" or look.hat != "none"


def differs(name: str, one: Look, other: Look) -> bool:
    """Whether an attribute tells two characters apart: another choice, or colours two thresholds apart, so that no
    colour agrees with both. Styles do not count: another class word has other ones, so they cannot go astray.
    """
    if name in SHARED_CHOICES:
        return getattr(one, name) != getattr(other, name)
    if name not in COLOUR_DISTANCES or not (has(name, one) and has(name, other)):
        return False
    return distance(getattr(one, name), getattr(other, name)) >= 2 * COLOUR_DISTANCES[name]


def kept_share(wanted: Look, seen: Look) -> float:
    """The share of all attributes of `wanted` that `seen` shows."""
    return float(np.mean([is_kept(name, wanted, seen) for name in ATTRIBUTES if has(name, wanted)]))


def score_single(wanted: Content, seen: Content) -> dict[str, float]:
    """Of one character: `attributes`, the share kept; `text`, whether both place and action are as prompted; `product`,
    of these two; place, action, the class word and the night alone; and each attribute, NaN where it does not apply.
    """
    look, read = wanted.looks[0], seen.looks[0]
    place, action = seen.place == wanted.place, seen.actions == wanted.actions
    told = {"place": place, "action": action, "night": seen.night == wanted.night, "word": read.word == look.word}
    each = {name: is_kept(name, look, read) if has(name, look) else math.nan for name in ATTRIBUTES}
    kept, text = kept_share(look, read), place and action
    return {"attributes": kept, "text": text, "product": kept * text, **told, **each}


def score_pair(wanted: Content, seen: Content) -> dict[str, float]:
    """Of two characters, found by the class word that each window shows.

    `words`: both words are there, one in each window. Where they are not, nothing is bound: all scores but place are 0
    and blends is 1. `binding`: of the attributes that differ between the two, the share that is on the right word;
    `swaps`: the share that shows the other's; `blends`: the share that shows neither. `attributes`: the share kept of
    all, on the right word; `text`: place and both actions are as prompted, on the right word. `place` alone.
    """
    place = seen.place == wanted.place
    if {look.word for look in seen.looks} != {look.word for look in wanted.looks}:
        return {"binding": 0, "swaps": 0, "blends": 1, "attributes": 0, "text": 0, "words": 0, "place": place}
    order = [[look.word for look in seen.looks].index(look.word) for look in wanted.looks]
    read, actions = ([values[number] for number in order] for values in (seen.looks, seen.actions))
    (one, other), (seen_one, seen_other) = wanted.looks, read
    found = outcomes(one, other, seen_one) + outcomes(other, one, seen_other)
    right, swapped = (found.count(kind) / len(found) for kind in (RIGHT, SWAPPED))
    return {
        "binding": right,
        "swaps": swapped,
        "blends": 1 - right - swapped,
        "attributes": (kept_share(one, seen_one) + kept_share(other, seen_other)) / 2,
        "text": place and tuple(actions) == wanted.actions,
        "words": 1,
        "place": place,
    }


def outcomes(own: Look, other: Look, seen: Look) -> list[str]:
    """For each attribute that tells `own` from `other`: is it RIGHT, SWAPPED or BLENDED on `seen`?"""
    return [
        RIGHT if is_kept(name, own, seen) else SWAPPED if is_kept(name, other, seen) else BLENDED
        for name in ATTRIBUTES
        if differs(name, own, other)
    ]


def score_all(wanted: Sequence[Content], seen: Sequence[Content]) -> Scores:
    """Every score of each case, (cases,), in 0..1."""
    score = score_single if len(wanted[0].looks) == 1 else score_pair
    rows = [score(*contents) for contents in zip(wanted, seen, strict=True)]
    return {name: np.array([row[name] for row in rows], dtype=float) for name in rows[0]}


def figure(scores: np.ndarray, seed: int = 0) -> Figure:
    """The mean of the cases to which the score applies; its interval by bootstrap over them."""
    known = scores[~np.isnan(scores)]
    if len(known) < 2:  # nothing to draw again from
        value = known.mean().item() if len(known) else math.nan
        return Figure(value, value, value, len(known))
    drawn = bootstrap((known,), np.mean, n_resamples=RESAMPLES, method="percentile", random_state=seed)
    return Figure(known.mean().item(), *map(float, drawn.confidence_interval), len(known))


def means(scores: Scores) -> str:
    """The means in percent, for a log."""
    return ", ".join(f"{name} {100 * np.nanmean(values):.1f}" for name, values in scores.items())
