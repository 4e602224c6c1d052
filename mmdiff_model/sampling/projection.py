"""Image K and V of every cross-attention: subject tokens through the live `to_k` and `to_v`, with LoRAs of their own.

k_image, v_image are the base projections plus the image LoRAs; the released code keeps copies of the base's weights,
here the live module projects and its text LoRA is taken out again.
"""

from dataclasses import dataclass

import comfy.lora
import comfy.utils
import torch
from comfy.ldm.modules.attention import CrossAttention
from comfy.model_base import BaseModel
from torch import Tensor, nn

BlockKey = tuple[str, int, int]
Projected = dict[BlockKey, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Projection:
    """Image K and V of one cross-attention: where it is in ComfyUI's UNet, and its LoRAs as (down, up) pairs."""

    block: BlockKey
    module: str
    text_k: tuple[Tensor, Tensor]
    text_v: tuple[Tensor, Tensor]
    image_k: tuple[Tensor, Tensor]
    image_v: tuple[Tensor, Tensor]

    def project(
        self, attention: CrossAttention, tokens: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """tokens (m, 2048) -> K and V (1, m, width).

        The live module projects, whatever its storage (fp8, GGUF, offloaded), and its text LoRA is taken out again.
        """
        k, v = (
            module(tokens.to(dtype)[None]).float() - lora_delta(tokens, text) + lora_delta(tokens, image)
            for module, text, image in (
                (attention.to_k, self.text_k, self.image_k),
                (attention.to_v, self.text_v, self.image_v),
            )
        )
        return k.to(dtype), (v * scale[:, None]).to(dtype)


def image_projections(model: BaseModel, unet_lora: dict[str, Tensor]) -> list[Projection]:
    """One Projection for each cross-attention of the checkpoint (70 in SDXL)."""
    keys = comfy.lora.model_lora_keys_unet(model, {})
    projections = []
    for attention in dict.fromkeys(key.split(".processor.")[0] for key in unet_lora):
        if not attention.endswith("attn2"):
            continue
        module = keys[f"unet.{attention}.processor.to_k"].removesuffix(".to_k.weight")
        lora = {
            name: tuple(unet_lora[f"{attention}.processor.{name}.{side}.weight"] for side in ("down", "up"))
            for name in ("to_k_lora", "to_v_lora", "to_k_lora_image", "to_v_lora_image")
        }
        projections.append(Projection(block_key(module), module, *lora.values()))
    return projections


def block_key(module: str) -> BlockKey:
    """`diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2` -> ("input", 4, 0), ComfyUI's key of patches."""
    _, blocks, number, *_, index, _ = module.split(".")
    kind = blocks.removesuffix("_blocks").removesuffix("_block")
    return kind, 0 if kind == "middle" else int(number), int(index)


def project_tokens(model: BaseModel, projections: list[Projection], tokens: Tensor, scale: Tensor) -> Projected:
    """Subject tokens (m, 2048) -> K and V (1, m, width) of every cross-attention; V is scaled by `scale` (m,)."""
    device, dtype = model.current_patcher.load_device, model.get_dtype_inference()
    tokens, scale = tokens.to(device).float(), scale.to(device).float()
    return {p.block: p.project(comfy.utils.get_attr(model, p.module), tokens, scale, dtype) for p in projections}


def lora_delta(x: Tensor, lora: tuple[Tensor, Tensor]) -> Tensor:
    """x (m, in) through down (rank, in) and up (out, rank) -> (m, out)."""
    down, up = (side.to(x) for side in lora)
    return nn.functional.linear(nn.functional.linear(x, down), up)
