"""Places, by day and by night: soft shapes of few colours behind the characters."""

from collections.abc import Callable
from random import Random

from PIL import Image

from .looks import Colour
from .pen import SUPERSAMPLING, Pen, shade

DAY: Colour = (168, 214, 244)
NIGHT: Colour = (38, 44, 92)
WALLS: tuple[Colour, ...] = ((150, 140, 160), (176, 150, 140), (128, 140, 164))


def draw_background(place: str, night: bool, random: Random, size: int) -> Image.Image:
    """An RGB picture (size, size) of the place times SUPERSAMPLING, reduced to (size, size)."""
    image = Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING), NIGHT if night else DAY)
    pen = Pen(image, (0, size), size)
    if night:
        draw_stars(pen, random)
    PLACES[place](pen, random, 0.55 if night else 1.0)
    return image.reduce(SUPERSAMPLING)


def draw_stars(pen: Pen, random: Random) -> None:
    for _ in range(9):
        pen.ellipse((random.random(), random.uniform(0.55, 0.98)), (0.009, 0.009), (250, 244, 200), outlined=False)
    moon = random.choice((0.14, 0.86)), random.uniform(0.82, 0.9)
    pen.ellipse(moon, (0.075, 0.075), (250, 240, 190), outlined=False)
    pen.ellipse((moon[0] + 0.035, moon[1] + 0.02), (0.062, 0.062), NIGHT, outlined=False)


def park(pen: Pen, random: Random, light: float) -> None:
    pen.ellipse((random.uniform(0.1, 0.9), 0.22), (0.6, 0.24), shade((120, 190, 96), light), outlined=False)
    for x in (random.uniform(0.02, 0.2), random.uniform(0.8, 0.98)):
        pen.box((x - 0.025, 0.25), (x + 0.025, 0.55), 0, shade((132, 92, 60), light), outlined=False)
        pen.ellipse((x, 0.62), (0.14, 0.17), shade((84, 160, 76), light), outlined=False)
    pen.box((-0.1, -0.1), (1.1, 0.27), 0, shade((140, 206, 104), light), outlined=False)


def beach(pen: Pen, random: Random, light: float) -> None:
    pen.box((-0.1, 0.2), (1.1, 0.5), 0, shade((60, 150, 204), light), outlined=False)
    for y in (0.40, 0.33):
        left, right = random.uniform(0, 0.3), random.uniform(0.6, 1)
        pen.box((left, y), (right, y + 0.018), 0.01, shade((150, 206, 232), light), outlined=False)
    pen.ellipse((random.uniform(0.3, 0.7), 0.0), (1.1, 0.28), shade((244, 220, 158), light), outlined=False)
    if light == 1.0:
        sun = random.choice((0.13, 0.87)), random.uniform(0.8, 0.88)
        pen.ellipse(sun, (0.085, 0.085), (255, 216, 90), outlined=False)


def snow(pen: Pen, random: Random, light: float) -> None:
    for x in (random.uniform(0.05, 0.25), random.uniform(0.75, 0.95)):
        for y, half in ((0.28, 0.14), (0.41, 0.11), (0.53, 0.08)):
            pen.polygon(((x - half, y), (x + half, y), (x, y + 0.2)), shade((62, 128, 108), light), outlined=False)
    pen.ellipse((random.uniform(0.2, 0.8), 0.12), (0.95, 0.25), shade((246, 250, 254), light), outlined=False)
    pen.box((-0.1, -0.1), (1.1, 0.2), 0, shade((232, 240, 250), light), outlined=False)
    for _ in range(14):
        pen.ellipse((random.random(), random.uniform(0.4, 1)), (0.012, 0.012), (255, 255, 255), outlined=False)


def city(pen: Pen, random: Random, light: float) -> None:
    x = -0.05
    while x < 1.0:
        width, height = random.uniform(0.17, 0.25), random.uniform(0.5, 0.85)
        pen.box((x, 0.15), (x + width, height), 0, shade(random.choice(WALLS), light), outlined=False)
        for row in range(4):
            for column in (0.28, 0.72):
                window = (x + width * column, height - 0.07 - row * 0.11)
                pen.box(
                    (window[0] - 0.025, window[1] - 0.03),
                    (window[0] + 0.025, window[1] + 0.02),
                    0,
                    (255, 226, 140) if light < 1 else (206, 226, 240),
                    outlined=False,
                )
        x += width + 0.015
    pen.box((-0.1, -0.1), (1.1, 0.2), 0, shade((120, 120, 128), light), outlined=False)
    for x in (0.1, 0.45, 0.8):
        pen.box((x, 0.06), (x + 0.16, 0.085), 0, shade((236, 236, 220), light), outlined=False)


