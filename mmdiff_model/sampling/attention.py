"""Multimodal cross-attention (paper, method figure; released mmdiff/attention_processor.py).

out = Attn(q, k_text, v_text) + fuse_scale * Attn(q, k_image, v_image), before to_out. q and the text side carry their
LoRAs as weight patches already; k_image, v_image are the base projections of the subject tokens plus LoRAs of their
own.
"""

from collections.abc import Callable
from copy import copy
from typing import NamedTuple

from comfy.ldm.modules.attention import optimized_attention
from einops import rearrange
from torch import Tensor

from .image_term import add_image_term
from .projection import BlockKey, Projected

STEP = "mmdiff"  # the option that tells attentions of one model call what to do


class Attention(NamedTuple):
    """One cross-attention of one model call, before it is computed.

    q (b, h w, width), k and v (b, keys, width) of the text, image K and V (1 or b, m, width); `previous` is the patch
    that was there before ours, `own` an attention function that the base brings for its module.
    """

    block: BlockKey
    q: Tensor
    k: Tensor
    v: Tensor
    image: tuple[Tensor, Tensor]
    options: dict
    previous: Callable | None = None
    own: object | None = None

    @property
    def heads(self) -> int:
        return self.options["n_heads"]

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the pixels."""
        return tuple(self.options["activations_shape"][2:])

    def as_without_ours(self) -> Tensor:
        """(b, h w, width) of the patch that was there before (its copy: the patch may keep it), or of the host."""
        if self.previous is not None:
            return self.previous(self.q, self.k, self.v, self.options).clone()
        return self.text(slice(None))

    def text(self, rows: slice, bias: Tensor | None = None) -> Tensor:
        """The host's own attention of some rows; bias (b, 1, h w, keys) is added to the scores."""
        own = {} if self.own is None else {"preferred_attention": self.own}
        precision = self.options.get("attn_precision")
        q, k, v = (x[rows] for x in (self.q, self.k, self.v))
        return optimized_attention(
            q, k, v, self.heads, mask=bias, attn_precision=precision, transformer_options=self.options, **own
        )

    def add_image_term(
        self,
        out: Tensor,
        rows: slice,
        tokens: Tensor | None = None,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """`out` with some rows' attention to the subject tokens of those numbers (None: all); see image_term.py."""
        k, v = (side if tokens is None else side[:, tokens] for side in self.image)
        return add_image_term(out, rows, self.q, k, v, self.heads, bias, gate)


class MultimodalCrossAttention:
    """An attn2 replace patch: what was there before, and the image term where the call's Step adds it.

    It lives as long as one sampling run. `late` gives the Step, K and V and hooks' patches of a call whose options lack
    a Step: packs that run the UNet's blocks themselves pass by APPLY_MODEL.
    """

    def __init__(
        self,
        block: BlockKey,
        image: tuple[Tensor, Tensor],
        previous: Callable | None = None,
        own: object | None = None,
        late: Callable[[dict], tuple] | None = None,
    ):
        self.block = block
        self.image = image
        self.previous = previous
        self.own = own
        self.late = late

    def for_call(self, image: Projected, replaced: dict[tuple, Callable]) -> "MultimodalCrossAttention":
        """The same patch with K and V of other weights, or on another GPU, and over a patch that hooks bring."""
        previous = replaced.get(self.block, replaced.get(self.block[:2], self.previous))
        return self._with(image=image[self.block], previous=previous)

    def to(self, target) -> "MultimodalCrossAttention":
        """Where ComfyUI moves a call's patches (to a device, a dtype), the previous patch moves too.

        K and V need no move: each call is given those of its own GPU.
        """
        return self._with(previous=self.previous.to(target)) if hasattr(self.previous, "to") else self

    def _with(self, **changes) -> "MultimodalCrossAttention":
        other = copy(self)
        vars(other).update(changes)
        return other

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        """q (b, h w, width), k and v (b, keys, width) of the text -> (b, h w, width)."""
        step, patch = extra_options.get(STEP), self
        if STEP not in extra_options:
            step, *changed = self.late(extra_options)
            patch = self.for_call(*changed)
        attention = Attention(self.block, q, k, v, patch.image, extra_options, patch.previous, self.own)
        return attention.as_without_ours() if step is None else step.attend(attention)


def attention_maps(q: Tensor, k: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """How each pixel of q (b, h w, width) attends to each token of k (b, n, width), mean of heads: (b, h w, n)."""
    q, k = (rearrange(x.float(), "b n (h d) -> b h n d", h=heads) for x in (q, k))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return (scores if bias is None else scores + bias).softmax(dim=-1).mean(dim=1)
