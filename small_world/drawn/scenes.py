"""Scenes: one or two characters in a place, with masks, caption and every attribute as data."""

from dataclasses import dataclass
from random import Random

import numpy as np

from .backgrounds import PLACES, draw_background
from .captions import write_caption
from .drawing import SIZE, draw_character, reference
from .looks import Look, sample_look
from .poses import ACTIONS, REFERENCE_ACTIONS, sample_pose


@dataclass(frozen=True)
class Content:
    """What a picture shows, as asked for or as read: a look and an action for each character, the place and its time.

    Read characters stand from left to right; those asked for, in the order of the prompt.
    """

    looks: tuple[Look, ...]
    actions: tuple[str, ...]
    place: str
    night: bool


@dataclass(frozen=True)
class Story(Content):
    """A content in words: `spans` (start, end) of the class words in `caption`."""

    caption: str
    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Scene(Story):
    """A story with its `picture` (128, 128, 3) and `masks` (characters, 128, 128), in 0..255."""

    picture: np.ndarray
    masks: np.ndarray


def make_scene(seed: int, index: int, held_out: bool = False, characters: int | None = None) -> Scene:
    """Scene `index` of the world `seed`; half of them have two characters, of different class words, unless told."""
    random, story = start_scene(seed, index, held_out, characters)
    picture, masks = draw_scene(random, story.looks, story.actions, story.place, story.night)
    return Scene(**vars(story), picture=picture, masks=masks)


def start_scene(seed: int, index: int, held_out: bool = False, characters: int | None = None) -> tuple[Random, Story]:
    """The scene's story, and the randomness that its picture goes on with."""
    random = Random(f"scene {seed} {index} {held_out}")
    return random, tell(random, sample_looks(random, characters or random.choice((1, 2)), held_out))


def scene_of(word: str, seed: int, index: int) -> Scene:
    """A scene with one character of a class word."""
    random = Random(f"scene of {word} {seed} {index}")
    story = tell(random, (sample_look(random, word=word),))
    picture, masks = draw_scene(random, story.looks, story.actions, story.place, story.night)
    return Scene(**vars(story), picture=picture, masks=masks)


def tell(random: Random, looks: tuple[Look, ...]) -> Story:
    """What the characters do, where, and its caption."""
    place, night = random.choice(tuple(PLACES)), random.random() < 0.2
    actions = tuple(random.choice(ACTIONS) for _ in looks)
    if len(actions) == 2 and random.random() < 0.5:
        actions = actions[:1] * 2
    caption, spans = write_caption(random, [look.word for look in looks], actions, place, night)
    return Story(looks, actions, place, night, caption, tuple(spans))


def sample_looks(random: Random, characters: int, held_out: bool) -> tuple[Look, ...]:
    """Characters of different class words."""
    looks = [sample_look(random, held_out)]
    while len(looks) < characters:
        look = sample_look(random, held_out)
        if look.word not in {other.word for other in looks}:
            looks.append(look)
    return tuple(looks)


def draw_scene(
    random: Random, looks: tuple[Look, ...], actions: tuple[str, ...], place: str, night: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Picture (128, 128, 3) uint8 and masks (characters, 128, 128); two characters stand in either order."""
    picture = draw_background(place, night, random, SIZE).convert("RGBA")
    centres = [64 + random.uniform(-14, 14)] if len(looks) == 1 else [x + random.uniform(-3, 3) for x in (35, 93)]
    random.shuffle(centres)
    masks = []
    for look, action, centre in zip(looks, actions, centres, strict=True):
        unit = random.uniform(92, 102) if len(looks) == 1 else random.uniform(84, 92)
        layer = draw_character(look, sample_pose(random, action), (centre, 120 + random.uniform(-3, 3)), unit)
        picture.alpha_composite(layer)
        alpha = np.asarray(layer)[:, :, 3]
        masks = [np.minimum(mask, 255 - alpha) for mask in masks] + [alpha]
    return np.asarray(picture.convert("RGB")), np.stack(masks)


def references(scene: Scene, seed: int, size: int = 96) -> np.ndarray:
    """Each character of the scene alone on white, in another pose: (characters, size, size, 3) uint8."""
    pictures = []
    for number, (look, action) in enumerate(zip(scene.looks, scene.actions, strict=True)):
        random = Random(f"reference {seed} {number} {scene.caption}")
        other = random.choice([other for other in REFERENCE_ACTIONS if other != action])
        pictures.append(reference(look, random, other, size))
    return np.stack(pictures)
