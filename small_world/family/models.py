"""The shrunken SDXL family: the sizes, the modules to train, and MODEL, CLIP, VAE and CLIP_VISION from trained weights.

Every module is ComfyUI's own class. Weights are four .safetensors files, with the token embeddings as compact tables.
"""

import json
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
import torch
from comfy.ldm.models.autoencoder import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn

from .vocabulary import END, expand, known_tokens

CODEC, VISION_ENCODER, TEXT_ENCODERS, UNET_MODEL = "codec", "vision", "text", "unet"
TABLE = "text_model.embeddings.token_embedding.weight"

TEXT = {
    "clip_l": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
    },
    "clip_g": {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "hidden_act": "gelu",
    },
}
CONTEXT = sum(config["hidden_size"] for config in TEXT.values())
TIME_EMBEDDING = 16  # of each of the six sizes that SDXL is told
UNET = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": -2,  # no middle block
    "num_head_channels": 32,
    "context_dim": CONTEXT,
    "adm_in_channels": TEXT["clip_g"]["hidden_size"] + 6 * TIME_EMBEDDING,
    "num_classes": "sequential",
    "legacy": False,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "dtype": torch.float32,
}
VISION_FILE = Path(__file__).with_name("vision.json")
VISION = json.loads(VISION_FILE.read_text())
_CODER = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 128,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
VAE = {"embed_dim": 4, "ddconfig": _CODER, "decoder_ddconfig": {**_CODER, "num_res_blocks": 0}}

operations = comfy.ops.disable_weight_init


class TextTarget:
    """What comfy.sd.CLIP is told to build."""

    params: dict = {}
    clip = comfy.sdxl_clip.SDXLClipModel
    tokenizer = comfy.sdxl_clip.SDXLTokenizer


def build_codec() -> AutoencoderKL:
    """The VAE's module, 8 pixels a side for each of its latents."""
    return initialised(AutoencoderKL(**VAE))


def build_vision() -> comfy.clip_model.CLIPVisionModelProjection:
    """The vision encoder's module, in float32."""
    return initialised(comfy.clip_model.CLIPVisionModelProjection(VISION, torch.float32, "cpu", operations))


def build_text() -> nn.ModuleDict:
    """Both text encoders with compact token tables, under "clip_l" and "clip_g"."""
    encoders = nn.ModuleDict()
    for key, config in TEXT.items():
        encoder = comfy.clip_model.CLIPTextModel(text_config(config), torch.float32, "cpu", operations)
        encoder.set_input_embeddings(operations.Embedding(1 + len(known_tokens()), config["hidden_size"]))
        encoders[key] = initialised(encoder)
    return encoders


def build_base(device: str | torch.device = "cpu") -> comfy.model_base.SDXL:
    """ComfyUI's SDXL around a UNet to train."""
    model = bare_base(device)
    start_quietly(initialised(model.diffusion_model))
    return model


def bare_base(device: str | torch.device = "cpu") -> comfy.model_base.SDXL:
    """ComfyUI's SDXL with its noise schedule and size embeddings, its weights as they come from memory."""
    config = comfy.supported_models.SDXL(UNET)
    config.unet_config.update(UNET)
    model = comfy.model_base.SDXL(config, device=device)
    model.embedder = comfy.model_base.Timestep(TIME_EMBEDDING)
    return model


def text_config(sizes: dict) -> dict:
    return {**sizes, "eos_token_id": END, "max_position_embeddings": 77}


@torch.no_grad()
def initialised(module: nn.Module) -> nn.Module:
    """The module with fresh weights: ComfyUI's layers leave theirs as they come from memory."""
    for layer in module.modules():
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)
        elif isinstance(layer, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)):
            super(type(layer), layer).reset_parameters()
    for name, parameter in module.named_parameters():
        if name.endswith("class_embedding"):
            nn.init.normal_(parameter, std=0.02)
    return module


@torch.no_grad()
def start_quietly(unet: nn.Module) -> None:
    """Zeros where SDXL starts with zeros: the ends of residual blocks and of transformers, and the UNet's output."""
    ends = ("out_layers.3", "proj_out", "out.2")
    for name, layer in unet.named_modules():
        if name.endswith(ends):
            layer.weight.zero_()
            layer.bias.zero_()


def load_clip(weights: Path) -> comfy.sd.CLIP:
    """CLIP from a folder of trained weights, with the host's own tokenisers."""
    options = {f"{key}_model_config": text_config(sizes) for key, sizes in TEXT.items()}
    state = {}
    for name, tensor in read_weights(weights, TEXT_ENCODERS).items():
        key, _, rest = name.partition(".")
        state[f"{key}.transformer.{rest}"] = expand(tensor) if rest == TABLE else tensor
    return comfy.sd.CLIP(TextTarget, model_options={**options, "dtype": torch.float32}, state_dict=state)


def load_model(weights: Path) -> comfy.model_patcher.ModelPatcher:
    """MODEL from a folder of trained weights."""
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    patcher = comfy.model_patcher.CoreModelPatcher(bare_base(), load_device=device, offload_device=offload)
    give_weights(patcher.model.diffusion_model, read_weights(weights, UNET_MODEL), patcher)
    return patcher


def load_vision(weights: Path) -> comfy.clip_vision.ClipVisionModel:
    """CLIP_VISION from a folder of trained weights."""
    vision = comfy.clip_vision.ClipVisionModel(VISION_FILE)  # a file: ComfyUI before 0.24 reads no dictionary
    give_weights(vision.model, read_weights(weights, VISION_ENCODER), vision.patcher)
    return vision


def load_codec(weights: Path, device: torch.device) -> AutoencoderKL:
    """The trained codec's module. Raises FileNotFoundError before the codec's phase has ended."""
    codec = build_codec()
    codec.load_state_dict(read_weights(weights, CODEC))
    return codec.to(device).eval()


def read_weights(weights: Path, name: str) -> dict[str, Tensor]:
    """The tensors of `weights`/<name>.safetensors in float32."""
    return {key: tensor.float() for key, tensor in load_file(weights / f"{name}.safetensors").items()}


def give_weights(module: nn.Module, state: dict[str, Tensor], patcher: comfy.model_patcher.ModelPatcher) -> None:
    """Loads as the host does: under DynamicVRAM a module takes the tensors over, its layers have none before."""
    module.load_state_dict(state, assign=patcher.is_dynamic())


def load_vae(weights: Path) -> comfy.sd.VAE:
    """VAE from a folder of trained weights."""
    state = load_file(weights / f"{CODEC}.safetensors")
    with torch.device("meta"):
        wanted = AutoencoderKL(**VAE).state_dict()
    # ComfyUI before 0.20 makes a decoder as deep as the encoder; a residual block of zeros adds nothing
    state |= {key: torch.zeros(tensor.shape) for key, tensor in wanted.items() if key not in state}
    return comfy.sd.VAE(sd=state, config={"params": VAE})
