"""Checkpoints of random numbers, whole, and with tensors taken away, renamed, reshaped, or of another kind."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mmdiff_model.adapter import PORTRAIT, Adapter, Sizes
from mmdiff_model.checkpoint_files import CUSTOM_FILE, OFFICIAL_GROUPS, TEXT_FILE, UNET_FILE

from .values import LARGE, any_text

LAYER = ("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2", *(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")))
NUMBERS = st.sampled_from(["0", "1", "7", "999", "1000000000000", "9" * 5000, "-1", "\u0663", "0x1", ""])
FLOATS = [torch.float16, torch.bfloat16, torch.float64]
OTHERS = [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn]


def pair(key: str, size_in: int, size_out: int, rank: int = 2) -> dict[str, Tensor]:
    return {f"{key}.down.weight": torch.randn(rank, size_in), f"{key}.up.weight": torch.randn(size_out, rank)}


def make_tensors(sizes: Sizes, attentions: list[str]) -> dict[str, Tensor]:
    """A whole portrait checkpoint of random numbers under readable names."""
    torch.manual_seed(1)
    tensors = {key: torch.randn_like(value) for key, value in Adapter(sizes, PORTRAIT, nn).state_dict().items()}
    for layer in (1, 2):
        for name in LAYER:
            key = f"vision.vision_model.encoder.layers.{layer}.{name}"
            tensors |= {f"{key}.weight": torch.randn(4, 4), f"{key}.bias": torch.randn(4)}
    tensors["vision.visual_projection.weight"] = torch.randn(sizes.cls_dim, 4)
    for encoder, width in zip(("text_encoder", "text_encoder_2"), sizes.text_dims, strict=True):
        for layer in (0, 1):
            for name in ("q", "k", "v", "out"):
                key = f"text_lora.{encoder}.text_model.encoder.layers.{layer}.self_attn.{name}_proj.lora_linear_layer"
                tensors |= pair(key, width, width)
    for block in attentions:
        width = 8 if block.startswith(("down_blocks.1", "up_blocks.1")) else 16
        for number, source in ((1, width), (2, sizes.context_dim)):
            key = f"unet_lora.{block}.attn{number}.processor"
            sizes_in = {"to_q_lora": width, "to_k_lora": source, "to_v_lora": source, "to_out_lora": width}
            if number == 2:
                sizes_in |= {"to_k_lora_image": source, "to_v_lora_image": source}
            for name, size in sizes_in.items():
                tensors |= pair(f"{key}.{name}", size, width)
    return tensors


def as_official(tensors: dict[str, Tensor], attentions: list[str]) -> dict[str, dict[str, Any]]:
    """The three official files' contents."""
    custom: dict[str, dict[str, Tensor]] = {group: {} for group in OFFICIAL_GROUPS}
    files: dict[str, dict[str, Any]] = {UNET_FILE: {}, TEXT_FILE: {}, CUSTOM_FILE: custom}
    official = {ours: theirs for theirs, ours in OFFICIAL_GROUPS.items()}
    for key, tensor in tensors.items():
        group, rest = key.split(".", 1)
        if group == "unet_lora":
            attention, lora = rest.split(".processor.")
            block, number = attention.rsplit(".attn", 1)
            files[UNET_FILE][f"{2 * attentions.index(block) + int(number) - 1}.{lora}"] = tensor
        elif group == "text_lora":
            files[TEXT_FILE][rest] = tensor
        else:
            custom[official[group]][rest] = tensor
    return files


CHANGES = st.one_of(
    st.tuples(st.sampled_from(["drop", "layer", "group", "flatten", "empty", "expand", "one", "transpose"])),
    st.tuples(st.just("number of it"), st.sampled_from([math.nan, math.inf, *LARGE])),
    st.tuples(st.just("dtype"), st.sampled_from([*FLOATS, *OTHERS])),
    st.tuples(st.just("value"), st.sampled_from([None, "text", [1], {}, 3.5, {"a": torch.zeros(2)}, "sparse", "meta"])),
    st.tuples(st.just("number"), NUMBERS),
    st.tuples(st.just("rename"), st.one_of(any_text(8), st.integers(), st.booleans(), st.none())),
    st.tuples(st.just("add"), any_text(40)),
    st.tuples(st.just("larger"), st.integers(0, 3)),
)


def apply(state: dict, changes) -> dict:
    for index, (kind, *how) in changes:
        if not state:
            break
        key = list(state)[index % len(state)]
        value = state[key]
        if kind in ("drop", "group"):
            del state[key]
        elif kind == "layer":
            before, number, _ = re.split(r"(\b\d+\.|\Z)", str(key), maxsplit=1)
            state = {other: value for other, value in state.items() if not str(other).startswith(before + number)}
        elif kind == "value":
            state[key] = {"sparse": torch.ones(3).to_sparse(), "meta": torch.ones(3, device="meta")}.get(
                how[0] if isinstance(how[0], str) else "", how[0]
            )
        elif kind == "rename":
            state[how[0]] = state.pop(key)
        elif kind == "number" and isinstance(key, str):
            parts = key.split(".")
            digits = [n for n, part in enumerate(parts) if part.isdigit()]
            if digits:
                parts[digits[index % len(digits)]] = how[0]
                state[".".join(parts)] = state.pop(key)
        elif kind == "add":
            state[how[0]] = torch.zeros(2)
        elif isinstance(value, Tensor) and value.layout == torch.strided and value.nbytes < 1 << 20:
            state[key] = reshaped(value, kind, how)
    return state


def reshaped(value: Tensor, kind: str, how: list) -> Tensor:
    if kind == "dtype":
        return value.to(how[0]) if value.is_floating_point() else value
    if kind == "number of it" and value.is_floating_point() and value.numel():
        value = value.flatten().clone().view(value.shape)
        value.view(-1)[0] = how[0]
        return value
    if kind == "larger" and value.ndim:
        return torch.cat([value] * 2, dim=how[0] % value.ndim)
    made = {
        "flatten": lambda: value.flatten(),
        "empty": lambda: value.new_zeros(0),
        "expand": lambda: value.new_zeros(1).expand(100_000, 100_000),
        "one": lambda: value.new_zeros(()),
        "transpose": lambda: value.transpose(0, -1) if value.ndim > 1 else value,
    }
    return made[kind]() if kind in made else value
