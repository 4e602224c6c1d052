"""Trains both text encoders and the UNet together, by noise prediction on cached latents of captioned scenes.

The captions say nothing of looks, so the base draws characters of any looks; the adapter is to decide them. In the last
stages a code of the look goes with most class words (see look_codes), whose attention is held to their characters (see
word_focus). One caption in ten is empty, for classifier-free guidance. Needs codec.safetensors in FOLDER.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import torch
from comfy.model_base import SDXL
from torch import Tensor, nn

from mmdiff_model.training.encoders import attend_by_products
from mmdiff_model.training.plan import Plan

from ..family.models import TEXT, TEXT_ENCODERS, UNET_MODEL, build_base, build_text
from ..family.vocabulary import tokenize
from .base_data import SEED, load_data
from .gradients import encode_tokens
from .look_codes import LookCodes, add_at
from .phase import Trainer, generator, training_device, write_weights
from .shards import Arrays
from .word_focus import WordFocus

EMPTY = 0.1
CODES = "codes"
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
Weighting = Callable[[Tensor], Tensor]


def min_snr(sigma: Tensor) -> Tensor:
    """min(1, 5 / SNR): noise that hides no more than details counts least."""
    return (5 * sigma**2).clamp(max=1)


def layout_first(sigma: Tensor) -> Tensor:
    """min(1 + 1 / SNR, 5), as where velocity is predicted: noise that hides who stands where counts most."""
    return (1 + sigma**2).clamp(max=5)


@dataclass(frozen=True)
class Stage:
    """One schedule of the training, from where the stage before it ended, with weights for the noise levels' errors."""

    name: str
    plan: Plan
    weighting: Weighting
    told: float = 0.0  # the share of captions whose class words carry codes of the looks
    focus: float = 0.0  # weight of the balance that holds the class words' attention to their characters
    characters: float = 0.0  # what the error of their latents counts beyond the background's


PLAN = Plan(steps=6000, rate=1e-3, warmup=300, ema_steps=500, batch_size=32)
STAGES = (
    Stage("base", replace(PLAN, precision="bf16"), min_snr),
    Stage("layout", replace(PLAN, steps=2700), layout_first),
    Stage("looks", replace(PLAN, steps=3500), layout_first, told=0.7, focus=0.03),
    Stage("characters", replace(PLAN, steps=6000), layout_first, told=0.85, focus=0.03, characters=4.0),
)


def train_base(folder: Path) -> bool:
    """Trains up to the plan's end and writes text.safetensors and unet.safetensors, also if told to stop (False)."""
    torch.manual_seed(SEED)
    device = training_device()
    data = load_data(folder, device)
    base = build_base(device)
    parts = {TEXT_ENCODERS: build_text(), UNET_MODEL: base.diffusion_model}
    codes = LookCodes()
    for stage in STAGES:
        modules = modules_of(stage, parts, codes).to(device)
        trainer = Trainer(stage.name, stage.plan, folder, modules)
        finished = trainer.train(partial(base_loss, stage, base, modules, data, device))
        export_base(folder, trainer.averaged())
        if not finished:
            return False
        modules.load_state_dict(trainer.averaged())
    return True


def modules_of(stage: Stage, base: dict[str, nn.Module], codes: LookCodes) -> nn.ModuleDict:
    """What a stage trains: the base, and the codes of looks where they are told."""
    return nn.ModuleDict({**base, CODES: codes} if stage.told else base).requires_grad_(True)


def export_base(folder: Path, state: dict[str, Tensor]) -> None:
    """Writes text.safetensors and unet.safetensors from the state of both."""
    for name in (TEXT_ENCODERS, UNET_MODEL):
        tensors = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
        write_weights(folder, name, tensors)


def base_loss(
    stage: Stage, base: SDXL, modules: nn.ModuleDict, data: Arrays, device: torch.device, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Squared error of the predicted noise on a batch of latents, weighted as the stage does."""
    batch = stage.plan.batch_size
    random = generator(stage.name, step)
    chosen = torch.randint(len(data["latents"]), (batch,), generator=random).numpy()
    latents = torch.from_numpy(data["latents"][chosen]).float().to(device)
    empty = tokenize([""])
    dropped = (torch.rand(batch, generator=random) < EMPTY)[:, None]
    written = {key: torch.from_numpy(data[key][chosen]).long() for key in empty}
    tokens = {key: torch.where(dropped, empty[key], written[key]).to(device) for key in empty}
    steps = torch.randint(1000, (batch,), generator=random).to(device)
    noise = torch.randn(latents.shape, generator=random).to(device)
    positions = torch.from_numpy(data["positions"][chosen]).masked_fill(dropped, -1).to(device)
    added = {}
    if stage.told:
        kept = (torch.rand(batch, generator=random) < stage.told)[:, None].to(device)
        codes = modules[CODES](torch.from_numpy(data["looks"][chosen]).to(device))
        told = positions.masked_fill(~kept, -1)
        added = {key: add_at(told, code, tokens["l"].shape[1]) for key, code in codes.items()}
    context, pooled = encode_ids(modules[TEXT_ENCODERS], tokens, added)
    masks = torch.from_numpy(data["masks"][chosen]).to(device) / 255
    focus = WordFocus(positions, masks) if stage.focus else None
    predicted = predict_noise(base, latents, noise, steps, context, pooled, focus or attend_by_products)
    counted = 1 + stage.characters * masks.amax(dim=1)
    error = ((predicted.float() - noise).square().mean(dim=1) * counted).sum(dim=(1, 2)) / counted.sum(dim=(1, 2))
    sigma = base.model_sampling.sigmas[steps.cpu()].to(device)
    loss, figures = (stage.weighting(sigma) * error).mean(), {"error": error.detach().mean()}
    if focus is not None:
        balance = focus.balance()
        loss, figures = loss + stage.focus * balance, {**figures, "focus": balance.detach()}
    return loss, figures


def encode_ids(
    text: nn.ModuleDict, tokens: dict[str, Tensor], added: Mapping[str, Tensor] = NOTHING
) -> tuple[Tensor, Tensor]:
    """Token ids (b, 77) of both encoders -> context (b, 77, 160) and pooled (b, 96), as SDXLClipModel gives them.

    added: what is added to the token embeddings (b, 77, dim), by encoder.
    """
    hidden, pooled = zip(
        *(encode_tokens(text[key], tokens[key.removeprefix("clip_")], added.get(key, 0.0)) for key in TEXT),
        strict=True,
    )
    return torch.cat(hidden, dim=2), pooled[1]


def predict_noise(
    base: SDXL,
    latents: Tensor,
    noise: Tensor,
    steps: Tensor,
    context: Tensor,
    pooled: Tensor,
    attention: Callable = attend_by_products,
) -> Tensor:
    """The UNet's prediction for latents of unit deviation, with noise of the training steps (b,) mixed in.

    attention: what stands in for the host's.
    """
    sigma = base.model_sampling.sigmas.to(latents)[steps].view(-1, 1, 1, 1)
    noisy = base.model_sampling.calculate_input(sigma, latents + sigma * noise)
    height, width = (8 * side for side in latents.shape[2:])
    sizes = base.encode_adm(pooled_output=pooled, height=height, width=width, device=latents.device)
    options = {"optimized_attention_override": attention}
    return base.diffusion_model(noisy, steps, context=context, y=sizes, transformer_options=options)
