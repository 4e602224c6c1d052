"""How much memory a training of SDXL takes, counted with tensors that have shapes alone: no weights, a few seconds.

Counted are the weights of the base, what AdamW and the average keep of the trained ones, and what a micro-batch's
forward pass through the UNet keeps for its backward pass. The CUDA context, the allocator's gaps and the passing peaks
of single operations come on top.
"""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import comfy.clip_model
import comfy.clip_vision
import comfy.model_base
import comfy.ops
import comfy.sdxl_clip
import comfy.supported_models
import torch
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from .config import Base, Settings
from .constraint import NONE, AttentionConstraint
from .encoders import attend_as_torch
from .objective import PIXELS_PER_LATENT, Objective
from .trainable import Trainable

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 10, 10],
    "transformer_depth_middle": 10,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    "num_head_channels": 64,
    "context_dim": 2048,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
    "image_size": 32,
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "legacy": False,
}
VISION_CONFIG = "clip_vision_config_vitl.json"
VAE_BYTES = 2 * 83_653_863  # SDXL's VAE in half precision
SUBJECTS, TOKENS = 2, 77
KEPT = 8 + 4  # bytes of a trained value beside itself: AdamW's two moments, average
GB = 1e9


@dataclass(frozen=True)
class Memory:
    """Bytes of the frozen base, of what is trained, and of a micro-batch's activations; `state` those of state.pt."""

    base: int
    trained: int
    activations: int
    state: int

    @property
    def total(self) -> int:
        return self.base + self.trained + self.activations


def report(config: Settings) -> str:
    """A table of the configuration's own memory and of what other settings would take. Raises ValueError."""
    if not isinstance(config.base, Base):
        raise ValueError("base: --estimate counts the memory of SDXL, and this configuration trains another base.")
    plan = config.plan
    options = {
        "as configured": config,
        "gradient_checkpointing: " + ("false" if config.gradient_checkpointing else "true"): dataclasses.replace(
            config, gradient_checkpointing=not config.gradient_checkpointing
        ),
        "plan.precision: fp32": with_plan(config, precision="fp32"),
        f"plan.batch_size: {2 * plan.batch_size}": with_plan(config, batch_size=2 * plan.batch_size),
        "data.size: 768": dataclasses.replace(config, data=dataclasses.replace(config.data, size=768)),
        "shape.lora_rank: 16": dataclasses.replace(config, shape=dataclasses.replace(config.shape, lora_rank=16)),
    }
    memories = {name: estimate(option) for name, option in options.items()}
    lines = [f"{'GB':36}{'base':>8}{'trained':>10}{'activations':>13}{'total':>8}"]
    for name, memory in memories.items():
        values = (part / GB for part in (memory.base, memory.trained, memory.activations, memory.total))
        lines.append(f"{name:36}" + "{:8.1f}{:10.1f}{:13.1f}{:8.1f}".format(*values))
    state = memories["as configured"].state / GB
    lines += [
        f"Each of several processes takes as much. state.pt has {state:.1f} GB, and twice that while it is replaced;",
        "going on from it takes no more of a GPU's memory, as its tensors are copied from the disk one by one.",
    ]
    return "\n".join(lines)


def with_plan(config: Settings, **changes) -> Settings:
    return dataclasses.replace(config, plan=dataclasses.replace(config.plan, **changes))


def estimate(config: Settings) -> Memory:
    """The memory of one process of a training on SDXL."""
    dtype = config.plan.dtype
    with FakeTensorMode(allow_non_fake_inputs=True), torch.enable_grad():
        return count(config, dtype)


