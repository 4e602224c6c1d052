"""Checkpoints: the three official files in a folder, or one .safetensors with the same tensors under readable names.

All sizes and the variant come from the tensors. Readable names are `cls_head.*`, `text_fusion_1.*`, `text_fusion_2.*`,
`face_tokens.*` (portrait) or `cls_tokens.*` (subject), `vision.*` (tuned part of CLIP), `text_lora.*` and
`unet_lora.*`.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .adapter import PORTRAIT, SUBJECT, TOKENS_GROUP, Adapter, Sizes
from .files import write_whole
from .lora import digest_tensors, name_text_lora, name_unet_lora

UNET_FILE, TEXT_FILE, CUSTOM_FILE = "unet_adapter_weights.bin", "text_encoder_adapter_weights.bin", "custom_weights.bin"
OFFICIAL_FILES = (UNET_FILE, TEXT_FILE, CUSTOM_FILE)
OFFICIAL_GROUPS = {
    "image_encoder": "vision",
    "obj_embeds_proj": "cls_head",
    "face_embeds_proj": "face_tokens",
    "mm_fuse_one": "text_fusion_1",
    "mm_fuse_two": "text_fusion_2",
}
ADAPTER_GROUPS = ("cls_head", "text_fusion_1", "text_fusion_2", *TOKENS_GROUP.values())
FORMAT_VERSION = "1"
REMEDY = "Get the checkpoint again, and keep its three official files together in one folder of models/mmdiff"


class CheckpointError(ValueError):
    """The file or folder is not a usable MM-Diff checkpoint; the message says what is wrong and what to do."""

    def __init__(self, problem: str, remedy: str = REMEDY):
        super().__init__(f"checkpoint: {problem}. {remedy}.")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the adapter under a ModelPatcher, the tuned part of CLIP and the LoRAs as plain tensors.

    `hash` names the space its subjects live in: equal for the official folder and its .safetensors, whatever the dtype.
    """

    name: str
    variant: str
    sizes: Sizes
    hash: str
    adapter: comfy.model_patcher.ModelPatcher
    vision: dict[str, Tensor]
    text_lora: dict[str, Tensor]
    unet_lora: dict[str, Tensor]
    text_encoder_2_lora: bool = False

    @cached_property
    def lora_digest(self) -> str:
        """Names the LoRAs bit by bit, unlike `hash`: what is merged into a model may stay while this is the same."""
        return digest_tensors(
            {
                f"{encoder}{key}": tensor
                for encoder, tensors in (("text ", self.text_lora), ("unet ", self.unet_lora))
                for key, tensor in tensors.items()
            }
        )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its readable name, as a .safetensors checkpoint holds it."""
        groups = {"vision": self.vision, "text_lora": self.text_lora, "unet_lora": self.unet_lora}
        named = {f"{group}.{key}": tensor for group, tensors in groups.items() for key, tensor in tensors.items()}
        return {**self.adapter.model_state_dict(), **named}


def load_checkpoint(path: str | Path, text_encoder_2_lora: bool = False) -> Checkpoint:
    """Folder with the three official files, or one .safetensors -> Checkpoint.

    text_encoder_2_lora: also apply the second text encoder's LoRA, which the released code reads and never applies; a
    .safetensors that was trained or saved with it says so itself.
    Raises CheckpointError naming the file, what is wrong with it and what to do.
    """
    path = Path(path)
    tensors, metadata = (_read_official(path), {}) if path.is_dir() else _read_safetensors(path)
    variants = [
        variant for variant, group in TOKENS_GROUP.items() if any(key.startswith(f"{group}.") for key in tensors)
    ]
    if len(variants) != 1:
        raise CheckpointError(f"'{path.name}' has no MM-Diff subject tokens: it is not an MM-Diff checkpoint")
    variant = variants[0]
    groups = {group: _group(tensors, group) for group in ("vision", "text_lora", "unet_lora")}
    modules = {key: tensor for key, tensor in tensors.items() if key.split(".")[0] in ADAPTER_GROUPS}
    try:
        sizes = Sizes.from_tensors(modules, variant)
        adapter = _build_adapter(sizes, variant, modules)
        _check_unet_lora(groups["unet_lora"], sizes)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"'{path.name}' is an incomplete or damaged MM-Diff checkpoint: {error}") from error
    return Checkpoint(
        path.stem,
        variant,
        sizes,
        fingerprint(modules),
        adapter,
        **groups,
        text_encoder_2_lora=text_encoder_2_lora or metadata.get("text_encoder_2_lora") == "true",
    )


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Writes one .safetensors with readable names; a failed write leaves nothing behind. Raises OSError."""
    tensors = checkpoint.tensors()
    metadata = describe(checkpoint.variant, checkpoint.sizes, tensors, checkpoint.text_encoder_2_lora)
    write_safetensors({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata, Path(path))


def describe(variant: str, sizes: Sizes, tensors: dict[str, Tensor], text_encoder_2_lora: bool) -> dict[str, str]:
    """The metadata of a .safetensors checkpoint with tensors under their readable names."""
    modules = {key: tensor for key, tensor in tensors.items() if key.split(".")[0] in ADAPTER_GROUPS}
    return {
        "format": "mmdiff",
        "format_version": FORMAT_VERSION,
        "variant": variant,
        "sizes": json.dumps(sizes.as_dict()),
        "hash": fingerprint(modules),
        "text_encoder_2_lora": json.dumps(text_encoder_2_lora),
    }


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Through a temporary file in the same folder: `path` is whole or as it was. Raises OSError."""
    try:
        write_whole(path, lambda partial: save_file(tensors, partial, metadata))
    except SafetensorError as error:
        raise OSError(f"could not write '{path}': {error}") from error


def fingerprint(modules: dict[str, Tensor]) -> str:
    """16 hex digits of the one-dimensional tensors, the same in any precision from half on."""
    digest = hashlib.sha256()
    for key in sorted(key for key, tensor in modules.items() if tensor.ndim == 1):
        digest.update(key.encode())
        digest.update(modules[key].to(torch.float16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _read_official(folder: Path) -> dict[str, Tensor]:
    missing = [name for name in OFFICIAL_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"The folder '{folder.name}' lacks {', '.join(missing)}")
    unet, text, custom = (_read_bin(folder / name) for name in OFFICIAL_FILES)
    for group, state in custom.items():
        if not isinstance(state, dict) or group not in OFFICIAL_GROUPS:
            raise CheckpointError(f"'{CUSTOM_FILE}' holds an unknown group '{group}'")
    if absent := sorted(OFFICIAL_GROUPS.keys() - custom.keys()):
        raise CheckpointError(f"'{CUSTOM_FILE}' lacks the group '{absent[0]}'")
    try:
        groups = {OFFICIAL_GROUPS[group]: state for group, state in custom.items()}
        groups |= {"unet_lora": name_unet_lora(unet), "text_lora": name_text_lora(text)}
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"The LoRAs in '{folder.name}' are not MM-Diff's: {error}") from error
    return {f"{group}.{key}": tensor for group, state in groups.items() for key, tensor in state.items()}


def _read_bin(path: Path) -> dict:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"'{path.name}' holds something other than plain tensors and was not opened") from error
    except (RuntimeError, EOFError, OSError) as error:
        raise CheckpointError(f"'{path.name}' is truncated or not a PyTorch file") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"'{path.name}' is not a dictionary of tensors")
    return state


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path.name}' is truncated or not a .safetensors file") from error
    if (version := metadata.get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        problem = f"'{path.name}' has format version {version}, this pack reads {FORMAT_VERSION}"
        raise CheckpointError(problem, "Update the pack")
    return tensors, metadata


def _group(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{group}."): tensor for key, tensor in tensors.items() if key.startswith(f"{group}.")}


def _build_adapter(sizes: Sizes, variant: str, tensors: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    dtype = tensors["cls_head.fc.weight"].dtype
    offload_device = comfy.model_management.text_encoder_offload_device()
    adapter = (
        Adapter(sizes, variant, comfy.ops.manual_cast, dtype=dtype, device=offload_device).eval().requires_grad_(False)
    )
    patcher = comfy.model_patcher.CoreModelPatcher(
        adapter, load_device=comfy.model_management.text_encoder_device(), offload_device=offload_device
    )
    adapter.load_state_dict(tensors, assign=patcher.is_dynamic())
    return patcher


def _check_unet_lora(unet_lora: dict[str, Tensor], sizes: Sizes) -> None:
    attentions = {key.split(".processor.")[0] for key in unet_lora}
    if not attentions:
        raise ValueError("it has no UNet LoRA")
    for attention in sorted(attentions):
        image = ("to_k_lora_image", "to_v_lora_image") if attention.endswith("attn2") else ()
        for lora in ("to_q_lora", "to_k_lora", "to_v_lora", "to_out_lora", *image):
            down = unet_lora[f"{attention}.processor.{lora}.down.weight"]
            up = unet_lora[f"{attention}.processor.{lora}.up.weight"]
            if down.shape[0] != up.shape[1] or (lora in image and down.shape[1] != sizes.context_dim):
                raise ValueError(f"'{attention}.{lora}' has the wrong shape {tuple(down.shape)}, {tuple(up.shape)}")


__all__ = [
    "PORTRAIT",
    "SUBJECT",
    "Checkpoint",
    "CheckpointError",
    "describe",
    "fingerprint",
    "load_checkpoint",
    "save_checkpoint",
    "write_safetensors",
]
