"""A subject as a file, for use without its photos: .safetensors with CLS, tokens, region and a JSON header."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from .adapter import PORTRAIT, SUBJECT
from .checkpoint import write_safetensors
from .prompt import NAME
from .subject import LARGEST_IDENTITY, THUMBNAIL, Subject, is_plausible

FORMAT, FORMAT_VERSION = "mmdiff_subject", 1
HEADER = ("variant", "space", "name", "strength", "start_percent", "end_percent", "scores", "outliers")
TENSORS = ("cls", "tokens", "region")
LARGEST_FILE, LARGEST_HEADER, LARGEST_THUMBNAIL = 512 << 20, 1 << 20, 4 * THUMBNAIL
AGAIN = "Save the subject again"


class SubjectFileError(ValueError):
    """The file is not a usable subject file; the message says why and what to do."""

    def __init__(self, problem: str, remedy: str = AGAIN):
        super().__init__(f"file: {problem}. {remedy}.")


def save_subject(subject: Subject, path: Path, overwrite: bool = True) -> None:
    """Writes the subject; a failed write leaves nothing behind. Raises OSError, and ValueError on what Load refuses."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, **{key: getattr(subject, key) for key in HEADER}}
    if subject.thumbnail is not None:
        header["thumbnail"] = encode_thumbnail(subject.thumbnail)
    tensors = {key: getattr(subject, key).contiguous() for key in TENSORS if getattr(subject, key) is not None}
    try:
        check_header(json.loads(json.dumps(header)))
        check_tensors(tensors)
    except ValueError as error:
        raise ValueError(
            f"subject: it cannot be saved, {error}. Set it anew in MM-Diff Subject Region, or encode its photos again."
        ) from error
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > LARGEST_FILE - LARGEST_HEADER:
        raise ValueError(
            f"subject: its tensors take {size >> 20} MB, and a subject file holds {LARGEST_FILE >> 20} MB. "
            "Use a smaller mask."
        )
    header["digest"] = digest_of(header, tensors)
    write_safetensors(tensors, {FORMAT: json.dumps(header)}, path, overwrite)


def load_subject(path: Path) -> Subject:
    """Reads what save_subject wrote, all of it checked. Raises SubjectFileError."""
    metadata, tensors = read(path)
    if FORMAT not in metadata:
        raise SubjectFileError(f"'{path.name}' is not a subject file", "Make one with Save MM-Diff Subject")
    try:
        header = json.loads(metadata[FORMAT])
        version = header["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            problem = f"'{path.name}' has format version {version}, this pack reads up to {FORMAT_VERSION}"
            raise SubjectFileError(problem, "Update the pack")
        check_header(header)
        check_tensors(tensors)
        if header.pop("digest", None) not in (None, digest_of(header, tensors)):
            raise ValueError("its contents are not those that were saved (their digest)")
        thumbnail = decode_thumbnail(header["thumbnail"]) if "thumbnail" in header else None
    except SubjectFileError:
        raise
    except KeyError as error:
        raise SubjectFileError(f"'{path.name}' lacks {error}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise SubjectFileError(f"'{path.name}' is damaged: {error}") from error
    fields = {key: header[key] for key in HEADER} | {key: tuple(header[key]) for key in ("scores", "outliers")}
    found = {key: tensors[key].float() if key in tensors else None for key in TENSORS}
    return Subject(**found, **fields, thumbnail=thumbnail)


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and tensors of a .safetensors, from one reading of it. Raises SubjectFileError."""
    if path.is_dir():
        raise SubjectFileError(f"'{path.name}' is a folder", "Choose a file that Save MM-Diff Subject wrote")
    if path.exists() and not path.is_file():
        raise SubjectFileError(f"'{path.name}' is not a file")
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise SubjectFileError(f"'{path.name}' is larger than {LARGEST_FILE >> 20} MB: it is not a subject file")
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return header.get("__metadata__") or {}, tensors
    except SubjectFileError:
        raise
    except OSError as error:
        raise SubjectFileError(
            f"'{path.name}' cannot be read ({error.strerror})", "Give the right to read it"
        ) from error
    except Exception as error:  # besides its own, the library raises what its parsers and PyTorch raise
        raise SubjectFileError(f"'{path.name}' is truncated or not a .safetensors file") from error


def is_name(text: str) -> bool:
    """Whether a trigger can call a subject by it, or it is none; a number calls a place, and spaces around are lost."""
    return bool(NAME.fullmatch(text)) and text == text.strip() and not text.isdecimal()


def is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


CHECKS: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: value == FORMAT,
    "format_version": lambda value: value == FORMAT_VERSION,
    "variant": lambda value: value in (PORTRAIT, SUBJECT),
    "space": lambda value: isinstance(value, str) and bool(re.fullmatch("[0-9a-f]{16,64}", value)),
    "name": lambda value: isinstance(value, str) and is_name(value),
    "strength": lambda value: is_number(value, 0, 3),
    "start_percent": lambda value: is_number(value, 0, 1),
    "end_percent": lambda value: is_number(value, 0, 1),
    "scores": lambda value: isinstance(value, list) and all(is_number(score, -1e6, 1e6) for score in value),
    "outliers": lambda value: isinstance(value, list) and all(type(n) is int and 0 < n < 1e6 for n in value),
}


def check_header(header: dict[str, Any]) -> None:
    """Raises KeyError on a missing field, ValueError on one that save_subject does not write."""
    for key, check in CHECKS.items():
        if not check(header[key]):
            raise ValueError(f"its {key} is {str(header[key])[:60]!r}")
    if header["start_percent"] > header["end_percent"]:
        raise ValueError(f"its start_percent {header['start_percent']} is after its end_percent")


def check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises KeyError on a missing tensor, ValueError on one that save_subject does not write."""
    for key, dimensions in (("cls", 1), ("tokens", 3), ("region", 2)):
        if key == "region" and key not in tensors:
            continue
        tensor = tensors[key]
        if tensor.ndim != dimensions or tensor.numel() == 0:
            raise ValueError(f"its {key} has shape {tuple(tensor.shape)}, not {dimensions} dimensions")
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(f"its {key} is of {tensor.dtype}")
        if not tensor.isfinite().all():
            raise ValueError(f"its {key} holds NaN or infinite values")
        if key != "region" and not is_plausible(tensor):
            raise ValueError(f"its {key} holds numbers beyond {LARGEST_IDENTITY:g}")
    if unknown := sorted(tensors.keys() - set(TENSORS)):
        raise ValueError(f"it holds an unknown tensor '{unknown[0][:60]}'")
    if "region" in tensors and not (tensors["region"].min() >= 0 and tensors["region"].max() <= 1):
        raise ValueError("its region is not a mask in 0..1")


def digest_of(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of everything in the file."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for key in sorted(tensors):
        digest.update(f"{key} {list(tensors[key].shape)} {tensors[key].dtype}".encode())
        digest.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def encode_thumbnail(picture: Tensor) -> str:
    """(H, W, 3) in 0..1 -> PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray((picture * 255).round().byte().numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode_thumbnail(text: str) -> Tensor:
    """PNG in base64 -> (H, W, 3) in 0..1. Raises ValueError on another format, or one too large to be a thumbnail."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as picture:
            if max(picture.size) > LARGEST_THUMBNAIL:
                raise ValueError(f"it has {picture.width} x {picture.height} pixels")
            return torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
    except Exception as error:  # Pillow's decoders raise almost anything
        raise ValueError(f"its thumbnail is not a small PNG ({error})") from error
