"""Trains the vision encoder, ComfyUI's CLIP vision model at a small size, to tell characters apart by their looks.

Two poses of a character attract each other (contrastive, as CLIP's), and heads that are thrown away afterwards read
every attribute from CLS and from the mean of the patches, so that both carry the looks.
"""

import logging
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor, nn

from mmdiff_model.training.plan import Plan

from ..drawn.drawing import reference
from ..drawn.labels import CHOICES, COLOURS, labels_of
from ..drawn.looks import sample_look
from ..drawn.poses import REFERENCE_ACTIONS
from ..family.models import VISION, VISION_ENCODER, build_vision
from ..family.pixels import normalise
from .gradients import encode_pixels
from .phase import Trainer, autocast, generator, training_device, write_weights
from .shards import Arrays, load_shards

PLAN = Plan(steps=3000, rate=1.5e-3, warmup=200, ema_steps=250, batch_size=64)
SEED = 2
SHARD, SHARDS, VIEWS = 250, 32, 3
TEMPERATURE = 0.1


class AttributeHeads(nn.Module):
    """Linear readings of every attribute from one vector."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.choices = nn.ModuleDict({name: nn.Linear(dim, len(options)) for name, options in CHOICES.items()})
        self.colours = nn.Linear(dim, 3 * len(COLOURS))

    def loss(self, features: Tensor, labels: Tensor, colours: Tensor, hats: Tensor) -> Tensor:
        """features (b, dim), labels (b, choices), colours (b, colours, 3) in 0..1, hats (b,): is there a hat to see?"""
        features = self.norm(features)
        heads = zip(self.choices.values(), labels.unbind(1), strict=True)
        total = sum(nn.functional.cross_entropy(head(features), label) for head, label in heads)
        error = (self.colours(features).view_as(colours) - colours).square().mean(dim=2)
        seen = torch.ones_like(error)
        seen[:, COLOURS.index("hat_colour")] = hats
        return total + 30 * (error * seen).mean()

    def accuracy(self, features: Tensor, labels: Tensor) -> dict[str, float]:
        """Share of right answers for each choice."""
        features = self.norm(features)
        return {
            name: (self.choices[name](features).argmax(dim=1) == label).float().mean().item()
            for name, label in zip(CHOICES, labels.unbind(1), strict=True)
        }


class VisionTraining(nn.Module):
    """The encoder with the heads of its training."""

    def __init__(self):
        super().__init__()
        self.encoder = build_vision()
        self.from_cls = AttributeHeads(VISION["projection_dim"])
        self.from_patches = AttributeHeads(VISION["hidden_size"])

    def loss(self, views: Tensor, labels: Tensor, colours: Tensor, hats: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """views (b, 2, 3, s, s) normalised -> contrastive loss plus attribute losses."""
        patches, cls = encode_pixels(self.encoder, views.flatten(0, 1))
        first, second = nn.functional.normalize(cls.float(), dim=1).view(len(views), 2, -1).unbind(1)
        likeness = first @ second.T / TEMPERATURE
        same = torch.arange(len(views), device=likeness.device)
        contrast = (nn.functional.cross_entropy(likeness, same) + nn.functional.cross_entropy(likeness.T, same)) / 2
        labels, colours, hats = (values.repeat_interleave(2, dim=0) for values in (labels, colours, hats))
        attributes = self.from_cls.loss(cls.float(), labels, colours, hats)
        of_patches = self.from_patches.loss(patches[:, 1:].float().mean(dim=1), labels, colours, hats)
        figures = {"contrast": contrast.detach(), "cls": attributes.detach(), "patches": of_patches.detach()}
        return contrast + attributes + of_patches, figures


def train_vision(folder: Path) -> bool:
    """Trains up to the plan's end and writes vision.safetensors; False if it was told to stop."""
    torch.manual_seed(SEED)
    device = training_device()
    data = load_shards(folder / "views", SHARDS, lambda shard: draw_views(SEED, shard, held_out=False))
    training = VisionTraining().to(device).requires_grad_(True)
    trainer = Trainer(VISION_ENCODER, PLAN, folder, training)
    if not trainer.train(lambda step: vision_loss(training, data, step, device)):
        return False
    training.load_state_dict(trainer.averaged())
    write_weights(folder, VISION_ENCODER, training.encoder.state_dict())
    logging.info("vision: accuracy on unseen characters %s", test_accuracy(training.eval(), device))
    return True


def vision_loss(
    training: VisionTraining, data: Arrays, step: int, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch of characters, each in two of its views."""
    random = generator(VISION_ENCODER, step)
    chosen = torch.randperm(len(data["views"]), generator=random)[: PLAN.batch_size].numpy()
    views = torch.rand(PLAN.batch_size, VIEWS, generator=random).argsort(dim=1)[:, :2].numpy()
    pixels = normalise(data["views"][chosen[:, None], views]).to(device)
    known = (torch.from_numpy(data[key][chosen]).to(device) for key in ("labels", "colours", "hats"))
    with autocast(device):
        return training.loss(pixels, *known)


def draw_views(seed: int, shard: int, held_out: bool) -> Arrays:
    """Characters in several poses with their attributes as numbers."""
    looks = [sample_look(Random(f"character {seed} {shard} {number} {held_out}"), held_out) for number in range(SHARD)]
    views = []
    for number, look in enumerate(looks):
        random = Random(f"views {seed} {shard} {number} {held_out}")
        actions = random.sample(REFERENCE_ACTIONS, VIEWS)
        views.append([reference(look, random, action, VISION["image_size"]) for action in actions])
    colours = np.array([[getattr(look, name) for name in COLOURS] for look in looks], dtype=np.float32) / 255
    hats = np.array([look.hat != "none" for look in looks], dtype=np.float32)
    labels = np.array([labels_of(look) for look in looks])
    return {"views": np.array(views), "labels": labels, "colours": colours, "hats": hats}


@torch.no_grad()
def test_accuracy(training: VisionTraining, device: torch.device) -> dict[str, dict[str, float]]:
    """How many choices of unseen characters the heads read right, from CLS and from patches."""
    data = draw_views(SEED + 1, 0, held_out=True)
    patches, cls = encode_pixels(training.encoder, normalise(data["views"][:, 0]).to(device))
    labels = torch.from_numpy(data["labels"]).to(device)
    from_patches = training.from_patches.accuracy(patches[:, 1:].mean(dim=1), labels)
    return {"cls": training.from_cls.accuracy(cls, labels), "patches": from_patches}
