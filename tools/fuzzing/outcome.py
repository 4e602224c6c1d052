"""How a case ends, and what several kinds are made of: changes of bytes, and subjects."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch
from hypothesis import strategies as st

PACK = Path(__file__).resolve().parent.parent.parent
RIGHT, REFUSED, WRONG, RAW = "right", "refused", "wrong", "raw"
OURS = re.compile(r"[a-z_.0-9]+: .")  # the input's name begins our messages


class Wrong(AssertionError):
    """Accepted, and not as it should be."""


def judge(error: Exception) -> tuple[str, str]:
    """REFUSED for an error of ours, else RAW or WRONG, and what to say of it."""
    if isinstance(error, Wrong):
        return WRONG, str(error)[:300]
    if isinstance(error, ValueError | FileNotFoundError | FileExistsError) and OURS.match(str(error)):
        return REFUSED, ""
    frames = [f"{Path(f.filename).name}:{f.lineno}" for f in traceback.extract_tb(error.__traceback__)]
    return RAW, f"{type(error).__name__} at {' < '.join(reversed(frames[-4:]))}: {str(error)[:200]}"


def make_subject(cls: int, count: int, width: int, space: str = "0" * 16, **fields):
    from mm_diff_pack.mmdiff_model.subject import Subject

    return Subject(torch.randn(cls), torch.randn(1, count, width), "portrait", space, **fields)


places = st.one_of(st.floats(0, 1), st.floats(0, 0.02), st.floats(0.98, 1))
byte_changes = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), places, st.integers(0, 7)),
        st.tuples(st.just("put"), places, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("zero"), places, st.integers(1, 64)),
        st.tuples(st.just("cut"), places, st.just(0)),
        st.tuples(st.just("double"), places, st.integers(1, 4096)),
        st.tuples(st.just("nothing"), places, st.just(0)),
    ),
    min_size=1,
    max_size=3,
)


def change(content: bytes, changes) -> bytes:
    """The content with changes of `byte_changes` made, one after the other."""
    data = bytearray(content)
    for kind, place, how in changes:
        at = int(place * max(0, len(data) - 1))
        if not data or kind == "nothing":
            continue
        if kind == "flip":
            data[at] ^= 1 << how
        elif kind == "put":
            data[at : at + len(how)] = how
        elif kind == "insert":
            data[at:at] = how
        elif kind == "zero":
            data[at : at + how] = bytes(min(how, len(data) - at))
        elif kind == "cut":
            del data[at:]
        elif kind == "double":
            data[at:at] = data[at : at + how]
    return bytes(data)
