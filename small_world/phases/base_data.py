"""What the base is trained on: latents, tokens, masks, and the looks of the characters, by scene."""

from pathlib import Path

import numpy as np
import torch
from comfy.latent_formats import SDXL as SDXLLatents
from einops import reduce
from torch import nn

from ..drawn.drawing import SIZE
from ..drawn.looks import WORDS
from ..drawn.scenes import Scene, make_scene, start_scene
from ..family.models import load_codec
from ..family.pixels import to_pixels
from ..family.vocabulary import tokenize
from .look_codes import LOOK, look_vector, word_tokens
from .phase import autocast
from .shards import Arrays, load_shards

SEED = 3
SHARD, SHARDS = 500, 120
LATENT_SCALE = SDXLLatents().scale_factor


def load_data(folder: Path, device: torch.device) -> Arrays:
    """All scenes; `folder`/latents keeps what was encoded before. Raises FileNotFoundError without a codec."""
    codec = load_codec(folder, device)
    data = load_shards(folder / "latents", SHARDS, lambda shard: encode_scenes(codec, shard, device))
    return data | read_looks(data["l"])


def read_looks(tokens: np.ndarray) -> Arrays:
    """Of the scenes whose tokens (n, 77) these are: `looks` (n, 2, LOOK) and `positions` (n, 2) of their class words.

    A position of -1 means that there is no second character.
    """
    looks = np.zeros((len(tokens), 2, LOOK), dtype=np.float32)
    positions = np.full((len(tokens), 2), -1, dtype=np.int64)
    ids = word_tokens(WORDS)
    for number, row in enumerate(tokens):
        for place, look in enumerate(start_scene(SEED, number)[1].looks):
            looks[number, place] = look_vector(look)
            positions[number, place] = row.tolist().index(ids[look.word])
    return {"looks": looks, "positions": positions}


@torch.no_grad()
def encode_scenes(codec: nn.Module, shard: int, device: torch.device) -> Arrays:
    """Latents (n, 4, 16, 16) as the UNet sees them, and token ids, of the shard's scenes."""
    scenes = [make_scene(SEED, shard * SHARD + number) for number in range(SHARD)]
    latents = []
    for start_of_batch in range(0, SHARD, 20):
        pixels = to_pixels(np.stack([scene.picture for scene in scenes[start_of_batch : start_of_batch + 20]])).to(
            device
        )
        with autocast(device):
            latents.append(codec.encode(pixels).float().cpu() * LATENT_SCALE)
    tokens = tokenize([scene.caption for scene in scenes])
    arrays = {key: ids.to(torch.int32).numpy() for key, ids in tokens.items()}
    masks = np.stack([masks_of_latents(scene) for scene in scenes])
    return {"latents": torch.cat(latents).half().numpy(), "masks": masks, **arrays}


def masks_of_latents(scene: Scene) -> np.ndarray:
    """How far each latent lies in each of up to two characters: (2, 16, 16) uint8."""
    covered = np.zeros((2, SIZE // 8, SIZE // 8), dtype=np.uint8)
    covered[: len(scene.masks)] = reduce(
        scene.masks.astype(np.float32), "s (h a) (w b) -> s h w", "mean", a=8, b=8
    ).round()
    return covered
