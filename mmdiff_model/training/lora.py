"""LoRAs under training: low-rank terms added by hooks to the frozen projections that MM-Diff adapts.

Names are the checkpoint's, so that what is trained here is loaded as the weight patches of `mmdiff_model.lora`.
"""

import re
from collections.abc import Iterable

import comfy.lora
import comfy.utils
import torch
from comfy.model_base import BaseModel
from torch import Tensor, nn

from ..sampling.projection import lora_delta

UNET_KEY = re.compile(r"unet\.(.+\.attn[12]\.processor\.to_(?:q|k|v|out))")
TEXT_KEY = re.compile(r"text_encoder(?:_2)?\.text_model\.encoder\.layers\.\d+\.self_attn\.(?:q|k|v|out)_proj")
IMAGE_KEY = re.compile(r".+\.attn2\.processor\.to_[kv]")


class LoRA(nn.Module):
    """up(down(x)): down (rank, in) starts at random, up (out, rank) at zero, so that training starts from the base."""

    def __init__(self, weight: Tensor, rank: int):
        super().__init__()
        size_out, size_in = weight.shape
        self.down = nn.Parameter(torch.empty(rank, size_in, device=weight.device))
        self.up = nn.Parameter(torch.zeros(size_out, rank, device=weight.device))
        if not weight.is_meta:
            nn.init.normal_(self.down, std=1 / rank)

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        return self.down, self.up

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Forward hook of the projection that is adapted."""
        return output + lora_delta(inputs[0], self.pair)


class LoRAs(nn.Module):
    """LoRAs by their key in the checkpoint: `names[i]` is that of `layers[i]`."""

    def __init__(self, weights: dict[str, Tensor], rank: int):
        super().__init__()
        self.names = tuple(weights)
        self.layers = nn.ModuleList(LoRA(weight, rank) for weight in weights.values())

    def __getitem__(self, name: str) -> LoRA:
        return self.layers[self.names.index(name)]


def unet_projections(model: BaseModel) -> dict[str, str]:
    """`<diffusers attention>.processor.to_q` -> ComfyUI's weight key, for q, k, v and out of every attention."""
    return _matching(comfy.lora.model_lora_keys_unet(model, {}).items(), UNET_KEY, 1)


def text_projections(text_encoders: nn.Module) -> dict[str, str]:
    """`text_encoder.text_model.encoder.layers.0.self_attn.q_proj` -> ComfyUI's weight key, for both encoders."""
    return _matching(comfy.lora.model_lora_keys_clip(text_encoders, {}).items(), TEXT_KEY, 0)


def image_projections(projections: dict[str, str]) -> dict[str, str]:
    """Of a UNet's projections those that also project subject tokens: K and V of cross-attentions."""
    return {name: key for name, key in projections.items() if IMAGE_KEY.fullmatch(name)}


def weights_of(module: nn.Module, keys: dict[str, str]) -> dict[str, Tensor]:
    """The weights that keys (name -> weight key) name, by name."""
    return {name: comfy.utils.get_attr(module, key) for name, key in keys.items()}


def attach(loras: LoRAs, module: nn.Module, keys: dict[str, str]) -> list[torch.utils.hooks.RemovableHandle]:
    """Adds every LoRA to the layer whose weight its name stands for; the handles take it away again."""
    layers = (comfy.utils.get_attr(module, keys[name].removesuffix(".weight")) for name in loras.names)
    return [layer.register_forward_hook(lora.add) for layer, lora in zip(layers, loras.layers, strict=True)]


def _matching(keys: Iterable[tuple[str, str]], pattern: re.Pattern, group: int) -> dict[str, str]:
    found = {match[group]: key for name, key in keys if (match := pattern.fullmatch(name))}
    return dict(sorted(found.items()))
