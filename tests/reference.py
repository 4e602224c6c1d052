"""Reference values, computed with the released code (alibaba/mm-diff 09c0419) on the tiny weights, and their inputs.

A case's file holds its photos and crops as coarse grids (see tiny_pack.weights.smooth_picture), the rows ROWS of prompt
embeddings and the rows PATCHES of patch features, and everything else whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import comfy.samplers
import torch
from safetensors import safe_open
from torch import Tensor

from mmdiff_model.subject import Face, encode_subject
from tiny_pack.weights import smooth_picture

FOLDER = Path(__file__).parent / "golden"
CASES = ("A", "B", "C", "D", "E", "E2", "F", "G", "H", "I", "J", "Z_te2lora")
ROWS = {True: [0, 1, 2, 3, 4, 5, 6, 7, 20, 76], False: [0, 2, 4, 6]}
FULL_ROWS = ("A", "E")
PATCHES = [0, 1, 25, 49]
CROP = 224
SDXL_SCALE = 0.13025

# largest allowed deviation by stage
TEXT, TOKENS, NOISE, LATENTS = 3e-5, 1e-5, 3e-5, 3e-4


@dataclass
class Reference:
    """One run of the released pipeline: its settings and its values at every stage."""

    name: str
    config: dict
    values: dict[str, Tensor]

    @property
    def rows(self) -> list[int]:
        return ROWS[self.name in FULL_ROWS]

    def inputs(self) -> tuple[list[Tensor], list[Face]]:
        """The reference photos (H, W, 3) in 0..1 and their faces."""
        sizes = self.config["refs"]
        photos = [smooth_picture(self.values[f"photo_{i}"].numpy(), *size) for i, size in enumerate(sizes)]
        crops = [smooth_picture(self.values[f"crop_{i}"].numpy(), CROP, CROP) for i in range(len(sizes))]
        return photos, [Face(e, crop) for e, crop in zip(self.values["face_embeds"], crops, strict=True)]

    def subjects(self, checkpoint, clip_vision) -> list:
        """One subject of all photos, or one for each where the case has several subjects."""
        photos, faces = self.inputs()
        if self.config.get("subjects", 1) == 1:
            return [encode_subject(checkpoint, clip_vision, photos, faces)]
        return [encode_subject(checkpoint, clip_vision, [p], [f]) for p, f in zip(photos, faces, strict=True)]


def load(name: str) -> Reference:
    """A case, with the inputs of case A where it shares them."""
    with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["config"])
        values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if "inputs_of" in config:
        shared = load(config["inputs_of"]).values
        values = {**{key: value for key, value in shared.items() if "." not in key}, **values}
    return Reference(name, config, values)


def sample(model, positive: list, negative: list, reference: Reference) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The released Euler run in ComfyUI's: final latents, and each step's conditional and unconditional noise.

    The released code starts from noise * sqrt(sigma^2 + 1), ComfyUI from noise * sigma below sigma_max.
    """
    values, predictions = reference.values, []

    def record(args: dict) -> Tensor:
        noise = (
            (args["input"] - args[key]) / args["sigma"]
            for key in ("cond_denoised", "uncond_denoised")
            if args[key] is not None
        )
        predictions.append(tuple(noise))
        return args["denoised"]

    model = model.clone()
    model.set_model_sampler_post_cfg_function(record)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(reference.config["cfg"])
    start = values["noise"] * values["scale"] / values["sigmas"][0]
    euler = comfy.samplers.sampler_object("euler")
    latents = guider.sample(start, torch.zeros_like(start), euler, values["sigmas"], disable_pbar=True, seed=0)
    return latents * SDXL_SCALE, predictions


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance
