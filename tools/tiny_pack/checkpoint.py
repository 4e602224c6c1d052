"""A tiny MM-Diff checkpoint in the official format: three files as the released code writes them, for the tiny SDXL."""

from pathlib import Path

import comfy.ops
import torch
from comfy.clip_model import CLIPVisionModelProjection
from torch import Tensor

from .models import TEXT, TEXT_NAMES, UNET, VISION, parameter_shapes
from .weights import weight

TEXT_LORA_RANK, UNET_LORA_RANK = 16, 64
FACE_DIM, NUM_TOKENS, DEPTH = 512, 4, 4
TUNED = (
    "vision_model.encoder.layers.2.",
    "vision_model.encoder.layers.3.",
    "vision_model.post_layernorm.",
    "visual_projection.",
)
ATTENTION_WIDTHS = [64] * 2 + [128] * 10 + [64] * 3 + [128] * 2
TEXT_LAYOUTS = ("diffusers", "old diffusers", "kohya", "kohya half alpha", "te1 only", "te2 only", "mlp", "empty")


def write_official_checkpoint(
    folder: Path, seed: int = 20, text_layout: str = "diffusers", dtype: torch.dtype = torch.float32
) -> Path:
    """Writes the three files into the folder and returns it. text_layout: one of TEXT_LAYOUTS."""
    folder.mkdir(parents=True, exist_ok=True)
    custom = {
        group: {key: tensor.to(dtype) for key, tensor in state.items()} for group, state in custom_weights(seed).items()
    }
    torch.save({key: tensor.to(dtype) for key, tensor in unet_lora(seed).items()}, folder / "unet_adapter_weights.bin")
    torch.save(
        {key: tensor.to(dtype) for key, tensor in text_lora_file(seed, text_layout).items()},
        folder / "text_encoder_adapter_weights.bin",
    )
    torch.save(custom, folder / "custom_weights.bin")
    return folder