def count(config: Settings, dtype: torch.dtype) -> Memory:
    model, clip, clip_vision = build_sdxl(dtype)
    trainable = Trainable(model, clip, clip_vision, config.variant, config.shape, config.parts)
    frozen = (model.diffusion_model, clip.cond_stage_model, clip_vision.model)
    weights = sum(weight.nbytes for module in frozen for weight in module.parameters())
    held = sum(weight.nbytes for weight in trainable.parameters())
    trained = sum(weight.numel() for weight in trainable.parameters() if weight.requires_grad)
    objective = Objective(SimpleNamespace(model=model), clip, clip_vision, trainable, config.losses, {}, config.plan)
    objective.attention = attend_as_torch  # a GPU's kernel keeps no attention matrix
    saved = Saved(model.diffusion_model)
    with saved, config.plan.autocast(objective.device):
        predict(objective, config)
    activations = saved.with_checkpointing() if config.gradient_checkpointing else saved.total
    # gradients of 4 bytes lie in the buckets that several processes share, so those take nothing more
    return Memory(weights + VAE_BYTES, held + (4 + KEPT) * trained, activations, held + KEPT * trained)


def build_sdxl(dtype: torch.dtype) -> tuple[comfy.model_base.SDXL, SimpleNamespace, SimpleNamespace]:
    """ComfyUI's modules of SDXL's UNet, text encoders and CLIP ViT-L, without values."""
    settings = comfy.supported_models.SDXL({**UNET, "dtype": dtype})
    settings.unet_config.update(UNET, dtype=dtype)
    model = comfy.model_base.SDXL(settings)
    text = comfy.sdxl_clip.SDXLClipModel(dtype=dtype)
    config = json.loads(Path(inspect.getfile(comfy.clip_vision)).with_name(VISION_CONFIG).read_text())
    vision = comfy.clip_model.CLIPVisionModelProjection(config, dtype, "cpu", comfy.ops.manual_cast)
    return model, SimpleNamespace(cond_stage_model=text), SimpleNamespace(config=config, model=vision)


def predict(objective: Objective, config: Settings) -> Tensor:
    """A micro-batch's pass through the UNet, with all subjects and the attention constraint."""
    rows, side = config.plan.batch_size, config.data.size // PIXELS_PER_LATENT
    sizes = objective.trainable.sizes
    masks = torch.zeros(rows, SUBJECTS, side, side)
    present = torch.ones(rows, SUBJECTS, dtype=torch.bool)
    constraint = None
    if config.losses.constraint != NONE:
        positions = torch.zeros(rows, SUBJECTS, dtype=torch.long)
        constraint = AttentionConstraint(config.losses.constraint, masks, positions, text=present, image=present)
    latents = torch.zeros(rows, 4, side, side)
    batch = SimpleNamespace(latents=latents, noise=latents)
    context = torch.zeros(rows, TOKENS, sizes.context_dim, requires_grad=True)
    tokens = torch.zeros(rows, SUBJECTS, sizes.num_tokens, sizes.context_dim, requires_grad=True)
    pooled = torch.zeros(rows, sizes.text_dims[1])
    sigma = torch.ones(rows)
    return objective.denoise(batch, sigma, context, pooled, tokens, present, constraint)


class Saved(saved_tensors_hooks):
    """Counts the bytes that autograd keeps, each storage once and weights not at all, and of which block they are."""

    def __init__(self, unet: nn.Module):
        super().__init__(self.pack, lambda tensor: tensor)
        self.weights = {weight.untyped_storage()._cdata for weight in unet.parameters()}
        self.storages: dict[int, torch.UntypedStorage] = {}
        self.total = 0
        self.blocks: list[tuple[int, int]] = []  # bytes of a block's inputs, and of what it keeps
        for block in unet.modules():
            if isinstance(block, (BasicTransformerBlock, ResBlock)):
                block.register_forward_pre_hook(self.enter)
                block.register_forward_hook(self.leave)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage
            self.total += storage.nbytes()
        return tensor

    def enter(self, block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.before = self.total

    def leave(self, block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.blocks.append((inputs[0].nbytes, self.total - self.before))

    def with_checkpointing(self) -> int:
        """Bytes where blocks keep their inputs alone, and the largest is being run again."""
        kept = sum(inside for _, inside in self.blocks)
        return self.total - kept + sum(inputs for inputs, _ in self.blocks) + max(inside for _, inside in self.blocks)
