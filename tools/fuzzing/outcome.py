"""How a case ends, and the subjects of several kinds."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch

PACK = Path(__file__).resolve().parent.parent.parent
RIGHT, REFUSED, WRONG, RAW = "right", "refused", "wrong", "raw"
SURROGATE = re.compile("[\ud800-\udfff]")
OURS = re.compile(r"[a-z_.0-9]+: .")  # the input's name begins our messages


class Wrong(AssertionError):
    """Accepted, and not as it should be."""


def judge(error: Exception) -> tuple[str, str]:
    """REFUSED for an error of ours, else RAW or WRONG, and what to say of it."""
    if isinstance(error, Wrong):
        return WRONG, str(error)[:300]
    if isinstance(error, ValueError | FileNotFoundError | FileExistsError) and OURS.match(str(error)):
        if type(error).__module__ == "builtins" and SURROGATE.search(str(error)):  # as nodes raise it
            return WRONG, f"said what ends ComfyUI's worker: {str(error)[:200]}"
        return REFUSED, ""
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    return RAW, f"{type(error).__name__} at {' < '.join(reversed(frames[-4:]))}: {str(error)[:200]}"


def make_subject(cls: int, count: int, width: int, space: str = "0" * 16, **fields):
    from mm_diff_pack.mmdiff_model.subject import Subject

    return Subject(torch.randn(cls), torch.randn(1, count, width), "portrait", space, **fields)
