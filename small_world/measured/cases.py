"""Cases of the evaluation: characters that training never met, each with a prompt and what it should show."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from mmdiff_model.prompt import PLAIN_TRIGGER

from ..drawn.backgrounds import PLACES
from ..drawn.drawing import reference
from ..drawn.looks import Look
from ..drawn.poses import ACTIONS, REFERENCE_ACTIONS
from ..drawn.scenes import Content, draw_scene, sample_looks

NIGHTS = 0.2


@dataclass(frozen=True)
class Case(Content):
    """A content to paint: `references` (characters, 96, 96, 3) uint8, a prompt with their triggers, a noise seed."""

    references: np.ndarray
    prompt: str
    seed: int


def draw_cases(seed: int, characters: int, count: int) -> list[Case]:
    """`count` cases with one or two held-out characters each; case k is a function of the seed and of k."""
    return [draw_case(Random(f"case {seed} {characters} {number}"), characters) for number in range(count)]


def draw_case(random: Random, characters: int) -> Case:
    content = draw_content(random, sample_looks(random, characters, held_out=True))
    pictures = [
        reference(look, random, random.choice([other for other in REFERENCE_ACTIONS if other != action]))
        for look, action in zip(content.looks, content.actions, strict=True)
    ]
    prompt, seed = write_prompt(content), random.getrandbits(32)
    return Case(**vars(content), references=np.stack(pictures), prompt=prompt, seed=seed)


def draw_content(random: Random, looks: tuple[Look, ...]) -> Content:
    """The looks in a random place; two characters do the same half of the time, as in training."""
    actions = tuple(random.choice(ACTIONS) for _ in looks)
    if len(actions) == 2 and random.random() < 0.5:
        actions = actions[:1] * 2
    return Content(looks, actions, random.choice(tuple(PLACES)), random.random() < NIGHTS)


def write_prompt(content: Content) -> str:
    """A caption as training has them, with nothing left out and a trigger after every class word."""
    names = [f"a {look.word}{PLAIN_TRIGGER}" for look in content.looks]
    if len(set(content.actions)) == 1:
        told = f"{' and '.join(names)} {content.actions[0]}"
    else:
        told = " and ".join(f"{name} {action}" for name, action in zip(names, content.actions, strict=True))
    return f"{told} {content.place}{' at night' if content.night else ''}"


def draw_truths(cases: Sequence[Case]) -> np.ndarray:
    """What each case asks for, drawn: (cases, 128, 128, 3) uint8."""
    return np.stack([draw_truth(case, Random(f"truth {case.seed}")) for case in cases])


def draw_truth(content: Content, random: Random) -> np.ndarray:
    return draw_scene(random, content.looks, content.actions, content.place, content.night)[0]