def desert(pen: Pen, random: Random, light: float) -> None:
    pen.ellipse((random.uniform(0.0, 0.4), 0.2), (0.6, 0.26), shade((226, 164, 96), light), outlined=False)
    pen.ellipse((random.uniform(0.6, 1.0), 0.12), (0.7, 0.28), shade((238, 182, 110), light), outlined=False)
    x = random.choice((0.12, 0.88))
    green = shade((76, 148, 90), light)
    pen.limb(((x, 0.2), (x, 0.62)), 0.075, green)
    pen.limb(((x, 0.35), (x + 0.09, 0.37), (x + 0.09, 0.5)), 0.05, green)
    pen.limb(((x, 0.41), (x - 0.09, 0.43), (x - 0.09, 0.55)), 0.05, green)
    pen.box((-0.1, -0.1), (1.1, 0.21), 0, shade((246, 202, 130), light), outlined=False)


def forest(pen: Pen, random: Random, light: float) -> None:
    pen.box((-0.1, 0.2), (1.1, 1.1), 0, shade((70, 118, 84), light), outlined=False)
    for number in range(5):
        x, width = 0.05 + 0.225 * number + random.uniform(-0.05, 0.05), random.uniform(0.03, 0.05)
        pen.box((x - width, 0.1), (x + width, 1.1), 0, shade((96, 72, 54), light), outlined=False)
    for _ in range(6):
        leaves = random.random(), random.uniform(0.9, 1.0)
        pen.ellipse(leaves, (0.16, 0.11), shade((50, 96, 62), light), outlined=False)
    pen.box((-0.1, -0.1), (1.1, 0.22), 0, shade((92, 140, 74), light), outlined=False)


def room(pen: Pen, random: Random, light: float) -> None:
    pen.box((-0.1, -0.1), (1.1, 1.1), 0, shade((240, 214, 186), 0.5 + light / 2), outlined=False)
    pen.box((-0.1, -0.1), (1.1, 0.2), 0, shade((170, 116, 78), 0.5 + light / 2), outlined=False)
    x = random.uniform(0.06, 0.64)
    pen.box((x, 0.55), (x + 0.3, 0.9), 0, (250, 250, 244), outlined=False)
    pen.box((x + 0.03, 0.58), (x + 0.27, 0.87), 0, NIGHT if light < 1 else DAY, outlined=False)
    pen.box((x + 0.14, 0.58), (x + 0.16, 0.87), 0, (250, 250, 244), outlined=False)


def moon(pen: Pen, random: Random, light: float) -> None:
    pen.box((-0.1, -0.1), (1.1, 1.1), 0, (18, 16, 40), outlined=False)
    for _ in range(14):
        pen.ellipse((random.random(), random.uniform(0.3, 1)), (0.009, 0.009), (255, 255, 240), outlined=False)
    planet = random.choice((0.15, 0.85)), random.uniform(0.72, 0.86)
    pen.ellipse(planet, (0.1, 0.1), (84, 150, 214), outlined=False)
    pen.ellipse((planet[0] - 0.02, planet[1] + 0.02), (0.05, 0.035), (110, 190, 110), outlined=False)
    pen.ellipse((random.uniform(0.3, 0.7), 0.0), (1.2, 0.26), (176, 176, 188), outlined=False)
    for _ in range(4):
        pen.ellipse((random.random(), random.uniform(0.03, 0.16)), (0.06, 0.02), (146, 146, 160), outlined=False)


PLACES: dict[str, Callable[[Pen, Random, float], None]] = {
    "in a park": park,
    "on a beach": beach,
    "in the snow": snow,
    "in a city": city,
    "in the desert": desert,
    "in a forest": forest,
    "in a room": room,
    "on the moon": moon,
}
