"""Pictures from the trained base by ComfyUI's own sampler, one row a prompt.

python -m small_world.sample FILE.png --folder FOLDER [--prompt "a cat sitting in the snow" ...] [--steps 25]
"""

import argparse
import logging
from pathlib import Path

from mmdiff_model.host import use_comfyui

use_comfyui()

import comfy.sample  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy.model_patcher import ModelPatcher  # noqa: E402
from comfy.sd import CLIP, VAE  # noqa: E402

from .models import load_clip, load_model, load_vae  # noqa: E402
from .sheet import contact_sheet  # noqa: E402
from .training import start  # noqa: E402

PROMPTS = (
    "a cat sitting in the snow",
    "a man waving on a beach",
    "a robot jumping on the moon",
    "a woman holding a balloon in a park",
    "a rabbit running in the desert at night",
    "a dog standing in a city",
    "a man and a dog standing in a park",
    "a woman waving and a robot sitting in a room",
)
COLUMNS, CFG = 8, 4.0


@torch.no_grad()
def sample(model: ModelPatcher, clip: CLIP, vae: VAE, prompt: str, steps: int, seed: int = 0) -> np.ndarray:
    """COLUMNS pictures of one prompt, (n, 128, 128, 3) uint8."""
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
    latent = torch.zeros(COLUMNS, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, seed)
    done = comfy.sample.sample(model, noise, steps, CFG, "dpmpp_2m", "karras", positive, negative, latent, seed=seed)
    return (vae.decode(done).numpy() * 255).round().astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--prompt", nargs="+", default=PROMPTS)
    parser.add_argument("--steps", type=int, default=25)
    options = start(parser)
    model, clip, vae = load_model(options.folder), load_clip(options.folder), load_vae(options.folder)
    pictures = []
    for prompt in options.prompt:
        logging.info(prompt)
        pictures.extend(sample(model, clip, vae, prompt, options.steps))
    contact_sheet(pictures, COLUMNS).save(options.file)


if __name__ == "__main__":
    main()
