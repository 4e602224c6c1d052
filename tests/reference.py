"""Reference values, computed with the released code (alibaba/mm-diff 09c0419) on the tiny weights, and their inputs.

A case's file holds its photos and crops as coarse grids (see tiny_pack.weights.smooth_picture), the rows ROWS of prompt
embeddings and the rows PATCHES of patch features, and everything else whole.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from safetensors import safe_open
from torch import Tensor

from mmdiff_model.checkpoint import Checkpoint, load_checkpoint
from mmdiff_model.prompt import TRIGGER
from mmdiff_model.subject import Face, encode_subject
from nodes import ConditioningZeroOut
from tiny_pack.weights import smooth_picture

FOLDER = Path(__file__).parent / "golden"
CASES = ("A", "B", "C", "D", "E", "E2", "F", "G", "H", "I", "J", "Z_te2lora")
ROWS = {True: [0, 1, 2, 3, 4, 5, 6, 7, 20, 76], False: [0, 2, 4, 6]}
FULL_ROWS = ("A", "E")
PATCHES = [0, 1, 25, 49]
CROP = 224
SDXL_SCALE = 0.13025

# largest allowed deviation by stage
TEXT, TOKENS, ATTENTION, NOISE, LATENTS = 3e-5, 1e-5, 6e-5, 3e-5, 3e-4

COND, UNCOND = "cond", "uncond"
NEVER = 1000


@dataclass
class Reference:
    """One run of the released pipeline: its settings and its values at every stage."""

    name: str
    config: dict
    values: dict[str, Tensor]

    @property
    def rows(self) -> list[int]:
        return ROWS[self.name in FULL_ROWS]

    @property
    def has_trigger(self) -> bool:
        return TRIGGER.search(self.config["prompt"]) is not None

    @property
    def has_negative(self) -> bool:
        """Without guidance there is no unconditional row, nor anything stored of the negative prompt."""
        return self.config["cfg"] > 1

    @property
    def prompt(self) -> str:
        return self.config["prompt"] if self.has_trigger else self.config["prompt"].replace("a man", "a man<|subj|>")

    @property
    def start_merge_step(self) -> int:
        """The released code runs a prompt without a trigger as if its subject never started."""
        return self.config["start_merge_step"] if self.has_trigger else NEVER

    def inputs(self) -> tuple[list[Tensor], list[Face]]:
        """The reference photos (H, W, 3) in 0..1 and their faces."""
        sizes = self.config["refs"]
        photos = [smooth_picture(self.values[f"photo_{i}"].numpy(), *size) for i, size in enumerate(sizes)]
        crops = [smooth_picture(self.values[f"crop_{i}"].numpy(), CROP, CROP) for i in range(len(sizes))]
        return photos, [Face(e, crop) for e, crop in zip(self.values["face_embeds"], crops, strict=True)]

    def checkpoint(self, folder: Path) -> Checkpoint:
        return load_checkpoint(folder, text_encoder_2_lora=self.config.get("te2_lora", False))

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


def zero_out(conditioning: list) -> list:
    """What the released code takes for a negative prompt that is not given."""
    return ConditioningZeroOut().zero_out(conditioning)[0]


@dataclass
class Run:
    """Final latents, each step's noise as the UNet gave it by COND and UNCOND, and what each cross-attention gave in
    the first step, (rows, h w, width) by block key, the unconditional row first.
    """

    latents: Tensor
    noises: list[dict[str, Tensor]]
    attentions: dict[str, Tensor]


def sample(model, positive: list, negative: list, reference: Reference) -> Run:
    """The released Euler run in ComfyUI's.

    The released code starts from noise * sqrt(sigma^2 + 1), ComfyUI from noise * sigma below sigma_max.
    """
    values, noises, attentions = reference.values, [], {}

    def record_noise(executor, x, timesteps, context, y, control, transformer_options, **kwargs) -> Tensor:
        noise = executor(x, timesteps, context, y, control, transformer_options, **kwargs)
        rows = [(COND, UNCOND)[index] for index in transformer_options["cond_or_uncond"]]
        noises.append(dict(zip(rows, noise.split(1), strict=True)))
        return noise

    def record_attention(out: Tensor, extra_options: dict) -> Tensor:
        block = (*extra_options["block"], extra_options["block_index"])
        order = torch.tensor(extra_options["cond_or_uncond"]).argsort(descending=True)
        attentions.setdefault(".".join(map(str, block)), out[order])
        return out

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "record", record_noise)
    model.set_model_attn2_output_patch(record_attention)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(reference.config["cfg"])
    start = values["noise"] * values["scale"] / values["sigmas"][0]
    euler = comfy.samplers.sampler_object("euler")
    latents = guider.sample(start, torch.zeros_like(start), euler, values["sigmas"], disable_pbar=True, seed=0)
    return Run(latents * SDXL_SCALE, noises, attentions)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance
