"""Pictures as the server stores them."""

import io

import numpy as np
from PIL import Image


def pixels(picture: bytes) -> np.ndarray:
    """A stored picture -> (H, W, 3) uint8."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
