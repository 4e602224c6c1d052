"""A subject as a file, for use without its photos: .safetensors with CLS, tokens, region and a JSON header."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import write_safetensors
from .subject import Subject

FORMAT, FORMAT_VERSION = "mmdiff_subject", 1
HEADER = ("variant", "space", "name", "strength", "start_percent", "end_percent", "scores", "outliers")
TENSORS = ("cls", "tokens", "region")


class SubjectFileError(ValueError):
    """The file is not a usable subject file; the message says why and what to do."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(f"file: {problem}. {remedy}.")


def save_subject(subject: Subject, path: Path) -> None:
    """Writes the subject; a failed write leaves nothing behind. Raises OSError."""
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, **{key: getattr(subject, key) for key in HEADER}}
    if subject.thumbnail is not None:
        header["thumbnail"] = encode_thumbnail(subject.thumbnail)
    tensors = {key: getattr(subject, key).contiguous() for key in TENSORS if getattr(subject, key) is not None}
    write_safetensors(tensors, {"mmdiff_subject": json.dumps(header)}, path)


def load_subject(path: Path) -> Subject:
    """Reads what save_subject wrote. Raises SubjectFileError on a truncated, foreign or later-format file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SubjectFileError(
            f"'{path.name}' is truncated or not a .safetensors file", "Save the subject again"
        ) from error
    if "mmdiff_subject" not in metadata:
        raise SubjectFileError(f"'{path.name}' is not a subject file", "Make one with Save MM-Diff Subject")
    header = json.loads(metadata["mmdiff_subject"])
    if header["format_version"] > FORMAT_VERSION:
        problem = f"'{path.name}' has format version {header['format_version']}, this pack reads up to {FORMAT_VERSION}"
        raise SubjectFileError(problem, "Update the pack")
    if missing := [key for key in HEADER if key not in header] + [
        key for key in ("cls", "tokens") if key not in tensors
    ]:
        raise SubjectFileError(f"'{path.name}' lacks {', '.join(missing)}", "Save the subject again")
    fields = {key: header[key] for key in HEADER} | {key: tuple(header[key]) for key in ("scores", "outliers")}
    thumbnail = decode_thumbnail(header["thumbnail"]) if "thumbnail" in header else None
    return Subject(**{key: tensors.get(key) for key in TENSORS}, **fields, thumbnail=thumbnail)


def encode_thumbnail(picture: Tensor) -> str:
    """(H, W, 3) in 0..1 -> PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray((picture * 255).round().byte().numpy()).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decode_thumbnail(text: str) -> Tensor:
    """PNG in base64 -> (H, W, 3) in 0..1."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"))).float() / 255
