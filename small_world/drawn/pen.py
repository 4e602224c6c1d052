"""A pen with a unit of its own: shapes in a character's coordinates, antialiased by drawing large and reducing."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .looks import Colour

SUPERSAMPLING = 3
OUTLINE_SHADE = 0.55

Point = tuple[float, float]


def shade(colour: Colour, factor: float) -> Colour:
    """Darker below 1, towards white above 1 (2 is white)."""
    if factor <= 1:
        return tuple(round(channel * factor) for channel in colour)
    return tuple(round(channel + (255 - channel) * (factor - 1)) for channel in colour)


def brightness(colour: Colour) -> float:
    """Perceived brightness in 0..1."""
    return (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255


class Pen:
    """Draws on `image`, SUPERSAMPLING times too large: x right and y up from `origin`, both in `unit` pixels."""

    def __init__(self, image: Image.Image, origin: Point, unit: float, outline: float = 0.012):
        self.draw = ImageDraw.Draw(image)
        self.origin = origin
        self.unit = unit * SUPERSAMPLING
        self.outline = max(1, round(outline * self.unit))

    def at(self, point: Point) -> Point:
        x, y = (SUPERSAMPLING * place for place in self.origin)
        return x + point[0] * self.unit, y - point[1] * self.unit

    def ellipse(self, centre: Point, radii: Point, fill: Colour, outlined: bool = True) -> None:
        (x, y), (a, b) = self.at(centre), (radii[0] * self.unit, radii[1] * self.unit)
        edge = {"outline": shade(fill, OUTLINE_SHADE), "width": self.outline} if outlined else {}
        self.draw.ellipse((x - a, y - b, x + a, y + b), fill=fill, **edge)

    def polygon(self, points: Sequence[Point], fill: Colour, outlined: bool = True) -> None:
        edge = {"outline": shade(fill, OUTLINE_SHADE), "width": self.outline} if outlined else {}
        self.draw.polygon([self.at(point) for point in points], fill=fill, **edge)

    def box(self, low: Point, high: Point, radius: float, fill: Colour, outlined: bool = True) -> None:
        """A rectangle with round corners from the lower left to the upper right."""
        (left, bottom), (right, top) = self.at(low), self.at(high)
        edge = {"outline": shade(fill, OUTLINE_SHADE), "width": self.outline} if outlined else {}
        self.draw.rounded_rectangle((left, top, right, bottom), radius=radius * self.unit, fill=fill, **edge)

    def limb(self, points: Sequence[Point], width: float, fill: Colour) -> None:
        """A thick line with round ends and joints, in its outline."""
        places = [self.at(point) for point in points]
        outer = width * self.unit
        for colour, thick in ((shade(fill, OUTLINE_SHADE), outer), (fill, outer - 2 * self.outline)):
            self.draw.line(places, fill=colour, width=round(thick), joint="curve")
            for x, y in (places[0], places[-1]):
                self.draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=colour)

    def arc(self, centre: Point, radii: Point, start: float, end: float, fill: Colour, width: float) -> None:
        """Angles in degrees, clockwise from three o'clock."""
        (x, y), (a, b) = self.at(centre), (radii[0] * self.unit, radii[1] * self.unit)
        self.draw.arc((x - a, y - b, x + a, y + b), start, end, fill=fill, width=max(1, round(width * self.unit)))

    def pie(self, centre: Point, radii: Point, start: float, end: float, fill: Colour) -> None:
        (x, y), (a, b) = self.at(centre), (radii[0] * self.unit, radii[1] * self.unit)
        edge = {"outline": shade(fill, OUTLINE_SHADE), "width": self.outline}
        self.draw.pieslice((x - a, y - b, x + a, y + b), start, end, fill=fill, **edge)
