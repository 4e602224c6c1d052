"""Subject files: bytes changed anywhere, and headers, tensors and thumbnails of every kind; saved again as loaded."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import fields
from pathlib import Path

import torch
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from mmdiff_model.subject import Subject
from mmdiff_model.subject_file import FORMAT, load_subject, save_subject

from .outcome import RIGHT, Wrong
from .values import LARGE, any_text, byte_changes, change

json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), any_text(20), st.just(10**400)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]
NUMBERS = [0.0, 1.0, 0.5, -1.0, float("nan"), float("inf"), *LARGE]
shapes = st.lists(st.sampled_from([0, 1, 2, 4, 8]), max_size=4)
tensors = st.tuples(shapes, st.sampled_from(DTYPES), st.sampled_from(NUMBERS))


def picture(kind: str, size: int) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size)).save(buffer, kind)
    return base64.b64encode(buffer.getvalue()).decode()


PICTURES = [picture(kind, 32) for kind in ("PNG", "GIF", "JPEG", "BMP", "TIFF", "WEBP", "EPS", "PPM", "ICO")]
PICTURES += [picture("PNG", 4000), "", "====", "no base64", "A" * 5000]


class Subjects:
    """Cases are changes of bytes, or (header field, value), (tensor, kind) or a thumbnail for a file of ours."""

    def __init__(self, folder: Path):
        self.path = folder / "subjects" / "anna.safetensors"
        self.subject = Subject(
            torch.randn(4), torch.randn(2, 2, 8), "portrait", "0123456789abcdef" * 2, "anna", region=torch.rand(3, 4),
            scores=(0.5, 0.25), outliers=(2,), thumbnail=torch.rand(16, 16, 3),
        )  # fmt: skip
        save_subject(self.subject, self.path)
        self.content = self.path.read_bytes()
        self.again = load_subject(self.path)
        length = int.from_bytes(self.content[:8], "little")
        self.header = json.loads(json.loads(self.content[8 : 8 + length])["__metadata__"][FORMAT])
        fields_of = st.sampled_from([*self.header, "more"])
        self.cases = st.one_of(
            st.tuples(st.just("bytes"), byte_changes),
            st.tuples(st.just("header"), st.tuples(fields_of, json_values, st.booleans())),
            st.tuples(st.just("tensor"), st.tuples(st.sampled_from(["cls", "tokens", "region", "other"]), tensors)),
            st.tuples(st.just("thumbnail"), st.one_of(st.sampled_from(PICTURES), st.binary(max_size=99).map(encode))),
            st.tuples(st.just("thumbnail"), byte_changes.map(self.changed_thumbnail)),
        )

    def changed_thumbnail(self, changes) -> str:
        return encode(change(base64.b64decode(self.header["thumbnail"]), changes))

    def __call__(self, case) -> str:
        how, what = case
        if how == "bytes":
            self.path.write_bytes(change(self.content, what))
        else:
            self.write(how, what)
        loaded = load_subject(self.path)
        if how == "bytes" and (other := difference(loaded, self.again)):
            raise Wrong(f"loaded another {other}")
        for tensor in (loaded.cls, loaded.tokens, loaded.region, loaded.thumbnail):
            if tensor is not None and not (tensor.isfinite().all() and tensor.dtype == torch.float32):
                raise Wrong("loaded numbers that are not finite")
        if not (0 <= loaded.start_percent <= loaded.end_percent <= 1 and 0 <= loaded.strength <= 3):
            raise Wrong("loaded a range that is none")
        save_subject(loaded, self.path)
        if other := difference(load_subject(self.path), loaded):
            raise Wrong(f"saved again with another {other}")
        return RIGHT

    def write(self, how: str, what) -> None:
        """A file without its digest, as a version before it wrote."""
        header = {key: value for key, value in self.header.items() if key != "digest"}
        found = {"cls": self.subject.cls, "tokens": self.subject.tokens, "region": self.subject.region}
        if how == "header":
            key, value, keep = what
            header[key] = value
            if not keep:
                del header[key]
        elif how == "thumbnail":
            header["thumbnail"] = what
        else:
            key, (shape, dtype, value) = what
            found[key] = torch.full(shape, value, dtype=torch.float64).to(dtype)
        save_file(found, self.path, {FORMAT: json.dumps(header)})


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def difference(one: Subject, other: Subject) -> str:
    """The name of a field that two subjects do not share, or ""."""
    for field in fields(Subject):
        value, wanted = getattr(one, field.name), getattr(other, field.name)
        both = torch.is_tensor(value) and torch.is_tensor(wanted)
        if not (torch.equal(value, wanted) if both else value is wanted or value == wanted):
            return field.name
    return ""
