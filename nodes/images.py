"""Reference photos and masks as they arrive from the graph, checked and brought to (H, W, 3) and (H, W)."""

import torch
from torch import Tensor, nn

BRIGHTEST = 16.0  # beyond it, no photo nor mask is of 0..1, whatever was added
DIVIDE = "Divide them by that of white, such as 255."


def photos_from(images: Tensor, source: str = "images") -> list[Tensor]:
    """IMAGE batch (B, H, W, C) -> B photos (H, W, 3). Grey is repeated, transparent pixels become white.

    source: the input that errors name. What is beyond 0..1 is cut off. Raises ValueError on an empty batch,
    NaN, what surely is of another scale, or a number of channels that is not a picture's.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(
            f"{source}: expected a batch of pictures, got shape {tuple(images.shape)}. Connect the output of Load "
            "Image."
        )
    images = images.float()
    for number, photo in enumerate(images, start=1):
        if not torch.isfinite(photo).all():
            raise ValueError(
                f"{source}: photo {number} holds NaN or infinite values. Check the node that made it, usually a VAE "
                "decode in half precision."
            )
        check_scale(source, f"photo {number}", photo)
    images, channels = images.clamp(0, 1).cpu(), images.shape[-1]
    if channels == 1:
        images = images.expand(-1, -1, -1, 3)
    elif channels == 4:
        alpha = images[..., 3:]
        images = images[..., :3] * alpha + (1 - alpha)
    elif channels != 3:
        raise ValueError(f"{source}: photos have {channels} channels, expected grey (1), RGB (3) or RGBA (4).")
    return list(images)


def masks_from(masks: Tensor, photos: list[Tensor]) -> list[Tensor]:
    """MASK (B, h, w) -> one (H, W) mask per photo; a single mask serves all photos, another size is resized.

    Raises ValueError on NaN, an all-zero mask, or a count that is neither 1 nor the photos'.
    """
    masks = check_mask("masks", masks)
    if len(masks) not in (1, len(photos)):
        raise ValueError(
            f"masks: got {len(masks)} masks for {len(photos)} photos. Give one mask, or one for each photo."
        )
    masks = masks.expand(len(photos), -1, -1)
    resized = [
        nn.functional.interpolate(mask[None, None], photo.shape[:2], mode="bilinear")[0, 0]
        for mask, photo in zip(masks, photos, strict=True)
    ]
    for number, mask in enumerate(resized, start=1):
        if not mask.any():
            raise ValueError(
                f"masks: the mask of photo {number} is empty. Paint the subject, or disconnect the masks to use "
                "whole photos."
            )
    return resized


def check_mask(name: str, mask: Tensor) -> Tensor:
    """MASK (h, w) or (B, h, w) -> (B, h, w) on the CPU, cut off to 0..1. Raises ValueError on NaN, another scale or
    shape."""
    mask = mask.float()
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(
            f"{name}: expected a mask, got shape {tuple(mask.shape)}. Connect a MASK, such as Load Image (as Mask) "
            "gives."
        )
    if not torch.isfinite(mask).all():
        raise ValueError(f"{name}: the mask holds NaN or infinite values. Check the node that made it.")
    if (highest := float(mask.max())) > BRIGHTEST:
        raise ValueError(f"{name}: the mask has values up to {highest:g}, where 0 is black and 1 is white. {DIVIDE}")
    return mask.cpu().clamp(0, 1)


def check_scale(source: str, what: str, photo: Tensor) -> None:
    """Raises ValueError naming the input where a photo's values are surely those of -1..1, or of 0..255 and the like.
    Contrast, sharpening and highlights go beyond 0..1 too."""
    lowest, highest = (float(end) for end in photo.aminmax())
    if lowest < -0.5 and highest <= 1.05:
        remedy = "Add 1 to them and halve them."
    elif lowest >= 0 and highest > BRIGHTEST and photo[photo > 0].median() > 1:
        remedy = DIVIDE
    else:
        return
    raise ValueError(
        f"{source}: {what} has values from {lowest:g} to {highest:g}, where 0 is black and 1 is white. {remedy}"
    )
