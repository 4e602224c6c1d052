"""Heads of the class words, with hair or ears, face, glasses and hat. The centre is (0, 0), the height about 0.4."""

from collections.abc import Sequence

from .looks import Colour, Look
from .pen import Pen, Point, brightness, shade

INK: Colour = (40, 34, 42)
WHITE: Colour = (255, 255, 255)
PINK: Colour = (240, 120, 130)
RX, RY = 0.20, 0.185


def draw_head(pen: Pen, look: Look) -> None:
    """The whole head of a look, back to front."""
    behind, front = HEADS[look.word]
    behind(pen, look)
    front(pen, look)
    draw_glasses(pen, look.glasses)
    draw_hat(pen, look)


def on_side(side: int, points: Sequence[Point]) -> list[Point]:
    """Points of the right side (1), or mirrored to the left (-1)."""
    return [(side * x, y) for x, y in points]


def eyes(pen: Pen, height: float = 0.0, apart: float = 0.085, size: float = 0.032) -> None:
    for x in (-apart, apart):
        pen.ellipse((x, height), (size, size * 1.25), INK, outlined=False)
        pen.ellipse((x - size * 0.3, height + size * 0.4), (size * 0.35, size * 0.35), WHITE, outlined=False)


def smile(pen: Pen, height: float = -0.07, width: float = 0.05) -> None:
    pen.arc((0, height), (width, width * 0.8), 20, 160, INK, 0.018)


def hair_behind(pen: Pen, look: Look) -> None:
    if look.style == "long":
        pen.box((-0.24, -0.24), (0.24, 0.16), 0.12, look.accent)
    elif look.style == "bob":
        pen.box((-0.245, -0.13), (0.245, 0.16), 0.14, look.accent)
    elif look.style == "bun":
        pen.ellipse((0, 0.235), (0.10, 0.085), look.accent)
    elif look.style == "spiky":
        for x, y in ((-0.20, 0.13), (-0.11, 0.22), (0.0, 0.26), (0.11, 0.22), (0.20, 0.13)):
            pen.polygon(((x * 0.6 - 0.07, 0.08), (x * 1.1, y), (x * 0.6 + 0.07, 0.08)), look.accent)


def face(pen: Pen, look: Look) -> None:
    for x in (-RX, RX):
        pen.ellipse((x, -0.02), (0.04, 0.05), look.skin)
    if look.style == "beard":
        pen.ellipse((0, -0.055), (RX + 0.005, 0.165), look.accent)
    pen.ellipse((0, 0.0 if look.style != "beard" else 0.03), (RX, RY if look.style != "beard" else 0.15), look.skin)
    pen.pie((0, 0.0), (RX + 0.012, RY + 0.015), 195, 345, look.accent)
    if look.style in ("long", "bob"):
        for side in (-1, 1):
            strand = (0.21, 0.06), (0.215, -0.10), (0.16, -0.05), (0.15, 0.05)
            pen.polygon(on_side(side, strand), look.accent, outlined=False)
    for x in (-0.125, 0.125):
        pen.ellipse((x, -0.065), (0.032, 0.022), shade(look.skin, 0.86), outlined=False)
    eyes(pen, -0.005)
    smile(pen)
    if look.word == "woman":
        for x in (-0.115, 0.115):
            pen.arc((x, -0.005), (0.05, 0.05), 200 if x < 0 else 270, 270 if x < 0 else 340, INK, 0.016)


def cat_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        if look.style == "folded":
            pen.polygon(on_side(side, ((0.19, 0.06), (0.235, 0.16), (0.12, 0.20), (0.07, 0.14))), look.skin)
            pen.polygon(on_side(side, ((0.21, 0.09), (0.235, 0.16), (0.13, 0.15))), look.accent)
        else:
            pen.polygon(on_side(side, ((0.20, 0.03), (0.20, 0.29), (0.05, 0.15))), look.skin)
            pen.polygon(on_side(side, ((0.175, 0.08), (0.178, 0.235), (0.085, 0.15))), look.accent, outlined=False)


def cat_face(pen: Pen, look: Look) -> None:
    pen.ellipse((0, 0), (RX + 0.015, RY - 0.005), look.skin)
    if look.style == "striped":
        for x in (-0.06, 0.0, 0.06):
            pen.polygon(((x - 0.022, 0.17), (x + 0.022, 0.17), (x, 0.075)), look.accent, outlined=False)
    eyes(pen, 0.015, 0.095, 0.036)
    ink = whisker_colour(look.skin)
    for side in (-1, 1):
        for height in (-0.045, -0.085):
            pen.draw.line([pen.at((side * 0.10, -0.06)), pen.at((side * 0.235, height))], fill=ink, width=pen.outline)
    pen.polygon(((-0.028, -0.035), (0.028, -0.035), (0, -0.068)), PINK)
    pen.arc((-0.028, -0.075), (0.03, 0.03), 0, 180, ink, 0.014)
    pen.arc((0.028, -0.075), (0.03, 0.03), 0, 180, ink, 0.014)


def dog_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        if look.style == "upright":
            pen.polygon(on_side(side, ((0.205, 0.04), (0.23, 0.25), (0.14, 0.27), (0.06, 0.14))), look.accent)


def dog_face(pen: Pen, look: Look) -> None:
    pen.ellipse((0, 0), (RX, RY), look.skin)
    if look.style == "patch":
        pen.ellipse((0.088, 0.025), (0.085, 0.095), look.accent, outlined=False)
    pen.ellipse((0, -0.085), (0.105, 0.08), shade(look.skin, 1.55), outlined=False)
    eyes(pen, 0.025)
    pen.ellipse((0, -0.045), (0.042, 0.032), INK, outlined=False)
    pen.ellipse((0, -0.135), (0.03, 0.038), PINK)
    pen.arc((0, -0.085), (0.055, 0.04), 15, 165, INK, 0.016)
    if look.style != "upright":
        for side in (-1, 1):
            pen.ellipse((side * 0.205, -0.02), (0.062, 0.15), look.accent)


