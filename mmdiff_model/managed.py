"""Models of transformers under ComfyUI's memory management."""

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from .model_folders import Ready


def managed(model: nn.Module) -> Ready:
    """Gives a model to the host: ready() loads it, with room made for it, and says on which device it is."""
    patcher = ModelPatcher(
        nn.ModuleList([model]),  # its `device` can be written, unlike that of transformers' modules
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )

    def ready() -> torch.device:
        comfy.model_management.load_models_gpu([patcher], force_full_load=True)
        return patcher.load_device

    return ready
