"""Checkpoints: the three official files in a folder, or one .safetensors with the same tensors under readable names.

All sizes and the variant come from the tensors. Readable names are `cls_head.*`, `text_fusion_1.*`, `text_fusion_2.*`,
`face_tokens.*` (portrait) or `cls_tokens.*` (subject), `vision.*` (tuned part of CLIP), `text_lora.*` and
`unet_lora.*`.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .adapter import PORTRAIT, SUBJECT, TOKENS_GROUP, Adapter, Sizes
from .checkpoint_files import OFFICIAL_FILES, CheckpointError, metadata_of, read_official, read_safetensors
from .completeness import check_text_lora, check_unet_lora, check_vision, doubts, read_sizes
from .digest import LENGTH, digest_tensors, fingerprint, whole_fingerprint
from .files import write_whole

TENSOR_GROUPS = ("vision", "text_lora", "unet_lora")
ADAPTER_GROUPS = ("cls_head", "text_fusion_1", "text_fusion_2", *TOKENS_GROUP.values())

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A loaded checkpoint: the adapter under a ModelPatcher, the tuned part of CLIP and the LoRAs as plain tensors.

    `hash` is a digest of all tensors, equal for the official folder and its .safetensors, whatever the dtype. It names
    the space that its subjects live in, and begins with the hash that format version 1 gave (see `same_space`).
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
    tensors, metadata = (read_official(path), {}) if path.is_dir() else read_safetensors(path)
    variants = [
        variant for variant, group in TOKENS_GROUP.items() if any(key.startswith(f"{group}.") for key in tensors)
    ]
    if len(variants) != 1:
        raise CheckpointError(f"'{path.name}' has no MM-Diff subject tokens: it is not an MM-Diff checkpoint")
    variant = variants[0]
    if unknown := sorted(key for key in tensors if key.split(".")[0] not in (*ADAPTER_GROUPS, *TENSOR_GROUPS)):
        raise CheckpointError(f"'{path.name}' holds '{unknown[0][:100]}', which is no tensor of MM-Diff")
    digest = digest_of(tensors)
    if not digest.startswith(said := metadata.get("hash", "")):
        raise CheckpointError(f"'{path.name}' is damaged: its tensors are not those that were saved (their digest)")
    known_whole = said == digest
    vision, text_lora, unet_lora = (_group(tensors, group) for group in TENSOR_GROUPS)
    modules = _modules(tensors)
    try:
        sizes = read_sizes(modules, variant)
        check_unet_lora(unet_lora, sizes, known_whole)
        check_text_lora(text_lora, sizes)
        check_vision(vision, sizes, known_whole)
    except ValueError as error:
        raise CheckpointError(f"'{path.name}' is an incomplete or damaged MM-Diff checkpoint: {error}") from error
    for lacked in doubts(vision, text_lora) if not known_whole else ():
        logger.warning(
            "MM-Diff: the checkpoint '%s' has no %s, and what is loaded beside it is used as it is. If it should have "
            "one, get it again.",
            path.name,
            lacked,
        )
    return Checkpoint(
        path.stem,
        variant,
        sizes,
        digest,
        _build_adapter(sizes, variant, modules),
        vision,
        text_lora,
        unet_lora,
        text_encoder_2_lora=text_encoder_2_lora or metadata.get("text_encoder_2_lora") == "true",
    )


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, overwrite: bool = True) -> None:
    """Writes one .safetensors with readable names; a failed write leaves nothing behind. Raises OSError."""
    tensors = checkpoint.tensors()
    metadata = describe(checkpoint.variant, checkpoint.sizes, tensors, checkpoint.text_encoder_2_lora)
    apart = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    write_safetensors(apart, metadata, Path(path), overwrite)


def describe(variant: str, sizes: Sizes, tensors: dict[str, Tensor], text_encoder_2_lora: bool) -> dict[str, str]:
    """The metadata of a .safetensors checkpoint with tensors under their readable names."""
    return metadata_of(variant, sizes.as_dict(), digest_of(tensors), text_encoder_2_lora)


def digest_of(tensors: dict[str, Tensor]) -> str:
    """32 hex digits of tensors under their readable names: those of format version 1, then those of all tensors."""
    return fingerprint(_modules(tensors)) + whole_fingerprint(tensors)


def same_space(one: str, other: str) -> bool:
    """Whether subjects of two spaces go together: `Checkpoint.hash` as it is now, or its beginning from version 1."""
    return min(len(one), len(other)) >= LENGTH and (one.startswith(other) or other.startswith(one))


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str], path: Path, overwrite: bool = True) -> None:
    """Through a temporary file in the same folder: `path` is whole or as it was. Raises OSError."""
    try:
        write_whole(path, lambda partial: save_file(tensors, partial, metadata), overwrite)
    except SafetensorError as error:
        raise OSError(f"could not write '{path}': {error}") from error


def _group(tensors: dict[str, Tensor], group: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{group}."): tensor for key, tensor in tensors.items() if key.startswith(f"{group}.")}


def _modules(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if key.split(".")[0] in ADAPTER_GROUPS}


def _build_adapter(sizes: Sizes, variant: str, tensors: dict[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """The adapter with the file's tensors themselves, each in its own dtype."""
    offload_device = comfy.model_management.text_encoder_offload_device()
    adapter = Adapter(sizes, variant, comfy.ops.manual_cast, device="meta").eval().requires_grad_(False)
    adapter.load_state_dict({key: tensor.to(offload_device) for key, tensor in tensors.items()}, assign=True)
    adapter.fuses = any(bool(tensors[f"text_fusion_{number}.fc2.weight"].any()) for number in (1, 2))
    return comfy.model_patcher.CoreModelPatcher(
        adapter, load_device=comfy.model_management.text_encoder_device(), offload_device=offload_device
    )


__all__ = [
    "OFFICIAL_FILES",
    "PORTRAIT",
    "SUBJECT",
    "Checkpoint",
    "CheckpointError",
    "describe",
    "load_checkpoint",
    "same_space",
    "save_checkpoint",
    "write_safetensors",
]
