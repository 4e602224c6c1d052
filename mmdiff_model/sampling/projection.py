"""Image K and V of every cross-attention: subject tokens through the live `to_k` and `to_v`, with LoRAs of their own.

k_image, v_image are the base projections plus the image LoRAs; the released code keeps copies of the base's weights,
here the live module projects and its text LoRA is taken out again, as strongly as the weight holds it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import comfy.lora
import comfy.utils
import torch
from comfy.hooks import EnumHookType
from comfy.ldm.modules.attention import CrossAttention
from comfy.model_base import BaseModel
from torch import Tensor, nn

from ..lora import held_strength, turns

BlockKey = tuple[str, int, int]
Projected = dict[BlockKey, tuple[Tensor, Tensor]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Projection:
    """Image K and V of one cross-attention: where it is in ComfyUI's UNet, and its LoRAs as (down, up) pairs."""

    block: BlockKey
    module: str
    text_k: tuple[Tensor, Tensor]
    text_v: tuple[Tensor, Tensor]
    image_k: tuple[Tensor, Tensor]
    image_v: tuple[Tensor, Tensor]

    @property
    def weights(self) -> tuple[str, str]:
        """The names of the two weights in the model."""
        return f"{self.module}.to_k.weight", f"{self.module}.to_v.weight"

    def project(
        self,
        attention: CrossAttention,
        tokens: Tensor,
        scale: Tensor,
        dtype: torch.dtype,
        held: Sequence[float] = (1.0, 1.0),
    ) -> tuple[Tensor, Tensor]:
        """tokens (m, 2048) -> K and V (1, m, width); V is scaled by `scale` (m,).

        The live module projects, whatever its storage (fp8, GGUF, offloaded). Its text LoRA, which to_k and to_v hold
        with the strengths `held`, is taken out again.
        """
        k, v = (
            module(tokens.to(dtype)[None]).float() - strength * lora_delta(tokens, text) + lora_delta(tokens, image)
            for module, strength, text, image in (
                (attention.to_k, held[0], self.text_k, self.image_k),
                (attention.to_v, held[1], self.text_v, self.image_v),
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


class SubjectProjections:
    """Image K and V of a run's subject tokens (m, 2048), for every state that the model's weights take in the run.

    LoRA hooks on a conditioning change the weights for its calls, and each of several GPUs has a model of its own. K
    and V are projected when such a state is first met, and kept until a hook's strength changes.
    """

    def __init__(self, projections: list[Projection], tokens: Tensor, scale: Tensor):
        self.projections, self.tokens, self.scale = projections, tokens, scale
        self.weights = {weight for projection in projections for weight in projection.weights}
        self.kept: dict[tuple, tuple[tuple, Projected]] = {}

    def of(self, model: BaseModel) -> Projected:
        """K and V (1, m, width) of every cross-attention by the weights that the model has now."""
        patcher = model.current_patcher
        hooks = patcher.current_hooks.get_type(EnumHookType.Weight) if patcher.current_hooks else []
        hooks = [hook for hook in hooks if self.weights & patcher.hook_patches.get(hook.hook_ref, {}).keys()]
        state, strengths = (patcher.load_device, *(hook.hook_ref for hook in hooks)), [hook.strength for hook in hooks]
        if state not in self.kept or self.kept[state][0] != strengths:
            self.kept[state] = strengths, project_tokens(model, self.projections, self.tokens, self.scale)
        return self.kept[state][1]


def project_tokens(model: BaseModel, projections: list[Projection], tokens: Tensor, scale: Tensor) -> Projected:
    """Subject tokens (m, 2048) -> K and V (1, m, width) of every cross-attention; V is scaled by `scale` (m,)."""
    patcher = model.current_patcher
    device, dtype = patcher.load_device, model.get_dtype_inference()
    tokens, scale = tokens.to(device).float(), scale.to(device).float()
    hooked = patcher.get_combined_hook_patches(patcher.current_hooks)
    projected, turned = {}, []
    for projection in projections:
        held = []
        for weight, (_, up) in zip(projection.weights, (projection.text_k, projection.text_v), strict=True):
            patches = [*patcher.patches.get(weight, []), *hooked.get(weight, [])]
            held.append(held_strength(patches, up))
            turned += [weight] * turns(patches, up)
        attention = comfy.utils.get_attr(model, projection.module)
        projected[projection.block] = projection.project(attention, tokens, scale, dtype, held)
    if turned:
        logger.warning(
            "MM-Diff: a LoRA after Apply MM-Diff turns or scales weights instead of adding to them (DoRA, OFT, GLoRA), "
            "in %d weights from '%s' on; the image branch keeps traces of the text LoRA there. Load it before.",
            len(turned),
            turned[0],
        )
    return projected


def lora_delta(x: Tensor, lora: tuple[Tensor, Tensor]) -> Tensor:
    """x (m, in) through down (rank, in) and up (out, rank) -> (m, out)."""
    down, up = (side.to(x) for side in lora)
    return nn.functional.linear(nn.functional.linear(x, down), up)
