"""CLIP's transformers with gradients: ComfyUI's layers add in place, which training cannot undo.

The modules are the host's own; these functions compute what their `forward` computes.
"""

from collections.abc import Callable
from functools import partial

import torch
from comfy.clip_model import CLIPEncoder, CLIPTextModel, CLIPVisionModelProjection
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from .vocabulary import END, rows_of_tokens


def attend_in_float32(attention: Callable, q: Tensor, k: Tensor, v: Tensor, *args, **options) -> Tensor:
    """The host's attention outside of autocast: on a CPU its gradient in bfloat16 takes five times as long.

    Works as ComfyUI's `optimized_attention_override`.
    """
    with torch.autocast(q.device.type, enabled=False):
        return attention(q.float(), k.float(), v.float(), *args, **options)


def run_layers(encoder: CLIPEncoder, hidden: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """(b, n, dim) -> the output of every layer."""
    outputs, attention = [], partial(attend_in_float32, attention_pytorch)
    for layer in encoder.layers:
        hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), mask, attention)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        outputs.append(hidden)
    return outputs


def encode_tokens(model: CLIPTextModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Token ids (b, 77), compact table -> hidden_states[-2] (b, 77, dim) and projected pooled (b, dim)."""
    text = model.text_model
    rows = rows_of_tokens().to(tokens.device)[tokens]
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()
    outputs = run_layers(text.encoder, text.embeddings(rows), causal)
    last = text.final_layer_norm(outputs[-1])
    ends = (tokens == END).int().argmax(dim=1)
    return outputs[-2], model.text_projection(last[torch.arange(len(tokens)), ends])


def encode_pixels(model: CLIPVisionModelProjection, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised pixels (b, 3, s, s) -> hidden_states[-2] (b, 1 + patches, dim) and projected CLS (b, projection)."""
    vision = model.vision_model
    outputs = run_layers(vision.encoder, vision.pre_layrnorm(vision.embeddings(pixels)))
    return outputs[-2], model.visual_projection(vision.post_layernorm(outputs[-1][:, 0]))
