"""Trains the codec, ComfyUI's AutoencoderKL at a small size, on scenes drawn as it goes.

Characters count three times as much as the background. At the end the latents are scaled to SDXL's format.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from comfy.latent_formats import SDXL
from comfy.ldm.models.autoencoder import AutoencoderKL
from torch import Tensor

from mmdiff_model.training.plan import Plan

from ..drawn.scenes import make_scene
from ..family.models import CODEC, build_codec
from ..family.pixels import to_pixels
from .phase import Trainer, autocast, generator, training_device, write_weights

PLAN = Plan(steps=4000, rate=2e-3, warmup=200, ema_steps=250, batch_size=8)
SEED = 1
KL_WEIGHT = 1e-4
CHARACTER_WEIGHT = 2.0
TEST_PICTURES = 64


def train_codec(folder: Path) -> bool:
    """Trains up to the plan's end and writes codec.safetensors; False if it was told to stop."""
    torch.manual_seed(SEED)
    device = training_device()
    codec = build_codec().to(device).requires_grad_(True)
    trainer = Trainer(CODEC, PLAN, folder, codec)
    if not trainer.train(lambda step: codec_loss(codec, step, device)):
        return False
    codec.load_state_dict(trainer.averaged())
    codec.eval()
    scale_latents(codec, test_pictures(device, held_out=False))
    write_weights(folder, CODEC, codec.state_dict())
    logging.info("codec: %.2f dB on unseen scenes", psnr(codec, test_pictures(device, held_out=True)))
    return True


def codec_loss(codec: AutoencoderKL, step: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared and absolute error of a batch of scenes, and the latents' KL divergence from noise."""
    scenes = [make_scene(SEED, step * PLAN.batch_size + number) for number in range(PLAN.batch_size)]
    pixels = to_pixels(np.stack([scene.picture for scene in scenes])).to(device)
    masks = torch.from_numpy(np.stack([scene.masks.max(axis=0) for scene in scenes]))[:, None].to(device) / 255
    with autocast(device):
        mean, log_variance = codec.quant_conv(codec.encoder(pixels)).float().chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=generator(CODEC, step)).to(device)
        log_variance = log_variance.clamp(-20, 10)
        decoded = codec.decode(mean + (0.5 * log_variance).exp() * noise).float()
    error = decoded - pixels
    weights = 1 + CHARACTER_WEIGHT * masks
    squared = (weights * error.square()).mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    loss = 0.5 * squared + 0.5 * (weights * error.abs()).mean() + KL_WEIGHT * divergence
    return loss, {"psnr": -10 * (error.detach().square().mean() / 4).log10(), "kl": divergence.detach()}


@torch.no_grad()
def scale_latents(codec: AutoencoderKL, pixels: Tensor) -> None:
    """Scales and shifts the latents into SDXL's format: each channel of zero mean and unit deviation once scaled.

    The decoder's first layer undoes it, so that pictures stay as they were.
    """
    latents = codec.encode(pixels)
    mean = latents.mean(dim=(0, 2, 3))
    gain = 1 / (latents.std(dim=(0, 2, 3)) * SDXL().scale_factor)
    channels = len(mean)
    into, out = codec.quant_conv, codec.post_quant_conv
    into.weight[:channels] *= gain.view(-1, 1, 1, 1)
    into.bias[:channels] = (into.bias[:channels] - mean) * gain
    into.bias[channels:] += 2 * gain.log()
    out.bias += (out.weight * mean.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))
    out.weight /= gain.view(1, -1, 1, 1)


@torch.no_grad()
def psnr(codec: AutoencoderKL, pixels: Tensor) -> float:
    """Peak signal to noise ratio in dB of pixels (b, 3, h, w) in -1..1 through encoder and decoder."""
    error = codec.decode(codec.encode(pixels)).clamp(-1, 1) - pixels
    return -10 * (error.square().mean() / 4).log10().item()


def test_pictures(device: torch.device, held_out: bool) -> Tensor:
    scenes = [make_scene(SEED + 1, number, held_out) for number in range(TEST_PICTURES)]
    return to_pixels(np.stack([scene.picture for scene in scenes])).to(device)