def rabbit_ears(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        if look.style == "lop":
            pen.limb(((side * 0.12, 0.15), (side * 0.22, 0.12), (side * 0.26, -0.12)), 0.105, look.skin)
            pen.ellipse((side * 0.262, -0.07), (0.026, 0.085), look.accent, outlined=False)
        else:
            pen.limb(((side * 0.085, 0.12), (side * 0.10, 0.37)), 0.105, look.skin)
            pen.ellipse((side * 0.098, 0.28), (0.028, 0.11), look.accent, outlined=False)
    if look.style == "bent":
        pen.limb(((0.10, 0.34), (0.205, 0.27)), 0.10, look.skin)


def rabbit_face(pen: Pen, look: Look) -> None:
    pen.ellipse((0, 0), (RX - 0.005, RY - 0.005), look.skin)
    for x in (-0.105, 0.105):
        pen.ellipse((x, -0.06), (0.04, 0.028), look.accent, outlined=False)
    eyes(pen, 0.02, 0.075)
    pen.polygon(((-0.022, -0.032), (0.022, -0.032), (0, -0.058)), PINK)
    pen.box((-0.032, -0.135), (0.032, -0.075), 0.01, WHITE)
    pen.draw.line([pen.at((0, -0.058)), pen.at((0, -0.13))], fill=INK, width=pen.outline)


def robot_crest(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.box((side * 0.215 - 0.03, -0.055), (side * 0.215 + 0.03, 0.055), 0.015, shade(look.skin, 0.75))
    if look.style == "antenna":
        pen.limb(((0, 0.15), (0, 0.27)), 0.035, shade(look.skin, 0.75))
        pen.ellipse((0, 0.28), (0.055, 0.055), look.accent)
    elif look.style == "horns":
        for side in (-1, 1):
            pen.limb(((side * 0.11, 0.13), (side * 0.19, 0.26)), 0.035, shade(look.skin, 0.75))
            pen.ellipse((side * 0.19, 0.265), (0.045, 0.045), look.accent)
    else:
        pen.ellipse((0, 0.14), (0.13, 0.12), look.accent)


def robot_face(pen: Pen, look: Look) -> None:
    pen.box((-0.20, -0.17), (0.20, 0.17), 0.05, look.skin)
    pen.box((-0.15, -0.055), (0.15, 0.09), 0.045, (46, 52, 66))
    for x in (-0.075, 0.075):
        pen.ellipse((x, 0.018), (0.036, 0.036), look.accent, outlined=False)
        pen.ellipse((x - 0.01, 0.03), (0.012, 0.012), WHITE, outlined=False)
    for x in (-0.07, -0.024, 0.024, 0.07):
        pen.box((x - 0.018, -0.135), (x + 0.018, -0.088), 0.006, shade(look.skin, 0.6), outlined=False)


HEADS = {
    "man": (hair_behind, face),
    "woman": (hair_behind, face),
    "cat": (cat_ears, cat_face),
    "dog": (dog_ears, dog_face),
    "rabbit": (rabbit_ears, rabbit_face),
    "robot": (robot_crest, robot_face),
}


def draw_glasses(pen: Pen, kind: str) -> None:
    if kind == "none":
        return
    pen.draw.line([pen.at((-0.20, 0.02)), pen.at((0.20, 0.02))], fill=INK, width=round(0.03 * pen.unit))
    for x in (-0.09, 0.09):
        if kind == "round":
            pen.ellipse((x, 0.01), (0.085, 0.085), INK, outlined=False)
            pen.ellipse((x, 0.01), (0.064, 0.064), WHITE, outlined=False)
            pen.ellipse((x, 0.005), (0.028, 0.032), INK, outlined=False)
        else:
            pen.box((x - 0.085, -0.06), (x + 0.085, 0.06), 0.035, INK, outlined=False)


def draw_hat(pen: Pen, look: Look) -> None:
    colour = look.hat_colour
    if look.hat == "cap":
        pen.pie((0, 0.085), (0.205, 0.16), 180, 360, colour)
        pen.box((-0.02, 0.065), (0.30, 0.105), 0.02, shade(colour, 0.8))
    elif look.hat == "top hat":
        pen.box((-0.135, 0.10), (0.135, 0.35), 0.02, colour)
        pen.box((-0.13, 0.125), (0.13, 0.185), 0.0, contrast(colour), outlined=False)
        pen.box((-0.23, 0.085), (0.23, 0.13), 0.02, colour)
    elif look.hat == "beanie":
        pen.pie((0, 0.085), (0.205, 0.19), 180, 360, colour)
        pen.box((-0.215, 0.06), (0.215, 0.125), 0.03, shade(colour, 1.5))
        pen.ellipse((0, 0.285), (0.05, 0.05), shade(colour, 1.5))
    elif look.hat == "crown":
        points = ((-0.17, 0.08), (-0.19, 0.27), (-0.09, 0.19), (0, 0.29), (0.09, 0.19), (0.19, 0.27), (0.17, 0.08))
        pen.polygon(points, colour)
        for x in (-0.09, 0.0, 0.09):
            pen.ellipse((x, 0.125), (0.024, 0.024), contrast(colour), outlined=False)


def contrast(colour: Colour) -> Colour:
    """Near white on dark colours, dark on bright ones: the second colour of patterns, bands and jewels."""
    return (250, 246, 236) if brightness(colour) < 0.6 else shade(colour, 0.25)


def whisker_colour(skin: Colour) -> Colour:
    return INK if brightness(skin) > 0.45 else (225, 222, 228)
