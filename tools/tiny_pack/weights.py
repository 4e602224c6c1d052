"""Weights from a name, a shape and a seed: nothing has to be stored, and every machine gets the same bits.

Names are those of the released code's libraries (diffusers, transformers), so that reference values computed with it
apply.
"""

import zlib

import numpy as np
import torch
from torch import Tensor

EMBEDDINGS = ("token_embedding", "position_embedding")


def generator(name: str, seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def weight(name: str, shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    """A float32 parameter, scaled by its kind so that activations keep their size through the layers."""
    if name.endswith("logit_scale"):
        return torch.full(tuple(shape), 4.6055)
    noise = generator(name, seed).standard_normal(tuple(shape))
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    *_, parent, leaf = ("", *name.split("."))
    if leaf == "class_embedding" or parent in EMBEDDINGS:
        values = 0.5 * noise
    elif "lora" in name and parent == "up":
        values = 0.3 * noise / np.sqrt(fan_in)
    elif leaf == "bias":
        values = 0.1 * noise
    elif len(shape) == 1:
        values = 1.0 + 0.1 * noise
    elif name.endswith("face_embeds_proj.proj.0.weight"):
        values = noise
    else:
        values = noise / np.sqrt(fan_in)
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def noise(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Standard normal float32."""
    return torch.from_numpy(generator(name, seed).standard_normal(shape).astype(np.float32))


def smooth_picture(coarse: np.ndarray, height: int, width: int) -> Tensor:
    """A grid of 8-bit colours (g, g, 3), enlarged bilinearly to (height, width, 3) in 0..1 with 8-bit steps."""

    def axis(size: int) -> tuple[np.ndarray, np.ndarray]:
        position = np.arange(size, dtype=np.float64) * (len(coarse) - 1) / max(size - 1, 1)
        low = np.minimum(position.astype(np.int64), len(coarse) - 2)
        return low, position - low

    coarse = coarse.astype(np.float64)
    (y, fy), (x, fx) = axis(height), axis(width)
    fy, fx = fy[:, None, None], fx[None, :, None]
    top = coarse[y][:, x] * (1 - fx) + coarse[y][:, x + 1] * fx
    bottom = coarse[y + 1][:, x] * (1 - fx) + coarse[y + 1][:, x + 1] * fx
    pixels = np.floor(top * (1 - fy) + bottom * fy + 0.5).clip(0, 255)
    return torch.from_numpy(pixels.astype(np.float32)) / 255
