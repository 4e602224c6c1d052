"""Reading checkpoint files: the official folder of three, or one .safetensors. What comes of it are dense tensors of
numbers that models can compute with, under their readable names, or a CheckpointError."""

import json
import logging
import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import Parameter

from .lora import name_text_lora, name_unet_lora

UNET_FILE, TEXT_FILE, CUSTOM_FILE = "unet_adapter_weights.bin", "text_encoder_adapter_weights.bin", "custom_weights.bin"
OFFICIAL_FILES = (UNET_FILE, TEXT_FILE, CUSTOM_FILE)
OFFICIAL_GROUPS = {
    "image_encoder": "vision",
    "obj_embeds_proj": "cls_head",
    "face_embeds_proj": "face_tokens",
    "mm_fuse_one": "text_fusion_1",
    "mm_fuse_two": "text_fusion_2",
}
DIRECTORY = 0x10  # MS-DOS's attribute in a zip archive
FORMAT_VERSION = "2"
OLD_VERSIONS = ("1",)
LARGEST_WEIGHT = torch.finfo(torch.float16).max  # most models compute with no larger numbers
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
REMEDY = "Get the checkpoint again, and keep its three official files together in one folder of models/mmdiff"
NO_FILE = "Move it away and put the checkpoint's file of that name in its place"
PLAIN = ("torch ", "torch._utils ", "torch.storage ", "collections OrderedDict")  # what tensors are pickled with

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """The file or folder is not a usable MM-Diff checkpoint; the message says what is wrong and what to do."""

    def __init__(self, problem: str, remedy: str = REMEDY):
        super().__init__(f"checkpoint: {problem}. {remedy}.")


