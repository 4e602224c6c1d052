"""Reference photos and masks as they arrive from the graph, checked and brought to (H, W, 3) and (H, W)."""

import torch
from torch import Tensor, nn

LOWEST, HIGHEST = -0.5, 16.0  # beyond them a picture is of another scale, as 0..255 and -1..1 are


def photos_from(images: Tensor, source: str = "images") -> list[Tensor]:
    """IMAGE batch (B, H, W, C) -> B photos (H, W, 3). Grey is repeated, transparent pixels become white.

    source: the input that errors name. Raises ValueError on an empty batch, NaN, another scale than 0..1, or a number
    of channels that is not a picture's.
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
    images, channels = images.clamp(0, 1), images.shape[-1]
    if channels == 1:
        images = images.expand(-1, -1, -1, 3)
    elif channels == 4:
        alpha = images[..., 3:]
        images = images[..., :3] * alpha + (1 - alpha)
    elif channels != 3:
        raise ValueError(f"{source}: photos have {channels} channels, expected grey (1), RGB (3) or RGBA (4).")
    return list(images.clamp(0, 1).cpu())


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
    """MASK (h, w) or (B, h, w) -> (B, h, w) in 0..1 on the CPU. Raises ValueError on NaN, another scale or shape."""
    mask = mask.float()
    mask = mask[None] if mask.ndim == 2 else mask
    if mask.ndim != 3 or 0 in mask.shape:
        raise ValueError(
            f"{name}: expected a mask, got shape {tuple(mask.shape)}. Connect a MASK, such as Load Image (as Mask) "
            "gives."
        )
    if not torch.isfinite(mask).all():
        raise ValueError(f"{name}: the mask holds NaN or infinite values. Check the node that made it.")
    check_scale(name, "the mask", mask)
    return mask.cpu().clamp(0, 1)


def check_scale(source: str, what: str, values: Tensor) -> None:
    """Raises ValueError naming the input unless its values are about 0..1; what is slightly beyond is cut off."""
    lowest, highest = (float(end) for end in values.aminmax())
    if lowest < LOWEST or highest > HIGHEST:
        raise ValueError(
            f"{source}: {what} has values from {lowest:g} to {highest:g}, where 0 is black and 1 is white. Bring it to "
            "that scale: of 0 to 255 by dividing, of -1 to 1 by adding 1 and halving."
        )
