"""CLIP's transformers with gradients: ComfyUI's layers add in place, which training cannot undo.

The modules are the host's own; these functions compute what their `forward` computes.
"""

from functools import partial

import torch
from comfy.clip_model import CLIPEncoder, CLIPTextModel, CLIPVisionModelProjection
from comfy.ldm.modules.attention import attention_pytorch
from torch import Tensor

from mmdiff_model.training.encoders import attend_by_products

from ..family.vocabulary import END, rows_of_tokens


def run_layers(encoder: CLIPEncoder, hidden: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """(b, n, dim) -> the output of every layer."""
    outputs, attention = [], partial(attend_by_products, attention_pytorch)
    for layer in encoder.layers:
        hidden = hidden + layer.self_attn(layer.layer_norm1(hidden), mask, attention)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        outputs.append(hidden)
    return outputs


def encode_tokens(model: CLIPTextModel, tokens: Tensor, added: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Token ids (b, 77), compact table -> hidden_states[-2] (b, 77, dim) and projected pooled (b, dim).

    added: (b, 77, dim), what is added to the embeddings.
    """
    text = model.text_model
    rows = rows_of_tokens().to(tokens.device)[tokens]
    causal = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf, device=tokens.device).triu(1)
    outputs = run_layers(text.encoder, text.embeddings(rows) + added, causal)
    last = text.final_layer_norm(outputs[-1])
    ends = (tokens == END).int().argmax(dim=1)
    return outputs[-2], model.text_projection(last[torch.arange(len(tokens)), ends])


def encode_pixels(model: CLIPVisionModelProjection, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Normalised pixels (b, 3, s, s) -> hidden_states[-2] (b, 1 + patches, dim) and projected CLS (b, projection)."""
    vision = model.vision_model
    outputs = run_layers(vision.encoder, vision.pre_layrnorm(vision.embeddings(pixels)))
    return outputs[-2], model.visual_projection(vision.post_layernorm(outputs[-1][:, 0]))
