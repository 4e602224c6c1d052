"""Trains the reader that the evaluation looks with, on scenes of all characters, drawn and through the codec.

Half of each batch is drawn as it goes; the other half was decoded from latents with a little noise, as generated
pictures are. All are moved, blurred and made noisy by a little. Needs codec.safetensors in FOLDER.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mmdiff_model.training.plan import Plan

from ..drawn.scenes import Content, Scene, make_scene
from ..family.models import load_codec
from ..family.pixels import to_pixels
from ..measured.cases import draw_cases, draw_truths
from ..measured.reader import CHARACTER, COLOURS, READER, SCENE, Reader, labels_of_contents, load_reader
from ..measured.scores import means, score_all
from .base_data import LATENT_SCALE
from .phase import Trainer, autocast, generator, training_device, write_weights
from .shards import Arrays, load_shards

PLAN = Plan(steps=6000, rate=3e-3, warmup=200, ema_steps=200, batch_size=32)
SEED = 5
SHARD, SHARDS = 500, 16
DECODED = SHARD * SHARDS  # the scenes of this number and above are drawn as training goes
LATENT_NOISE = 0.25
SHIFT = 4
COLOUR_WEIGHT = 20.0


def train_reader(folder: Path) -> bool:
    """Trains up to the plan's end and writes reader.safetensors; False if it was told to stop."""
    torch.manual_seed(SEED)
    device = training_device()
    codec = load_codec(folder, device)
    data = load_shards(folder / "decoded", SHARDS, lambda shard: decode_scenes(codec, shard, device))
    reader = Reader().to(device)
    trainer = Trainer(READER, PLAN, folder, reader)
    if not trainer.train(lambda step: reader_loss(reader, data["pictures"], step, device)):
        return False
    write_weights(folder, READER, trainer.averaged())
    cases = draw_cases(SEED, characters=1, count=200)
    contents = load_reader(folder).read(draw_truths(cases), characters=1)
    logging.info("reader: right on drawn unseen characters %s", means(score_all(cases, contents)))
    return True


def reader_loss(
    reader: Reader, decoded: np.ndarray, step: int, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy of every choice, and the absolute error of the colours that can be seen."""
    random = generator(READER, step)
    chosen = torch.randint(DECODED, (PLAN.batch_size // 2,), generator=random).tolist()
    drawn = [scene_of(DECODED + step * (PLAN.batch_size // 2) + number) for number in range(PLAN.batch_size // 2)]
    pictures = np.concatenate([decoded[chosen], [scene.picture for scene in drawn]])
    contents = [content_of(scene_of(number)) for number in chosen] + [content_of(scene) for scene in drawn]
    labels = {name: label.to(device) for name, label in labels_of_contents(contents).items()}
    pixels = disturb(to_pixels(pictures), random).to(device)
    with autocast(device):
        seen, scenes = reader(pixels, [len(content.looks) for content in contents])
    entropy = [nn.functional.cross_entropy(seen[name].float(), labels[name]) for name in CHARACTER]
    entropy += [nn.functional.cross_entropy(scenes[name].float(), labels[name]) for name in SCENE]
    errors = {name: (seen[name].float() - labels[name]).abs().mean(dim=1) for name in COLOURS}
    errors["hat_colour"] = errors["hat_colour"] * (labels["hat"] != 0)
    choices, colours = torch.stack(entropy).sum(), torch.stack(list(errors.values())).mean()
    return choices + COLOUR_WEIGHT * colours, {"choices": choices.detach(), "colours": colours.detach()}


def scene_of(number: int) -> Scene:
    """Every other scene has characters as the evaluation has them: a measure must know what it measures."""
    return make_scene(SEED, number, held_out=number % 2 == 1)


def content_of(scene: Scene) -> Content:
    """What the scene shows, its characters from left to right."""
    columns = np.arange(scene.masks.shape[2])
    order = np.argsort([(mask.sum(axis=0) * columns).sum() / mask.sum() for mask in scene.masks.astype(np.float32)])
    looks, actions = (tuple(values[number] for number in order) for values in (scene.looks, scene.actions))
    return Content(looks, actions, scene.place, scene.night)


def disturb(pixels: Tensor, random: torch.Generator) -> Tensor:
    """Pixels (b, 3, h, w) in -1..1, each picture moved by up to SHIFT pixels, half of them blurred, with noise."""
    height, width = pixels.shape[2:]
    padded = nn.functional.pad(pixels, (SHIFT,) * 4, mode="replicate")
    corners = torch.randint(2 * SHIFT + 1, (len(pixels), 2), generator=random).tolist()
    moved = torch.stack(
        [picture[:, y : y + height, x : x + width] for picture, (y, x) in zip(padded, corners, strict=True)]
    )
    blurred = nn.functional.avg_pool2d(moved, 3, stride=1, padding=1, count_include_pad=False)
    part = (torch.rand(len(pixels), 1, 1, 1, generator=random) * 2 - 1).clamp(min=0)
    strength = 0.1 * torch.rand(len(pixels), 1, 1, 1, generator=random)
    return moved.lerp(blurred, part) + strength * torch.randn(moved.shape, generator=random)


@torch.no_grad()
def decode_scenes(codec: nn.Module, shard: int, device: torch.device) -> Arrays:
    """Pictures (n, 128, 128, 3) uint8 of the shard's scenes, decoded from their latents with noise."""
    pictures = []
    random = generator("decoded", shard)
    for first in range(shard * SHARD, (shard + 1) * SHARD, 20):
        drawn = np.stack([scene_of(number).picture for number in range(first, first + 20)])
        with autocast(device):
            latents = codec.encode(to_pixels(drawn).to(device)).float()
            strength = LATENT_NOISE / LATENT_SCALE * torch.rand(len(latents), 1, 1, 1, generator=random)
            noise = torch.randn(latents.shape, generator=random)
            decoded = codec.decode(latents + (strength * noise).to(device)).float()
        pictures.append(((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().movedim(1, -1).cpu().numpy())
    return {"pictures": np.concatenate(pictures)}
