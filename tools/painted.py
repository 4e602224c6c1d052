"""What a folder's pictures were painted from, noted in it, so that another plan's are not taken for them."""

from __future__ import annotations

import hashlib
import json
import re
import urllib.error
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from comfy_client import Client, Prompt, ServerError
from mmdiff_model.files import write_whole

PLAN_FILE = "plan.json"
ALL: Mapping[str, Sequence[str]] = MappingProxyType({})
FILES = "LoadImage", "LoadImageMask"
LOADED = r"(?s)(?:(.*)/)?([^/]*?)(?: \[(input|output|temp)\])?"  # folder, file and kind in what a Load Image says


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def own_files(prompt: Prompt, filled: set[str], client: Client) -> dict[str, str]:
    """The pictures that a workflow loads itself, such as a region's mask: the digest of each, by its name.

    filled: the nodes that get the subjects' photos. Raises ServerError, ValueError where a picture is not there.
    """
    loaders = {number for number, node in prompt.items() if node.get("class_type") in FILES and number not in filled}
    if not loaders:
        return {}
    kinds = client.object_info()
    outputs = [number for number, node in prompt.items() if kinds.get(node["class_type"], {}).get("output_node")]
    names = {prompt[number]["inputs"].get("image") for number in loaders.intersection(above(prompt, *outputs))}
    return {name: digest(loaded(name, client)) for name in names if isinstance(name, str)}


def above(prompt: Prompt, *numbers: str, followed: Mapping[str, Sequence[str]] = ALL) -> list[str]:
    """Nodes and those that they come from; of the kinds in `followed`, by these inputs alone."""
    seen: dict[str, None] = {}
    left = list(numbers)
    while left:
        if (number := left.pop()) in seen or number not in prompt:
            continue
        seen[number] = None
        inputs = prompt[number]["inputs"]
        names = followed.get(prompt[number]["class_type"], inputs)
        left += [inputs[name][0] for name in names if is_link(inputs.get(name))]
    return list(seen)


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)


def loaded(name: str, client: Client) -> bytes:
    """A picture as a Load Image names it. Raises ServerError, ValueError."""
    place, file, kind = re.fullmatch(LOADED, name).groups()
    kind = kind or "input"
    try:
        return client.view({"filename": file, "subfolder": place or "", "type": kind})
    except ServerError as error:
        if isinstance(error.__cause__, urllib.error.HTTPError) and error.__cause__.code == 404:
            raise ValueError(
                f"workflow: it loads '{name}', which is not in ComfyUI's {kind} folder. Put it there, or choose "
                "another picture in the workflow."
            ) from error
        raise


def check_plan(folder: Path, prompt: Prompt, photos: dict[str, Path], files: dict[str, str]) -> None:
    """Notes what the folder's pictures come from, and what a plan of an older version lacks.

    A folder without a picture has none. Raises ValueError where it is another workflow, another photo of a subject, or
    another content of a picture that the workflow loads.
    """
    path = folder / PLAN_FILE
    remedy = f"Choose another --pictures folder, or delete {path} to let both stand beside each other."
    now = hashlib.sha256(json.dumps(prompt, sort_keys=True).encode()).hexdigest()
    begun = path.is_file() and any(folder.rglob("*.png"))
    noted = json.loads(path.read_text(encoding="utf-8")) if begun else {"workflow": now}
    if noted.get("workflow") != now:
        raise ValueError(f"pictures: {folder} was painted with another workflow or other settings of it. {remedy}")
    known = noted.setdefault("photos", {})
    for subject, photo in photos.items():
        content = digest(photo.read_bytes())
        if known.setdefault(subject, content) != content:
            raise ValueError(f"pictures: {folder} was painted with another photo of {subject} than {photo}. {remedy}")
    loaded = noted.setdefault("files", {})
    for name, content in files.items():
        if loaded.setdefault(name, content) != content:
            raise ValueError(f"pictures: {folder} was painted with another {name} in ComfyUI's folder. {remedy}")
    write_whole(path, lambda partial: partial.write_text(json.dumps(noted), encoding="utf-8"))
