"""Pictures as the models take them."""

import numpy as np
import torch
from torch import Tensor

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def to_pixels(pictures: np.ndarray) -> Tensor:
    """(b, h, w, 3) uint8 -> (b, 3, h, w) in -1..1, as ComfyUI's VAE gives them to its module."""
    # channels first in memory too: on a CPU GroupNorm's gradient is 80 times faster so
    return torch.from_numpy(pictures).movedim(-1, 1).contiguous().float() / 127.5 - 1


def normalise(pictures: np.ndarray) -> Tensor:
    """(..., s, s, 3) uint8 -> (..., 3, s, s) as ComfyUI's CLIP vision preprocesses."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (torch.from_numpy(pictures).movedim(-1, -3).contiguous().float() / 255 - mean) / std
