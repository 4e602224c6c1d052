"""Multimodal cross-attention (paper, method figure; released mmdiff/attention_processor.py).

out = Attn(q, k_text, v_text) + fuse_scale * Attn(q, k_image, v_image), before to_out. q and the text side carry their
LoRAs as weight patches already; k_image, v_image are the base projections of the subject tokens plus LoRAs of their
own.
"""

from collections.abc import Callable

from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from .projection import BlockKey


class MultimodalCrossAttention:
    """An attn2 replace patch. Calls the patch that was there before, or the host's attention, and adds the image term.

    It lives as long as one sampling run. What varies from call to call is the Step in extra_options["mmdiff"].
    """

    def __init__(self, block: BlockKey, image: tuple[Tensor, Tensor], previous: Callable | None):
        self.block = block
        self.image = image
        self.previous = previous

    def with_image(self, image: tuple[Tensor, Tensor]) -> "MultimodalCrossAttention":
        """The same patch with K and V of other weights, or on another GPU."""
        return MultimodalCrossAttention(self.block, image, self.previous)

    def to(self, target) -> "MultimodalCrossAttention":
        """Where ComfyUI moves a call's patches (to a device, a dtype), the previous patch moves too.

        K and V need no move: each call is given those of its own GPU.
        """
        if not hasattr(self.previous, "to"):
            return self
        return MultimodalCrossAttention(self.block, self.image, self.previous.to(target))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        """q (b, h w, width), k and v (b, 77 c, width) of the text -> (b, h w, width)."""
        step = extra_options["mmdiff"]
        if step is not None:
            return step.attend(self.block, q, k, v, self.image, self.previous, extra_options)
        return (
            text_attention(q, k, v, extra_options) if self.previous is None else self.previous(q, k, v, extra_options)
        )


def text_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict, mask: Tensor | None = None) -> Tensor:
    """The attention that ComfyUI's CrossAttention would have run."""
    return optimized_attention(
        q,
        k,
        v,
        extra_options["n_heads"],
        mask=mask,
        attn_precision=extra_options["attn_precision"],
        transformer_options=extra_options,
    )


def image_attention(q: Tensor, k: Tensor, v: Tensor, extra_options: dict, mask: Tensor | None = None) -> Tensor:
    """q (b, h w, width) over subject tokens k, v (1, m, width); mask (b, 1, h w, m) is added to the scores."""
    k, v = k.expand(len(q), -1, -1), v.expand(len(q), -1, -1)
    return text_attention(q, k, v, extra_options, mask)
