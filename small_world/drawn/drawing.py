"""Characters: body, clothes and limbs in a pose, drawn on a transparent layer of their own."""

from random import Random

import numpy as np
from PIL import Image

from .heads import contrast, draw_head
from .looks import Look
from .pen import SUPERSAMPLING, Pen, Point, shade
from .poses import Pose, sample_pose

SIZE = 128
HIP, SHOULDER, NECK, HEAD = 0.20, 0.42, 0.47, 0.655
SHOE = (62, 52, 58)
BALLOON = (226, 62, 70)


def draw_character(look: Look, pose: Pose, feet: Point, unit: float, size: int = SIZE) -> Image.Image:
    """An RGBA layer (size, size) with the character standing at `feet` (pixels from the upper left).

    `unit`: pixels from the feet to the height 1.0, a little above a bare head.
    """
    layer = Image.new("RGBA", (size * SUPERSAMPLING, size * SUPERSAMPLING))
    body = Pen(layer, (feet[0], feet[1] - pose.lift * unit), unit)
    draw_legs(body, look, pose)
    draw_arm(body, look, pose, 0)
    draw_torso(body, look)
    draw_arm(body, look, pose, 1)
    head = Pen(layer, (feet[0] + pose.lean * unit, feet[1] - (pose.lift + HEAD) * unit), unit)
    draw_head(head, look)
    return reduce_layer(layer)


def reduce_layer(layer: Image.Image) -> Image.Image:
    """Reduces where something was drawn, averaging colours weighted by their coverage: transparent pixels are black."""
    left, top, right, bottom = layer.getbbox()
    left, top = left // SUPERSAMPLING, top // SUPERSAMPLING
    right, bottom = -(-right // SUPERSAMPLING), -(-bottom // SUPERSAMPLING)
    drawn = layer.crop(tuple(SUPERSAMPLING * edge for edge in (left, top, right, bottom)))
    reduced = Image.new("RGBA", (layer.width // SUPERSAMPLING, layer.height // SUPERSAMPLING))
    reduced.paste(drawn.convert("RGBa").reduce(SUPERSAMPLING).convert("RGBA"), (left, top))
    return reduced


def draw_legs(pen: Pen, look: Look, pose: Pose) -> None:
    skirt = look.word == "woman"
    for side, (knee, foot) in zip((-1, 1), pose.legs, strict=True):
        hip = (side * 0.062, HIP)
        points = (hip, (hip[0] + knee[0], HIP + knee[1]), (hip[0] + foot[0], HIP + foot[1] + 0.03))
        pen.limb(points, 0.095, look.skin if skirt else look.bottom)
        pen.ellipse((points[2][0] + side * 0.02, points[2][1] - 0.02), (0.065, 0.04), SHOE)
    if skirt:
        pen.polygon(((-0.10, 0.30), (0.10, 0.30), (0.19, 0.11), (-0.19, 0.11)), look.bottom)
    else:
        pen.box((-0.115, HIP - 0.045), (0.115, HIP + 0.07), 0.04, look.bottom)


def draw_torso(pen: Pen, look: Look) -> None:
    low, high = (-0.125, HIP + 0.03), (0.125, NECK + 0.02)
    pen.box(low, high, 0.06, look.top)
    second = contrast(look.top)
    inside = 0.108
    if look.pattern == "stripes":
        for y in (0.30, 0.415):
            pen.box((-inside, y - 0.028), (inside, y + 0.028), 0, second, outlined=False)
    elif look.pattern == "dots":
        for x, y in ((-0.055, 0.305), (0.055, 0.305), (-0.055, 0.415), (0.055, 0.415)):
            pen.ellipse((x, y), (0.036, 0.036), second, outlined=False)
    elif look.pattern == "half":
        pen.box((0, HIP + 0.045), (inside, NECK), 0, second, outlined=False)


def draw_arm(pen: Pen, look: Look, pose: Pose, side: int) -> None:
    sign = 1 if side else -1
    elbow, hand = pose.arms[side]
    shoulder = (sign * 0.115, SHOULDER)
    points = (shoulder, (shoulder[0] + elbow[0], SHOULDER + elbow[1]), (shoulder[0] + hand[0], SHOULDER + hand[1]))
    if pose.balloon and hand[1] > 0:
        above = (points[2][0] + sign * 0.015, points[2][1] + 0.36)
        pen.draw.line([pen.at(points[2]), pen.at(above)], fill=(90, 84, 92), width=pen.outline)
        pen.ellipse((above[0], above[1] + 0.06), (0.10, 0.12), BALLOON)
        pen.ellipse((above[0] - 0.035, above[1] + 0.105), (0.022, 0.028), shade(BALLOON, 1.6), outlined=False)
    pen.limb(points, 0.082, look.top)
    pen.ellipse(points[2], (0.046, 0.046), look.skin)


def reference(look: Look, random: Random, action: str, size: int = 96) -> np.ndarray:
    """The character alone, cut to its box, in the middle of a white square: (size, size, 3) uint8."""
    layer = draw_character(look, sample_pose(random, action), (72, 128), 108, 144)
    left, top, right, bottom = layer.getbbox()
    side = max(right - left, bottom - top)
    square = Image.new("RGBA", (side, side), (255, 255, 255, 255))
    corner = (side - right + left) // 2, (side - bottom + top) // 2
    square.alpha_composite(layer.crop((left, top, right, bottom)), corner)
    return np.asarray(square.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0))