def unet_lora(seed: int) -> dict[str, Tensor]:
    """`<i>.to_q_lora.down.weight` and so on; even i are self-attentions, odd ones cross-attentions with image LoRAs."""
    lora = {}
    for i in range(2 * len(ATTENTION_WIDTHS)):
        width, is_cross = ATTENTION_WIDTHS[i // 2], i % 2
        source = UNET["context_dim"] if is_cross else width
        inputs = {"to_q_lora": width, "to_k_lora": source, "to_v_lora": source, "to_out_lora": width}
        if is_cross:
            inputs |= {"to_k_lora_image": source, "to_v_lora_image": source}
        for name, size in inputs.items():
            for side, shape in (("down", (UNET_LORA_RANK, size)), ("up", (width, UNET_LORA_RANK))):
                key = f"{i}.{name}.{side}.weight"
                lora[key] = weight(f"unet_adapter.{key}", shape, seed)
    return lora


def text_lora(seed: int) -> dict[str, Tensor]:
    """q, k, v and out of every layer of both text encoders, named as diffusers 0.21 saves them."""
    lora = {}
    for encoder, config in TEXT.items():
        width = config["hidden_size"]
        for layer in range(config["num_hidden_layers"]):
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                lora |= text_lora_pair(encoder, f"{layer}.self_attn.{name}", width, width, seed)
    return lora


def mlp_lora(seed: int) -> dict[str, Tensor]:
    """fc1 and fc2 of every layer of both text encoders, which diffusers 0.21 reads too."""
    lora = {}
    for encoder, config in TEXT.items():
        width, hidden = config["hidden_size"], config["intermediate_size"]
        for layer in range(config["num_hidden_layers"]):
            lora |= text_lora_pair(encoder, f"{layer}.mlp.fc1", width, hidden, seed)
            lora |= text_lora_pair(encoder, f"{layer}.mlp.fc2", hidden, width, seed)
    return lora


def text_lora_pair(encoder: str, module: str, inputs: int, outputs: int, seed: int) -> dict[str, Tensor]:
    prefix = f"{TEXT_NAMES[encoder]}.text_model.encoder.layers.{module}.lora_linear_layer"
    shapes = {f"{prefix}.down.weight": (TEXT_LORA_RANK, inputs), f"{prefix}.up.weight": (outputs, TEXT_LORA_RANK)}
    return {key: weight(f"text_encoder_adapter.{key}", shape, seed) for key, shape in shapes.items()}


def text_lora_file(seed: int, layout: str) -> dict[str, Tensor]:
    """text_encoder_adapter_weights.bin in one of TEXT_LAYOUTS, all of which diffusers 0.21 reads."""
    lora = text_lora(seed)
    match layout:
        case "diffusers":
            return lora
        case "old diffusers":
            return {
                key.replace("_proj.lora_linear_layer", "_lora").replace("self_attn.", "self_attn.to_"): tensor
                for key, tensor in lora.items()
            }
        case "kohya":
            return in_kohya(lora, TEXT_LORA_RANK)
        case "kohya half alpha":
            return in_kohya(lora, TEXT_LORA_RANK / 2)
        case "te1 only" | "te2 only":
            encoder = TEXT_NAMES["clip_l" if layout == "te1 only" else "clip_g"]
            return {key: tensor for key, tensor in lora.items() if key.startswith(f"{encoder}.")}
        case "mlp":
            return lora | mlp_lora(seed)
        case "empty":
            return {}
    raise ValueError(f"text_layout: '{layout}' is none of {TEXT_LAYOUTS}")


def in_kohya(lora: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """A LoRA with diffusers' names -> the same under kohya's, with an alpha for each module."""
    named = {}
    for key, tensor in lora.items():
        module, _, rest = key.partition(".lora_linear_layer.")
        encoder, _, path = module.partition(".")
        module = f"lora_te{2 if encoder == 'text_encoder_2' else 1}_{path.replace('.', '_')}"
        named[f"{module}.lora_{rest}"] = tensor
        named[f"{module}.alpha"] = torch.tensor(float(alpha))
    return named


def custom_weights(seed: int) -> dict[str, dict[str, Tensor]]:
    """The groups of custom_weights.bin: tuned part of CLIP, CLS head, face tokens with SE-Refiner, two fusion MLPs."""
    cls, context, patch = VISION["projection_dim"], UNET["context_dim"], VISION["hidden_size"]
    text_1, text_2 = (config["hidden_size"] for config in TEXT.values())
    vision = CLIPVisionModelProjection(VISION, torch.float32, "meta", comfy.ops.manual_cast)
    shapes = {
        "image_encoder": {key: shape for key, shape in parameter_shapes(vision).items() if key.startswith(TUNED)},
        "obj_embeds_proj": {
            **norm("layernorm", cls),
            **linear("fc", cls, cls),
            **linear("proj_1", cls, text_1),
            **linear("proj_2", cls, text_2),
        },
        "face_embeds_proj": {
            **linear("proj.0", FACE_DIM, 2 * FACE_DIM),
            **linear("proj.2", 2 * FACE_DIM, NUM_TOKENS * context),
            **norm("layer_norm", context),
            **refiner_shapes(patch, context),
        },
        "mm_fuse_one": fusion_shapes(text_1),
        "mm_fuse_two": fusion_shapes(text_2),
    }
    return {
        group: {key: weight(f"custom.{group}.{key}", shape, seed) for key, shape in group_shapes.items()}
        for group, group_shapes in shapes.items()
    }


def fusion_shapes(dim: int) -> dict[str, tuple[int, ...]]:
    return {**norm("layernorm", 2 * dim), **linear("fc1", 2 * dim, dim), **linear("fc2", dim, dim)}


def refiner_shapes(patch: int, dim: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        **linear("refiner.proj_in", patch, dim),
        **linear("refiner.proj_out", dim, dim),
        **norm("refiner.norm_out", dim),
    }
    for layer in (f"refiner.layers.{i}" for i in range(DEPTH)):
        shapes |= {
            **norm(f"{layer}.0.norm1", dim),
            **norm(f"{layer}.0.norm2", dim),
            f"{layer}.0.to_q.weight": (dim, dim),
            f"{layer}.0.to_kv.weight": (2 * dim, dim),
            f"{layer}.0.to_out.weight": (dim, dim),
            **norm(f"{layer}.1.0", dim),
            f"{layer}.1.1.weight": (2 * dim, dim),
            f"{layer}.1.3.weight": (dim, 2 * dim),
        }
    return shapes


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, dim: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
