"""Checkpoint files: bytes changed anywhere, tensors changed; loaded as they were written, saved again, or refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmdiff_model.adapter import PORTRAIT, Sizes
from mmdiff_model.checkpoint import Checkpoint, describe, load_checkpoint, save_checkpoint, write_safetensors
from mmdiff_model.checkpoint_files import CUSTOM_FILE, OFFICIAL_FILES
from mmdiff_model.digest import fingerprint
from mmdiff_model.lora import names_of_depths

from .outcome import RIGHT, Wrong
from .states import CHANGES, apply, as_official, make_tensors
from .values import byte_changes, change

SIZES = Sizes(4, 4, (4, 6), 512, 4, 4, 12, 2, 1)
NEW, OLD, AGAIN = "new.safetensors", "old.safetensors", "again.safetensors"
LARGEST_HALF = 65504


class Checkpoints:
    """Cases are (file, changed how, changes); a file is one of the official three, a new or an old .safetensors."""

    def __init__(self, folder: Path):
        self.folder = folder / "checkpoints"
        self.folder.mkdir()
        attentions = list(names_of_depths([1, 2], 1))
        self.tensors = make_tensors(SIZES, attentions)
        self.official = as_official(self.tensors, attentions)
        metadata = describe(PORTRAIT, SIZES, self.tensors, True)
        write_safetensors(self.tensors, metadata, self.folder / NEW)
        modules = {key: value for key, value in self.tensors.items() if "lora" not in key and "vision" not in key}
        write_safetensors(
            self.tensors, {**metadata, "format_version": "1", "hash": fingerprint(modules)}, self.folder / OLD
        )
        for name, state in self.official.items():
            torch.save(state, self.folder / name)
        files = (*OFFICIAL_FILES, NEW, OLD)
        self.contents = {name: (self.folder / name).read_bytes() for name in files}
        self.names = dict(flat(as_official({key: key for key in self.tensors}, attentions)))
        self.hashes: dict[str, str] = {}
        self.whole = load_checkpoint(self.folder)
        assert load_checkpoint(self.folder / NEW).hash == load_checkpoint(self.folder / OLD).hash == self.whole.hash
        index = st.integers(0, 10_000)
        self.cases = st.tuples(
            st.sampled_from(files),
            st.one_of(
                st.tuples(st.just("bytes"), byte_changes),
                st.tuples(st.just("tensors"), st.lists(st.tuples(index, CHANGES), min_size=1, max_size=2)),
            ),
        )

    def __call__(self, case) -> str:
        """Loads what was changed: the same weights, or an error."""
        name, (how, changes) = case
        path = self.folder / name
        for other, content in self.contents.items():
            if other in OFFICIAL_FILES and (self.folder / other).stat().st_size != len(content):
                (self.folder / other).write_bytes(content)
        written: dict[str, Any] | None = {}
        try:
            if how == "bytes":
                path.write_bytes(change(self.contents[name], changes))
            elif (written := self.write_changed(path, changes)) is None:
                return RIGHT
            loaded = load_checkpoint(self.folder if name in OFFICIAL_FILES else path)
        finally:
            path.write_bytes(self.contents[name]) if name in OFFICIAL_FILES else None
        if how == "bytes" and name != OLD and loaded.hash != self.whole.hash:
            raise Wrong("loaded other numbers than were saved")
        self.check(loaded, self.tensors | (load_file(path) if name == OLD else written))
        return RIGHT

    def check(self, loaded: Checkpoint, wanted: dict[str, Any]) -> None:
        """Raises Wrong unless every tensor is there (but for whole layers that one may be without) and as it was
        written, a hash is one checkpoint's, and the checkpoint is the same when it was saved again."""
        tensors = loaded.tensors()
        lost, more = self.tensors.keys() - tensors.keys(), tensors.keys() - self.tensors.keys()
        if more or {part_of(key) for key in lost} & {part_of(key) for key in tensors}:
            raise Wrong(f"loaded without {sorted(lost)[:2]}, with {sorted(more)[:2]}")
        for key, tensor in tensors.items():
            if not tensor.isfinite().all():
                raise Wrong("loaded with numbers that are not finite")
            if not torch.equal(kept(tensor), kept(wanted[key])):
                raise Wrong(f"loaded other numbers than were written: {key}")
        content = hashlib.sha256(b"".join(kept(tensors[key]).numpy().tobytes() for key in sorted(tensors))).hexdigest()
        if self.hashes.setdefault(loaded.hash, content) != content:
            raise Wrong("loaded with the hash of another checkpoint")
        save_checkpoint(loaded, self.folder / AGAIN)
        again = load_checkpoint(self.folder / AGAIN)
        if again.hash != loaded.hash or not all(torch.equal(tensors[k], one) for k, one in again.tensors().items()):
            raise Wrong("saved again as another checkpoint")

    def write_changed(self, path: Path, changes) -> dict[str, Any] | None:
        """Writes a state with tensors changed -> what there is under the readable names; None where this kind of file
        cannot hold such a thing."""
        is_bin = path.name in OFFICIAL_FILES
        state = dict(self.official[path.name] if is_bin else self.tensors)
        if path.name == CUSTOM_FILE:
            group = sorted(state)[changes[0][0] % len(state)]
            if changes[0][1][0] != "group":
                state[group] = apply(dict(state[group]), changes)
            else:
                state = apply(state, changes)
        else:
            state = apply(state, changes)
        if is_bin:
            torch.save(state, path)
            return {self.names[place]: value for place, value in flat({path.name: state}) if place in self.names}
        if not all(
            isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
            for value in state.values()
        ):
            return None
        if any(value.numel() > 1_000_000 for value in state.values()):
            return None
        state = {str(key).encode(errors="replace").decode(): tensor for key, tensor in state.items()}
        save_file({key: tensor.contiguous().clone() for key, tensor in state.items()}, path)
        return state


def flat(state: dict, place: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every value of dictionaries in dictionaries, and the keys that lead to it."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flat(value, (*place, key))
        else:
            yield (*place, key), value


def part_of(key: str) -> str:
    """What of a checkpoint one may be without, as a whole: layers and projection of CLIP, a text encoder's layer; of
    other tensors the name of them all."""
    layer = re.match(r"(vision|text_lora)\..*layers\.\d+\.|vision\.visual_projection\.", key)
    return layer[0] if layer else ""


def kept(tensor: Tensor) -> Tensor:
    """What must stay of numbers whatever the dtype: half precision, and those beyond its range as they are."""
    exact = tensor.double()
    return torch.where(exact.abs() > LARGEST_HALF, exact, exact.half().double())
