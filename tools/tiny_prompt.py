"""Prompts of the shipped workflows, changed to run anywhere: tiny models in place of the large ones, and no MM-Diff."""

import copy
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHECKPOINT = "tiny"
TRIGGER = re.compile(r"<\|subj.*?\|>")
FULL_SIZE = 1024  # pixels a side that the workflows' numbers are about
PIXELS = {
    "ImageScale": ("width", "height"),
    "ImageCrop": ("width", "height", "x", "y"),
    "ImageCompositeMasked": ("x", "y"),
    "SolidMask": ("width", "height"),
    "FeatherMask": ("left", "top", "right", "bottom"),
    "GrowMask": ("expand",),
}
TEXT_SLOTS = {  # outputs that are texts
    "MMDiffApply": {1: "positive", 2: "negative"},
    "MMDiffTextEncode": {0: "positive", 1: "negative"},
    "MMDiffApplyModel": {},
}
MODEL_OUTPUTS = {"CheckpointLoaderSimple": [0, 1, 2], "CLIPVisionLoader": [3]}  # of MMDiffTinyModels

Prompt = dict[str, dict[str, Any]]


def write_tiny_models(models: Path) -> None:
    """The files that a prompt from with_tiny_models loads: an official-format checkpoint and an InsightFace pack.

    ComfyUI's own modules must be importable.
    """
    from tiny_pack.checkpoint import write_official_checkpoint
    from tiny_pack.faces import write_face_pack

    write_official_checkpoint(models / "mmdiff" / CHECKPOINT)
    write_face_pack(models / "insightface")


def with_tiny_models(prompt: Prompt, photos: Sequence[str], size: int = 128, steps: int = 4) -> Prompt:
    """The prompt with tiny models, these uploaded photos in turn, pictures of size x size px and so many steps."""
    tiny = copy.deepcopy(prompt)
    tiny["tiny"] = {"class_type": "MMDiffTinyModels", "inputs": {"seed": 20}}
    names = itertools.cycle(photos)
    sources = {}
    for node_id, node in prompt.items():
        inputs = tiny[node_id]["inputs"]
        kind = node["class_type"]
        if kind in MODEL_OUTPUTS:
            sources |= {(node_id, slot): ["tiny", output] for slot, output in enumerate(MODEL_OUTPUTS[kind])}
            del tiny[node_id]
        elif kind == "MMDiffLoader":
            inputs["checkpoint"] = CHECKPOINT
        elif kind == "LoadImage":
            inputs["image"] = next(names)
        elif kind == "EmptyLatentImage":
            inputs |= {"width": size, "height": size}
        elif kind == "KSampler":
            inputs["steps"] = steps
        elif kind == "ImageScaleToTotalPixels":
            inputs["megapixels"] = 0.01
        for name in PIXELS.get(kind, ()):
            inputs[name] = inputs[name] * size // FULL_SIZE
    relink(tiny, sources)
    return tiny


def without_mmdiff(prompt: Prompt) -> Prompt:
    """The prompt with plain text and the bare model: what the base model paints from the same words."""
    plain = copy.deepcopy(prompt)
    sources = {}
    for node_id, node in prompt.items():
        if node["class_type"] not in TEXT_SLOTS:
            continue
        inputs = node["inputs"]
        if "model" in inputs:
            sources[node_id, 0] = inputs["model"]
        for slot, text in TEXT_SLOTS[node["class_type"]].items():
            sources[node_id, slot] = [f"{node_id}-{text}", 0]
            words = TRIGGER.sub("", inputs[text])
            plain[f"{node_id}-{text}"] = {
                "class_type": "CLIPTextEncode",
                "inputs": {"clip": inputs["clip"], "text": words},
            }
        del plain[node_id]
    relink(plain, sources)
    return plain


def relink(prompt: Prompt, sources: dict[tuple[str, int], list[Any]]) -> None:
    """Makes every input that comes from one of the keys, (node id, output), come from its value."""
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list) and tuple(value) in sources:
                node["inputs"][name] = sources[tuple(value)]
