"""Pictures with subjects from the small world's models: the calls that the nodes make, one after another."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import comfy.sample
import numpy as np
import torch
from comfy.model_patcher import ModelPatcher

from mmdiff_model.checkpoint import Checkpoint, load_checkpoint
from mmdiff_model.prompt import strip_triggers
from mmdiff_model.sampling import apply_subjects
from mmdiff_model.sampling.routing import AUTO
from mmdiff_model.subject import Subject, encode_subject
from mmdiff_model.text import encode_text

from ..family.models import load_clip, load_model, load_vae, load_vision

STEPS, CFG, FUSE_SCALE = 30, 3.0, 1.0
SAMPLER, SCHEDULER = "euler_ancestral", "karras"
LATENT = (1, 4, 16, 16)


@dataclass(frozen=True)
class How:
    """How subjects enter a picture. Without `text` the class words stay plain, without `image` nothing is attended."""

    routing: str = AUTO
    text: bool = True
    image: bool = True
    fuse_scale: float = FUSE_SCALE


PLAIN = How()


class Personaliser:
    """The base of the small world with one adapter, or with none."""

    def __init__(self, weights: Path, adapter: Path | None = None):
        self.model, self.clip, self.vae, self.vision = (
            load(weights) for load in (load_model, load_clip, load_vae, load_vision)
        )
        self.checkpoint: Checkpoint | None = adapter and load_checkpoint(adapter)

    @torch.no_grad()
    def encode(self, reference: np.ndarray) -> Subject:
        """A character's reference (h, w, 3) uint8 -> Subject."""
        return encode_subject(self.checkpoint, self.vision, [torch.from_numpy(np.array(reference)).float() / 255])

    @torch.no_grad()
    def paint(self, prompt: str, references: Sequence[np.ndarray], seed: int, how: How = PLAIN) -> np.ndarray:
        """A prompt with a trigger for each reference -> picture (128, 128, 3) uint8."""
        if self.checkpoint is None:
            return self.sample(self.model, *self.plain(prompt), seed)
        subjects = [self.encode(reference) for reference in references]
        if how.text:
            text = encode_text(self.clip, self.checkpoint, subjects, prompt, "", clean_negative=True)
            positive, negative = text.positive, text.negative
        else:
            positive, negative = self.plain(prompt)
        scale = how.fuse_scale if how.image else 0.0
        model = apply_subjects(self.model, self.checkpoint, subjects, scale, routing=how.routing)
        return self.sample(model, positive, negative, seed)

    def plain(self, prompt: str) -> tuple[list, list]:
        """Conditionings of the prompt without its triggers, and of the empty one."""
        texts = strip_triggers(prompt), ""
        return tuple(self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text)) for text in texts)

    def sample(self, model: ModelPatcher, positive: list, negative: list, seed: int) -> np.ndarray:
        """(128, 128, 3) uint8."""
        latent = torch.zeros(LATENT)
        noise = comfy.sample.prepare_noise(latent, seed)
        settings = STEPS, CFG, SAMPLER, SCHEDULER, positive, negative, latent
        done = comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=seed)
        return (self.vae.decode(done)[0].numpy() * 255).round().astype(np.uint8)