def read_official(folder: Path) -> dict[str, Tensor]:
    """The three official files -> tensors under their readable names. Raises CheckpointError."""
    for name in OFFICIAL_FILES:
        check_readable(folder / name)
    missing = [name for name in OFFICIAL_FILES if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(f"The folder '{folder.name}' lacks {', '.join(missing)}")
    unet, text, custom = (_read_bin(folder / name) for name in OFFICIAL_FILES)
    for group, state in custom.items():
        if not isinstance(state, dict) or group not in OFFICIAL_GROUPS:
            raise CheckpointError(f"'{CUSTOM_FILE}' holds an unknown group {_shown(group)}")
    if absent := sorted(OFFICIAL_GROUPS.keys() - custom.keys()):
        raise CheckpointError(f"'{CUSTOM_FILE}' lacks the group '{absent[0]}'")
    _check_tensors(unet, UNET_FILE)
    _check_tensors(text, TEXT_FILE)
    for state in custom.values():
        _check_tensors(state, CUSTOM_FILE)
    try:
        groups = {OFFICIAL_GROUPS[group]: state for group, state in custom.items()}
        groups |= {"unet_lora": name_unet_lora(unet), "text_lora": name_text_lora(text)}
    except ValueError as error:
        raise CheckpointError(f"The LoRAs in '{folder.name}' are not MM-Diff's: {error}") from error
    return {f"{group}.{key}": tensor for group, state in groups.items() for key, tensor in state.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """One file -> tensors and metadata. Raises CheckpointError."""
    check_readable(path)
    if path.name in OFFICIAL_FILES:
        raise CheckpointError(
            f"'{path.name}' is one of a checkpoint's three files", "Choose the folder that holds them"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # copies: a tensor that stays a view of the file changes, or ends the process, when that is overwritten
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # besides its own, the library raises what its parsers and PyTorch raise
        raise CheckpointError(f"'{path.name}' is truncated or not a .safetensors file") from error
    if (version := metadata.get("format_version", FORMAT_VERSION)) not in (FORMAT_VERSION, *OLD_VERSIONS):
        problem = f"'{path.name}' has format version {version[:20]}, this pack reads up to {FORMAT_VERSION}"
        raise CheckpointError(problem, "Update the pack")
    _check_tensors(tensors, path.name)
    return tensors, metadata


def check_readable(path: Path) -> None:
    """Raises CheckpointError on what is there and no file, a pipe for example, and on a file without the right to read
    it, which is not a damaged one."""
    try:
        if path.is_file():
            path.open("rb").close()
        elif path.exists():
            raise CheckpointError(f"'{path.name}' is {'a folder' if path.is_dir() else 'not a file'}", NO_FILE)
    except OSError as error:
        problem = f"'{path.name}' cannot be read ({error.strerror})"
        raise CheckpointError(problem, "Give the right to read it") from error


def _read_bin(path: Path) -> dict[Any, Any]:
    try:
        if has_checksums := zipfile.is_zipfile(path):
            _check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"'{path.name}' holds something other than plain tensors and was not opened") from error
    except Exception as error:  # a damaged file makes PyTorch raise almost anything
        raise CheckpointError(f"'{path.name}' is truncated or not a PyTorch file") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"'{path.name}' is not a dictionary of tensors")
    if not has_checksums:
        logger.warning(
            "MM-Diff: '%s' is in PyTorch's old format, which has no checksums: damaged numbers in it are not noticed. "
            "If you trust it, write it anew with Save MM-Diff Checkpoint.",
            path.name,
        )
    return state


def _check_archive(path: Path) -> None:
    """Raises ValueError on files in it that unpack to more than they are or have one name, UnpicklingError on what is
    no tensor."""
    with zipfile.ZipFile(path) as archive:
        # of two files PyTorch reads one and Python checks the other; PyTorch takes capitals for small letters
        if len({name.lower() for name in archive.namelist()}) < len(archive.namelist()):
            raise ValueError("two files in it have one name")
        if min((member.header_offset for member in archive.infolist()), default=0):  # PyTorch may read that one
            raise ValueError("another file stands before it")
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > path.stat().st_size:
                raise ValueError(f"'{member.filename}' is compressed, which PyTorch never does")
            if member.external_attr & DIRECTORY:  # PyTorch then leaves the tensor's memory as it finds it
                raise ValueError(f"'{member.filename}' is marked as a folder")
            if member.filename.endswith("data.pkl"):
                names = {arg for op, arg, _ in pickletools.genops(archive.read(member)) if op.name == "GLOBAL"}
                if foreign := sorted(name for name in names if not name.startswith(PLAIN)):
                    raise pickle.UnpicklingError(f"it asks for {foreign[0]}")
        if damaged := archive.testzip():  # PyTorch does not compare checksums
            raise ValueError(f"'{damaged}' is damaged")


def _check_tensors(tensors: dict[Any, Any], file: str) -> None:
    """Raises CheckpointError unless these are dense tensors of usable numbers that the file really holds."""
    for key, tensor in tensors.items():
        if not isinstance(key, str):
            raise CheckpointError(f"'{file}' holds {_shown(key)} where the name of a tensor should be")
        if type(tensor) not in (Tensor, Parameter) or tensor.layout != torch.strided or tensor.is_meta:
            raise CheckpointError(f"'{file}': {_shown(key)} is not a plain tensor")
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"'{file}': {_shown(key)} is of {tensor.dtype}, not of floating point numbers")
        if tensor.numel() == 0 or tensor.nbytes > tensor.untyped_storage().nbytes():
            raise CheckpointError(f"'{file}': {_shown(key)} of shape {tuple(tensor.shape)} is not all in the file")
        low, high = (value.item() for value in tensor.aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CheckpointError(f"'{file}': {_shown(key)} holds NaN or infinite values")
        if max(-low, high) > LARGEST_WEIGHT:
            raise CheckpointError(
                f"'{file}': {_shown(key)} holds numbers beyond {LARGEST_WEIGHT:g}, which would paint black"
            )


def _shown(name: Any) -> str:
    """A name from a file, short enough for a message."""
    if isinstance(name, tuple | frozenset):  # one that holds itself many times is written out without end
        return f"a {type(name).__name__}"
    return f"'{name[:100]}'" if isinstance(name, str) else repr(name)[:100]


def metadata_of(variant: str, sizes: dict[str, Any], digest: str, text_encoder_2_lora: bool) -> dict[str, str]:
    """The metadata of a .safetensors checkpoint."""
    return {
        "format": "mmdiff",
        "format_version": FORMAT_VERSION,
        "variant": variant,
        "sizes": json.dumps(sizes),
        "hash": digest,
        "text_encoder_2_lora": json.dumps(text_encoder_2_lora),
    }
