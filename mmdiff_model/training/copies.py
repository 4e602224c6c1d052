"""Copies of a base that a graph has loaded, for training to change as it likes."""

import copy

import comfy.model_management
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import nn

from ..faces import FaceFinder
from .session import BaseModels

SHARED = "model_config", "current_patcher"
# what DynamicVRAM keeps on a model and on its layers: addresses of memory that is freed with the original
DYNAMIC = (
    *("dynamic_vbars", "dynamic_pins", "dynamic_patchers"),
    *("_v", "_v_signature", "_v_weight", "_v_bias", "_pins", "_pin_state", "_prefetch"),
    *("weight_lowvram_function", "bias_lowvram_function"),
)


def copy_base(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    clip_vision: ClipVisionModel,
    dtype: torch.dtype,
    find_face: FaceFinder | None = None,
) -> BaseModels:
    """The base with weights of its own in `dtype`, those patches baked in that the graph has put on it: LoRAs, and
    another model sampling, whose noise levels stay in float32.

    The VAE only encodes, so it is shared. Call it outside of inference mode: its tensors have no gradients.
    """
    comfy.model_management.unload_all_models()
    text, vision = clip.clone(), copy.copy(clip_vision)
    text.patcher = copy_patcher(clip.patcher)
    text.cond_stage_model = text.patcher.model.to(dtype)
    vision.patcher = copy_patcher(clip_vision.patcher)
    vision.model = vision.patcher.model.to(dtype)
    own = copy_patcher(model)
    own.model.diffusion_model.to(dtype)
    own.model.diffusion_model.dtype, own.model.manual_cast_dtype = dtype, None
    own.model.model_sampling = copy.deepcopy(model.get_model_object("model_sampling"))
    return BaseModels(own, text, vae, vision, find_face)


def copy_patcher(patcher: ModelPatcher) -> ModelPatcher:
    """A patcher without patches, around a copy of the module that has them in its weights."""
    module = copy_module(patcher.model)
    own = patcher.clone(disable_dynamic=True, model_override=(module, ({}, {}, {}, set())))
    for key in own.patches:
        own.patch_weight_to_device(key)
    own.patches, own.backup = {}, {}
    return own


def copy_module(model: nn.Module) -> nn.Module:
    """A copy with weights of its own, and with nothing that belongs to the host's memory management."""
    kept = [getattr(model, name, None) for name in SHARED]
    for module in model.modules():
        kept += [value for name, value in vars(module).items() if name in DYNAMIC]
    own = copy.deepcopy(model, {id(value): value for value in kept})
    for module in own.modules():
        for name in DYNAMIC:
            vars(module).pop(name, None)
    return own
