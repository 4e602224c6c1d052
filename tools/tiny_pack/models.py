"""A tiny SDXL of ComfyUI's own classes, with random weights: the code that the large one runs, in a second."""

import json
from collections.abc import Callable
from pathlib import Path

import comfy.clip_model
import comfy.clip_vision
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.utils
import torch
from torch import nn

from .weights import weight

UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "transformer_depth_middle": 2,
    "num_head_channels": 16,
    "context_dim": 512,
    "adm_in_channels": 512,
    "num_classes": "sequential",
    "legacy": False,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "dtype": torch.float32,
}
TIME_EMBEDDING = 32
TEXT = {
    "clip_l": {
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "hidden_act": "quick_gelu",
    },
    "clip_g": {
        "hidden_size": 320,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "hidden_act": "gelu",
    },
}
TEXT_NAMES = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
VISION_FILE = Path(__file__).with_name("vision.json")
VISION = json.loads(VISION_FILE.read_text())
VAE = {
    "embed_dim": 4,
    "ddconfig": {
        "double_z": True,
        "z_channels": 4,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 32,
        "ch_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    },
}


class TextTarget:
    """What comfy.sd.CLIP is told to build."""

    params: dict = {}
    clip = comfy.sdxl_clip.SDXLClipModel
    tokenizer = comfy.sdxl_clip.SDXLTokenizer


def make_model(seed: int) -> comfy.model_patcher.ModelPatcher:
    """MODEL: SDXL's UNet with 17 cross-attentions, widths 32 to 128, context 512."""
    config = comfy.supported_models.SDXL(UNET)
    config.unet_config.update(UNET)
    model = comfy.model_base.SDXL(config, device="cpu")
    model.embedder = comfy.model_base.Timestep(TIME_EMBEDDING)
    names = comfy.utils.unet_to_diffusers(config.unet_config).items()
    diffusers_names = {key: name for name, key in names if not name.startswith("class_embedding.")}
    fill(model.diffusion_model, seed, lambda key: f"unet.{diffusers_names[key]}")
    return comfy.model_patcher.CoreModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def make_clip(seed: int, embeddings: str | None = None) -> comfy.sd.CLIP:
    """CLIP: text encoders of 192 and 320, the host's own tokenisers. embeddings: folder of textual inversions."""
    options = {
        f"{key}_model_config": {**config, "eos_token_id": 49407, "max_position_embeddings": 77}
        for key, config in TEXT.items()
    }
    state = {}
    for key, name in TEXT_NAMES.items():
        encoder = comfy.clip_model.CLIPTextModel(
            options[f"{key}_model_config"], torch.float32, "meta", comfy.ops.manual_cast
        )
        for parameter, shape in parameter_shapes(encoder).items():
            state[f"{key}.transformer.{parameter}"] = weight(f"{name}.{parameter}", shape, seed)
    return comfy.sd.CLIP(
        TextTarget,
        embedding_directory=embeddings,
        model_options={**options, "dtype": torch.float32},
        state_dict=state,
    )


def make_clip_vision(seed: int) -> comfy.clip_vision.ClipVisionModel:
    """CLIP_VISION: width 128, projection 96, 49 patches of 32 px."""
    vision = comfy.clip_vision.ClipVisionModel(VISION_FILE)
    fill(vision.model, seed, lambda key: f"image_encoder.{key}")
    return vision


def make_vae(seed: int) -> comfy.sd.VAE:
    """VAE: 4 latent channels, 8 pixels a side for each."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    autoencoder = AutoencoderKL(**VAE)
    fill(autoencoder, seed, lambda key: f"vae.{key}")
    return comfy.sd.VAE(sd=autoencoder.state_dict(), config={"params": VAE})


def fill(module: nn.Module, seed: int, name_of: Callable[[str], str]) -> None:
    """Every parameter of the module from its name."""
    module.load_state_dict({key: weight(name_of(key), shape, seed) for key, shape in parameter_shapes(module).items()})


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """{name: shape} of every parameter; under DynamicVRAM a linear layer of the host has none before it is loaded."""
    found = {key: tuple(parameter.shape) for key, parameter in module.named_parameters()}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and layer.weight is None:
            found[f"{name}.weight"] = layer.out_features, layer.in_features
            if layer.comfy_need_lazy_init_bias:
                found[f"{name}.bias"] = (layer.out_features,)
    return found
