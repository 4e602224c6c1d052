"""The host's CLIP models with gradients, and the vision encoder with tuned parameters in place of its own.

ComfyUI's CLIP layers add their residuals in place, over values that a norm's gradient needs. Norms that keep a copy of
their input let the host's own forward pass be trained.
"""

from collections.abc import Callable

import comfy.clip_vision
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.modules.attention import attention_pytorch
from comfy.sd import CLIP
from einops import rearrange
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..text import ENCODERS

TOKENS = 77


def attend_by_products(
    attention: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options
) -> Tensor:
    """The host's `attention` as plain matrix products: on a CPU in bfloat16 its fused kernel's gradient takes seven
    times as long. Works as ComfyUI's `optimized_attention_override`.
    """
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    attended = (scores if mask is None else scores + mask).softmax(dim=-1).to(v.dtype) @ v
    return rearrange(attended, "b h n d -> b n (h d)")


def attend_as_torch(attention: Callable, *inputs: Tensor | int, **options) -> Tensor:
    """torch's own kernel in place of the host's `attention`: SageAttention and FlashAttention have no gradient there.
    Works as ComfyUI's `optimized_attention_override`.
    """
    return attention_pytorch(*inputs, **options)


def allow_gradients(module: nn.Module) -> list[RemovableHandle]:
    """Makes every CLIP layer of a module differentiable, until the handles are removed."""
    norms = [
        norm
        for layer in module.modules()
        if isinstance(layer, CLIPLayer)
        for norm in (layer.layer_norm1, layer.layer_norm2)
    ]
    return [norm.register_forward_pre_hook(_copy_input) for norm in norms]


def _copy_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return inputs[0].clone(), *inputs[1:]


def encode_rows(clip: CLIP, rows: dict[str, list[list[int | Tensor]]]) -> tuple[Tensor, Tensor]:
    """Rows of 77 tokens, vectors among them, for both encoders -> context (b, 77, 2048) and pooled (b, 1280).

    What SDXLClipModel computes for prompts of one chunk without weights.
    """
    hidden, pooled = zip(*(getattr(clip.cond_stage_model, f"clip_{key}")(rows[key]) for key in ENCODERS), strict=True)
    return torch.cat(hidden, dim=-1), pooled[1]


def embed_token(clip: CLIP, key: str, token: int, device: torch.device) -> Tensor:
    """A token's embedding (dim,) in float32, as the text encoder would read it."""
    table = getattr(clip.cond_stage_model, f"clip_{key}").transformer.get_input_embeddings()
    return table(torch.tensor([token], device=device), out_dtype=torch.float32)[0]


def last_layers(vision: nn.Module, count: int) -> list[str]:
    """Names of the parameters of the last layers of a CLIP vision model, with its last norm and its projection."""
    layers = len(vision.vision_model.encoder.layers)
    places = [f"vision_model.encoder.layers.{number}." for number in range(layers - count, layers)]
    wanted = (*places, "vision_model.post_layernorm.", "visual_projection.") if count else ()
    return [name for name, _ in vision.named_parameters() if name.startswith(wanted)]


def encode_pixels(
    clip_vision: comfy.clip_vision.ClipVisionModel, pixels: Tensor, tuned: dict[str, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """pixels (n, 3, s, s) in 0..1 -> hidden_states[-2] (n, 1 + patches, dim) and projected CLS (n, projection).

    tuned: parameters that take the place of the model's own.
    """
    mean, std = (
        torch.tensor(x, device=pixels.device).view(3, 1, 1) for x in (clip_vision.image_mean, clip_vision.image_std)
    )
    options = {"pixel_values": (pixels - mean) / std, "intermediate_output": -2}
    outputs = torch.func.functional_call(clip_vision.model, tuned or {}, (), options)
    return outputs[1].float(), outputs[2].float()
