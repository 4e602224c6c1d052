"""Painters: what makes a picture of each case of the evaluation, from the truth itself to the trained models."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import torch

from ..drawn.looks import sample_look
from ..family.models import load_vae
from .cases import Case, draw_content, draw_truth, draw_truths
from .personalise import PLAIN, How, Personaliser

BATCH = 16

Painter = Callable[[Sequence[Case]], np.ndarray]


def paint_chance(cases: Sequence[Case]) -> np.ndarray:
    """Other held-out characters of the same class words, drawn doing anything anywhere: (cases, 128, 128, 3) uint8."""
    pictures = []
    for case in cases:
        random = Random(f"chance {case.seed}")
        looks = tuple(sample_look(random, held_out=True, word=look.word) for look in case.looks)
        pictures.append(draw_truth(draw_content(random, looks), random))
    return np.stack(pictures)


def codec_painter(weights: Path) -> Painter:
    """Encodes and decodes the drawn truth."""
    vae = load_vae(weights)

    def paint(cases: Sequence[Case]) -> np.ndarray:
        pixels = torch.from_numpy(draw_truths(cases)).float() / 255
        batches = [vae.decode(vae.encode(batch)).cpu() for batch in pixels.split(BATCH)]
        return (torch.cat(batches) * 255).round().byte().numpy()

    return paint


def sampling_painter(weights: Path, adapter: Path | None = None, how: How = PLAIN) -> Painter:
    """Samples the base with an adapter's checkpoint, or with the prompt alone."""
    personaliser = Personaliser(weights, adapter)

    def paint(cases: Sequence[Case]) -> np.ndarray:
        return np.stack([personaliser.paint(case.prompt, case.references, case.seed, how) for case in cases])

    return paint
