"""What MM-Diff trains (paper, method figure), and how it is written as a checkpoint.

CLS head, subject-token MLP, SE-Refiner and both fusion MLPs; LoRAs on the attentions of the UNet and of the text
encoders; LoRAs of their own for image K and V; the last layers of the vision encoder. The base stays frozen.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_base import BaseModel
from comfy.sd import CLIP
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from ..adapter import PORTRAIT, Adapter, Sizes
from ..checkpoint import describe
from ..text import ENCODERS
from .encoders import last_layers
from .lora import LoRAs, image_projections, text_projections, unet_projections, weights_of
from .plan import STRICT, Count, Positive

Part = Literal["text_fusion", "image_branch", "refiner", "lora", "vision"]
TEXT_FUSION, IMAGE_BRANCH, REFINER, LORA, VISION = PARTS = get_args(Part)
ARCFACE_DIM = 512
BACKGROUND_TOKENS = 4


@dataclass(frozen=True, config=STRICT)
class Shape:
    """Sizes that the base does not decide. Released checkpoint: 4 tokens, depth 4, hidden 1024, UNet rank 64."""

    num_tokens: Positive = 4
    depth: Positive = 4
    token_hidden: Positive = 1024
    lora_rank: Positive = 64
    text_lora_rank: Positive = 16
    vision_layers: Count = 2


class Trainable(nn.Module):
    """Every trained module. `parts` are trained; the others have no effect, for ablations: training leaves them out,
    and a checkpoint has zeros in their place.

    background: tokens of the `masked` constraint, which no checkpoint holds.
    """

    def __init__(
        self,
        model: BaseModel,
        clip: CLIP,
        clip_vision: ClipVisionModel,
        variant: str,
        shape: Shape,
        parts: tuple[Part, ...] = PARTS,
    ):
        super().__init__()
        self.variant, self.shape, self.parts = variant, shape, parts
        self.sizes = read_sizes(model, clip, clip_vision, variant, shape)
        self.adapter = Adapter(self.sizes, variant, nn)
        self.unet_keys = unet_projections(model)
        unet_weights = weights_of(model, self.unet_keys)
        self.unet_lora = LoRAs(unet_weights, shape.lora_rank)
        self.image_lora = LoRAs(
            {name: unet_weights[name] for name in image_projections(self.unet_keys)}, shape.lora_rank
        )
        self.text_keys = text_projections(clip.cond_stage_model)
        self.text_lora = LoRAs(weights_of(clip.cond_stage_model, self.text_keys), shape.text_lora_rank)
        self.vision_names = tuple(last_layers(clip_vision.model, shape.vision_layers))
        self.vision = nn.ParameterList(
            comfy.utils.get_attr(clip_vision.model, name).detach().float().clone() for name in self.vision_names
        )
        self.background = nn.Parameter(torch.randn(BACKGROUND_TOKENS, self.sizes.context_dim))
        self.freeze_other_parts()

    def freeze_other_parts(self) -> None:
        """Only `parts` get gradients; a refiner that is not trained adds nothing."""
        for part, modules in self.modules_of_parts.items():
            for module in modules:
                module.requires_grad_(part in self.parts)
        if REFINER not in self.parts:
            nn.init.zeros_(self.adapter.subject_tokens.refiner.norm_out.weight)
        self.background.requires_grad_(IMAGE_BRANCH in self.parts)

    @property
    def modules_of_parts(self) -> dict[Part, list[nn.Module]]:
        tokens = self.adapter.subject_tokens
        return {
            TEXT_FUSION: [self.adapter.cls_head, self.adapter.text_fusion_1, self.adapter.text_fusion_2],
            IMAGE_BRANCH: [tokens.proj, tokens.layer_norm, self.image_lora],
            REFINER: [tokens.refiner],
            LORA: [self.unet_lora, self.text_lora],
            VISION: [self.vision],
        }

    def silent_parameters(self) -> set[int]:
        """Identities of the parameters of parts that have no effect; without the image branch the refiner has none."""
        parts = {TEXT_FUSION, IMAGE_BRANCH, REFINER}.difference(self.parts)
        parts |= {REFINER} if IMAGE_BRANCH in parts else set()
        modules = [module for part in parts for module in self.modules_of_parts[part]]
        return {id(parameter) for module in modules for parameter in module.parameters()}

    @property
    def cross_attentions(self) -> dict[str, str]:
        """`<diffusers attention>.processor` -> ComfyUI's module, for every cross-attention."""
        ends = ".to_k", ".to_k.weight"
        return {
            name.removesuffix(ends[0]): self.unet_keys[name].removesuffix(ends[1])
            for name in self.image_lora.names
            if name.endswith(ends[0])
        }

    @property
    def tuned_vision(self) -> dict[str, Tensor]:
        """The vision encoder's tuned parameters by name."""
        return dict(zip(self.vision_names, self.vision, strict=True))

    def export(self, weights: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and metadata of a .safetensors checkpoint, as `load_checkpoint` reads it.

        weights: other values of this module's parameters by name, such as their moving averages.
        """
        values = {**dict(self.named_parameters()), **(weights or {})}
        silent = self.silent_parameters()
        values |= {name: torch.zeros_like(value) for name, value in self.named_parameters() if id(value) in silent}
        adapter = {
            key.removeprefix("adapter."): value.detach().cpu()
            for key, value in values.items()
            if key.startswith("adapter.")
        }
        unet = self._loras("unet_lora", values, "unet_lora.{name}_lora.{side}.weight")
        image = self._loras("image_lora", values, "unet_lora.{name}_lora_image.{side}.weight")
        text = self._loras("text_lora", values, "text_lora.{name}.lora_linear_layer.{side}.weight")
        vision = {
            f"vision.{name}": values[f"vision.{number}"].detach().cpu() for number, name in enumerate(self.vision_names)
        }
        tensors = {**adapter, **unet, **image, **text, **vision}
        return tensors, describe(self.variant, self.sizes, tensors, text_encoder_2_lora=True)

    def _loras(self, group: str, values: Mapping[str, Tensor], key: str) -> dict[str, Tensor]:
        names = getattr(self, group).names
        return {
            key.format(name=name, side=side): values[f"{group}.layers.{number}.{side}"].detach().cpu()
            for number, name in enumerate(names)
            for side in ("down", "up")
        }


def read_sizes(model: BaseModel, clip: CLIP, clip_vision: ClipVisionModel, variant: str, shape: Shape) -> Sizes:
    """The adapter's sizes for a base. Raises ValueError where CLIP is not SDXL's two encoders."""
    encoders = [getattr(clip.cond_stage_model, f"clip_{key}", None) for key in ENCODERS]
    if None in encoders:
        raise ValueError(f"clip: MM-Diff needs SDXL's two text encoders, not {type(clip.cond_stage_model).__name__}")
    cls_dim = clip_vision.config["projection_dim"]
    return Sizes(
        cls_dim=cls_dim,
        cls_hidden=cls_dim,
        text_dims=tuple(encoder.transformer.get_input_embeddings().weight.shape[1] for encoder in encoders),
        identity_dim=ARCFACE_DIM if variant == PORTRAIT else cls_dim,
        token_hidden=shape.token_hidden,
        patch_dim=clip_vision.config["hidden_size"],
        context_dim=model.model_config.unet_config["context_dim"],
        num_tokens=shape.num_tokens,
        depth=shape.depth,
    )
