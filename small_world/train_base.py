"""Trains both text encoders and the UNet together, by noise prediction on cached latents of captioned scenes.

    python -m small_world.train_base --folder FOLDER

The captions say nothing of looks, so the base draws characters of any looks; the adapter is to decide them. In the last
stage a code of the look goes with most class words (see look_codes). One caption in ten is empty, for classifier-free
guidance. Needs codec.safetensors in FOLDER.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from .host import use_comfyui

use_comfyui()

import torch  # noqa: E402
from comfy.latent_formats import SDXL as SDXLLatents  # noqa: E402
from comfy.model_base import SDXL  # noqa: E402
from einops import reduce  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mmdiff_model.training.encoders import attend_by_products  # noqa: E402
from mmdiff_model.training.plan import Plan  # noqa: E402

from .drawing import SIZE  # noqa: E402
from .look_codes import LOOK, LookCodes, WordFocus, add_at, describe, word_tokens  # noqa: E402
from .looks import WORDS  # noqa: E402
from .models import CODEC, TEXT, TEXT_ENCODERS, UNET_MODEL, build_base, build_codec, build_text  # noqa: E402
from .scenes import Scene, make_scene, start_scene  # noqa: E402
from .shards import Arrays, load_shards  # noqa: E402
from .train_codec import to_pixels  # noqa: E402
from .training import Trainer, generator, start, training_device, write_weights  # noqa: E402
from .transformers import encode_tokens  # noqa: E402
from .vocabulary import tokenize  # noqa: E402

SEED = 3
SHARD, SHARDS = 500, 60
EMPTY = 0.1
CODES = "codes"
NOTHING: Mapping[str, Tensor] = MappingProxyType({})
LATENT_SCALE = SDXLLatents().scale_factor
Weighting = Callable[[Tensor], Tensor]


def details_first(sigma: Tensor) -> Tensor:
    """Min-SNR: the noise that hides no more than details counts most."""
    return (5 * sigma**2).clamp(max=1)


def layout_first(sigma: Tensor) -> Tensor:
    """SNR + 1, as where velocity is predicted: noise that hides who stands where counts as much as any other."""
    return (1 + sigma**2).clamp(max=5)


@dataclass(frozen=True)
class Stage:
    """One schedule of the training, from where the stage before it ended, with weights for the noise levels' errors."""

    name: str
    plan: Plan
    weighting: Weighting
    told: float = 0.0  # the share of captions whose class words carry codes of the looks
    focus: float = 0.0  # weight of the balance that holds the class words' attention to their characters


PLAN = Plan(steps=6000, rate=1e-3, warmup=300, ema_steps=500, batch_size=32)
STAGES = (
    Stage("base", replace(PLAN, precision="bf16"), details_first),
    Stage("layout", replace(PLAN, steps=2700), layout_first),
    Stage("looks", replace(PLAN, steps=3500), layout_first, told=0.7, focus=0.03),
)


def train_base(folder: Path) -> bool:
    """Trains up to the plan's end and writes text.safetensors and unet.safetensors, also if told to stop (False)."""
    torch.manual_seed(SEED)
    device = training_device()
    codec = load_codec(folder, device)
    data = load_shards(folder / "latents", SHARDS, lambda shard: encode_scenes(codec, shard, device))
    data |= read_looks(data["l"])
    base = build_base(device)
    parts = {TEXT_ENCODERS: build_text(), UNET_MODEL: base.diffusion_model}
    for stage in STAGES:
        modules = modules_of(stage, parts, device)
        trainer = Trainer(stage.name, stage.plan, folder, modules)
        finished = trainer.train(partial(base_loss, stage, base, modules, data, device))
        export_base(folder, trainer.averaged())
        if not finished:
            return False
        modules.load_state_dict(trainer.averaged())
    return True


def modules_of(stage: Stage, base: dict[str, nn.Module], device: torch.device) -> nn.ModuleDict:
    """What a stage trains: the base, and the codes of looks where they are told."""
    codes = {CODES: LookCodes()} if stage.told else {}
    return nn.ModuleDict({**base, **codes}).to(device).requires_grad_(True)


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
    context, pooled = encode_text(modules[TEXT_ENCODERS], tokens, added)
    focus = WordFocus(positions, torch.from_numpy(data["masks"][chosen]).to(device) / 255) if stage.focus else None
    predicted = predict_noise(base, latents, noise, steps, context, pooled, focus or attend_by_products)
    error = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
    sigma = base.model_sampling.sigmas[steps.cpu()].to(device)
    loss, figures = (stage.weighting(sigma) * error).mean(), {"error": error.detach().mean()}
    if focus is not None:
        balance = focus.balance()
        loss, figures = loss + stage.focus * balance, {**figures, "focus": balance.detach()}
    return loss, figures


def encode_text(
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


def read_looks(tokens: np.ndarray) -> Arrays:
    """Of the scenes whose tokens (n, 77) these are: `looks` (n, 2, LOOK) and `positions` (n, 2) of their class words.

    A position of -1 means that there is no second character.
    """
    looks = np.zeros((len(tokens), 2, LOOK), dtype=np.float32)
    positions = np.full((len(tokens), 2), -1, dtype=np.int64)
    ids = word_tokens(WORDS)
    for number, row in enumerate(tokens):
        for place, look in enumerate(start_scene(SEED, number)[1].looks):
            looks[number, place] = describe(look)
            positions[number, place] = row.tolist().index(ids[look.word])
    return {"looks": looks, "positions": positions}


@torch.no_grad()
def encode_scenes(codec: nn.Module, shard: int, device: torch.device) -> Arrays:
    """Latents (n, 4, 16, 16) as the UNet sees them, and token ids, of the shard's scenes."""
    scenes = [make_scene(SEED, shard * SHARD + number) for number in range(SHARD)]
    latents = []
    for start_of_batch in range(0, SHARD, 20):
        pixels = to_pixels(np.stack([scene.picture for scene in scenes[start_of_batch : start_of_batch + 20]])).to(
            device
        )
        with torch.autocast(device.type, torch.bfloat16):
            latents.append(codec.encode(pixels).float().cpu() * LATENT_SCALE)
    tokens = tokenize([scene.caption for scene in scenes])
    arrays = {key: ids.to(torch.int32).numpy() for key, ids in tokens.items()}
    masks = np.stack([masks_of_latents(scene) for scene in scenes])
    return {"latents": torch.cat(latents).half().numpy(), "masks": masks, **arrays}


def masks_of_latents(scene: Scene) -> np.ndarray:
    """How far each latent lies in each of up to two characters: (2, 16, 16) uint8."""
    covered = np.zeros((2, SIZE // 8, SIZE // 8), dtype=np.uint8)
    covered[: len(scene.masks)] = reduce(
        scene.masks.astype(np.float32), "s (h a) (w b) -> s h w", "mean", a=8, b=8
    ).round()
    return covered


def load_codec(folder: Path, device: torch.device) -> nn.Module:
    """The trained codec. Raises FileNotFoundError before the codec's phase has ended."""
    codec = build_codec()
    codec.load_state_dict(load_file(folder / f"{CODEC}.safetensors"))
    return codec.to(device).eval()


if __name__ == "__main__":
    train_base(start(argparse.ArgumentParser(description=__doc__)).folder)
