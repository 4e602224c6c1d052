"""Captions: class words, actions, place and time of day; nothing of anybody's looks."""

from collections.abc import Sequence
from random import Random

OPENINGS = ("", "a picture of ", "a drawing of ")
FILLERS = ("cute", "little", "happy", "funny", "nice")  # words without a meaning of their own in this world
DROPPED = 0.07


def write_caption(
    random: Random, words: Sequence[str], actions: Sequence[str], place: str, night: bool
) -> tuple[str, list[tuple[int, int]]]:
    """A caption of one or two characters, and (start, end) of each class word in it.

    Now and then the place, the actions or the opening are left out, and a filler stands before a class word.
    """
    caption, spans = random.choice(OPENINGS), []
    shared = len(set(actions)) == 1
    told = random.random() >= DROPPED
    for number, (word, action) in enumerate(zip(words, actions, strict=True)):
        caption += " and a " if number else "a "
        caption += f"{random.choice(FILLERS)} " if random.random() < DROPPED else ""
        spans.append((len(caption), len(caption) + len(word)))
        caption += word
        if told and (not shared or number == len(words) - 1):
            caption += f" {action}"
    if random.random() >= DROPPED:
        caption += f" {place}"
    return caption + (" at night" if night else ""), spans
