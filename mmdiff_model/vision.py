"""Vision encoder: CLIP ViT-L/14 gives CLS (tuned weights) and patch embeddings (base weights) of reference photos.

Both views share one copy of CLIP in memory: the tuned one is the CLIP_VISION socket's patcher with "set" weight
patches.
"""

import logging

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from .checkpoint import Checkpoint

logger = logging.getLogger(__name__)
STRIP = 64  # rows at a time
LONG = 8  # times as high as wide


def check_clip_vision(clip_vision: ClipVisionModel, checkpoint: Checkpoint) -> None:
    """Raises ValueError unless this CLIP's sizes are the checkpoint's (ViT-L/14: 1024 and 768), and so its layers."""
    width, projection = clip_vision.config.get("hidden_size"), clip_vision.config.get("projection_dim")
    wanted = (checkpoint.sizes.patch_dim, checkpoint.sizes.cls_dim)
    if (width, projection) != wanted:
        raise ValueError(
            f"clip_vision: this model has width {width} and projection {projection}, the MM-Diff checkpoint needs "
            f"{wanted[0]} and {wanted[1]}. Load CLIP ViT-L/14 (openai/clip-vit-large-patch14) in the CLIP Vision "
            "loader."
        )
    shapes = {key: weight.shape for key, weight in clip_vision.model.state_dict().items()}
    for key, weight in checkpoint.vision.items():
        if shapes.get(key) != weight.shape:
            raise ValueError(
                f"clip_vision: the checkpoint '{checkpoint.name}' tunes '{key}' of shape {tuple(weight.shape)}, which "
                "this model lacks. Load CLIP ViT-L/14 (openai/clip-vit-large-patch14) in the CLIP Vision loader."
            )
    if next(clip_vision.model.parameters()).dtype.itemsize == 1:
        logger.warning(
            "MM-Diff: clip_vision is stored in 8 bits, which costs likeness. ComfyUI's --fp8_e4m3fn-text-enc and "
            "--fp8_e5m2-text-enc count for CLIP vision too: start it without."
        )


def segment(photo: Tensor, mask: Tensor) -> Tensor:
    """The subject cut out of (H, W, 3) by a (H, W) mask: cropped to its box, on plain white (paper, method figure)."""
    rows, columns = mask.amax(dim=1).nonzero()[:, 0], mask.amax(dim=0).nonzero()[:, 0]
    box = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    alpha = mask[box].unsqueeze(-1)
    return photo[box] * alpha + (1 - alpha)


def resize(photo: Tensor, size: int) -> Tensor:
    """(H, W, 3) in 0..1 -> (size, size, 3): antialiased bilinear on 8-bit values, as released datasets.py."""
    pixels = (photo * 255).round().movedim(-1, 0)
    if pixels.shape[1:] != (size, size):
        pixels = _resample(pixels, (size, size)).round()
    return pixels.movedim(0, -1) / 255


def resize_square(photo: Tensor, size: int, fill: float) -> Tensor:
    """`resize` of a square with the photo in the middle; an odd difference leaves it a pixel off square, as released.

    That square is never built, for of a narrow photo it takes gigabytes. To the bit, as resizing takes rows first and
    columns then; a photo that is LONG takes its columns first, and may be a step of 1/255 off in a few pixels.
    """
    height, width = photo.shape[:2]
    if height > LONG * width:
        return resize_square(photo.transpose(0, 1), size, fill).transpose(0, 1)
    pixels, side, fill = (photo * 255).round().movedim(-1, 0), abs(height - width) // 2, fill * 255
    beside, above = (side, 0) if height > width else (0, side)
    strips = (nn.functional.pad(strip, (beside, beside), value=fill) for strip in pixels.split(STRIP, dim=1))
    narrow = torch.cat([_resample(strip, (strip.shape[1], size)) for strip in strips], dim=1)
    square = nn.functional.pad(narrow, (0, 0, above, above), value=fill)
    return _resample(square, (size, size)).round().movedim(0, -1) / 255


def _resample(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    return nn.functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]


@torch.no_grad()
def encode_cls(clip_vision: ClipVisionModel, checkpoint: Checkpoint, photos: list[Tensor], fill: float = 0.0) -> Tensor:
    """Photos (H, W, 3) in 0..1, any sizes -> projected CLS of the tuned encoder, (n, 768) float32 on the CPU."""
    squares = torch.stack([resize_square(photo, clip_vision.image_size, fill) for photo in photos])
    return _run(clip_vision, tuned(clip_vision, checkpoint), squares)[2]


@torch.no_grad()
def encode_patches(clip_vision: ClipVisionModel, crops: list[Tensor]) -> Tensor:
    """Crops (224, 224, 3) in 0..1 -> hidden_states[-2] of the base encoder, (n, 257, 1024) float32 on the CPU."""
    return _run(clip_vision, clip_vision.patcher, torch.stack(crops))[1]


def tuned(clip_vision: ClipVisionModel, checkpoint: Checkpoint) -> ModelPatcher:
    """The socket's patcher with the checkpoint's vision weights in place of the base ones."""
    patcher = clip_vision.patcher.clone()
    patcher.add_patches({key: ("set", (weight,)) for key, weight in checkpoint.vision.items()})
    return patcher


def _run(clip_vision: ClipVisionModel, patcher: ModelPatcher, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    comfy.model_management.load_model_gpu(patcher)
    pixels = images.to(patcher.load_device).movedim(-1, 1)
    mean, std = (
        torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in (clip_vision.image_mean, clip_vision.image_std)
    )
    last, penultimate, projected = clip_vision.model(pixel_values=(pixels - mean) / std, intermediate_output=-2)[:3]
    return last.float().cpu(), penultimate.float().cpu(), projected.float().cpu()
