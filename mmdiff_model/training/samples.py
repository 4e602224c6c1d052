"""Pictures painted during a training, with its checkpoint and the calls that the nodes make."""

from pathlib import Path

import comfy.model_management
import comfy.sample
import numpy as np
import torch
from PIL import Image

from ..checkpoint import load_checkpoint
from ..pictures import UnreadablePicture, read
from ..sampling import apply_subjects
from ..sampling.routing import AUTO
from ..subject import encode_subject
from ..text import encode_text
from .config import Samples
from .session import BaseModels

SAMPLER, SCHEDULER = "dpmpp_2m", "karras"
PIXELS_PER_LATENT = 8


@torch.no_grad()
def paint(samples: Samples, base: BaseModels, checkpoint: Path, size: int) -> Image.Image:
    """The picture of `samples` with a checkpoint, size x size pixels. The base must be without training's hooks.

    Raises ValueError where a reference cannot be read, or they do not fit the prompt.
    """
    mmdiff = load_checkpoint(checkpoint)
    photos = [read_photo(path) for path in samples.references]
    faces = [base.find_face(photo) if base.find_face else None for photo in photos]
    subjects = [
        encode_subject(mmdiff, base.clip_vision, [photo], [face] if face else None)
        for photo, face in zip(photos, faces, strict=True)
    ]
    text = encode_text(base.clip, mmdiff, subjects, samples.prompt, "")
    model = apply_subjects(base.model, mmdiff, subjects, 1.0, routing=AUTO)
    side = size // PIXELS_PER_LATENT
    latent = torch.zeros(1, base.model.model.latent_format.latent_channels, side, side)
    settings = samples.steps, samples.cfg, SAMPLER, SCHEDULER, text.positive, text.negative, latent
    noise = comfy.sample.prepare_noise(latent, samples.seed)
    done = comfy.sample.sample(model, noise, *settings, disable_pbar=True, seed=samples.seed)
    picture = base.vae.decode(done)[0]
    comfy.model_management.unload_all_models()
    return Image.fromarray((picture.cpu().numpy() * 255).round().astype(np.uint8))


def read_photo(path: Path) -> torch.Tensor:
    """A photo as a person sees it, (h, w, 3) in 0..1. Raises ValueError."""
    try:
        return torch.from_numpy(np.array(read(path))).float() / 255
    except UnreadablePicture as error:
        raise ValueError(f"samples.references: {path} cannot be read as a picture: {error}") from error
