"""Whether a soak's pictures are pictures, and those of a workflow that runs again the same."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence


def digests(files: Sequence[bytes]) -> list[str]:
    """Names each picture by its size and pixels. Raises ValueError on one of a single colour, as NaN paints."""
    from PIL import Image

    found = []
    for file in files:
        picture = Image.open(io.BytesIO(file)).convert("RGB")
        if all(low == high for low, high in picture.getextrema()):
            raise ValueError(f"a picture of the one colour {picture.getpixel((0, 0))}")
        found.append(f"{picture.size} {hashlib.sha256(picture.tobytes()).hexdigest()}")
    return found


def look(files: Sequence[bytes], latent: dict, first: Sequence[str] | None) -> list[str]:
    """The digests of a job's pictures. Raises ValueError where they are not as many as the latent's inputs ask for, of
    another size, of a single colour, or others than those of the first time."""
    found = digests(files)
    size = f"({latent['width']}, {latent['height']})"
    if len(found) != latent["batch_size"] or not all(picture.startswith(f"{size} ") for picture in found):
        raise ValueError(f"{[picture.rpartition(' ')[0] for picture in found]}, not {latent['batch_size']} of {size}")
    if first and found != first:
        raise ValueError("another picture than the first time")
    return found
