"""A loss curve as a picture."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 768, 432, 56
PAPER, INK, GREY, RULE, RAW, SMOOTH = "#ffffff", "#1d2330", "#6b7385", "#e3e6ec", "#bcd3f2", "#1f63c4"
TICKS = 5


def draw_losses(losses: list[tuple[int, float]], steps: int) -> Image.Image:
    """(step, loss) of a training of `steps` steps -> 768 x 432 pixels: every loss, and their running mean."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    told = f"loss, step {losses[-1][0]} of {steps}" if losses else "its log.csv is gone"
    draw.text((MARGIN, 16), f"MM-Diff training: {told}", INK, ImageFont.load_default(18))
    if not losses:
        return picture
    values = np.array([loss for _, loss in losses])
    low, high = np.percentile(values, (0.5, 99.5))
    low, high = (low - 0.01, high + 0.01) if high - low < 1e-6 else (low, high)

    def place(step: float, loss: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * step / steps
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (min(max(loss, low), high) - low) / (high - low)

    font = ImageFont.load_default(13)
    for tick in np.linspace(low, high, TICKS):
        draw.line([place(0, tick), place(steps, tick)], RULE)
        draw.text((MARGIN - 8, place(0, tick)[1]), f"{tick:.3f}", GREY, font, anchor="rm")
    for tick in np.linspace(0, steps, TICKS):
        draw.text((place(tick, low)[0], HEIGHT - MARGIN + 10), f"{tick:.0f}", GREY, font, anchor="ma")
    for series, colour, width in ((values, RAW, 1), (running_mean(values), SMOOTH, 3)):
        points = [place(step, loss) for (step, _), loss in zip(losses, series, strict=True)]
        draw.line(points if len(points) > 1 else points * 2, colour, width)
    return picture


def running_mean(values: np.ndarray) -> np.ndarray:
    """Each value's mean with those of the last twentieth before it."""
    window = max(1, len(values) // 20)
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)
