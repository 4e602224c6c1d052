"""One model call of a sampling run: what its cross-attentions are to do, decided before the call."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention import text_attention
from .image_term import add_image_term
from .projection import BlockKey
from .routing import Chunk, MaskRouting, Routed, route
from .routing.auto import AttentionMaps


@dataclass(frozen=True)
class Step:
    """What the cross-attentions of one model call do with each part of the batch.

    chunks: the parts in order, None where unconditional; by_index: those of coupled rows, by cond index.
    subjects: those that act, with `lengths` tokens each; keys: their tokens (None: all there are).
    latent: (H, W) of the whole picture. masks or maps route, where there is routing; `routed` keeps what they gave.
    """

    chunks: list[Chunk | None]
    by_index: dict[int, Chunk | None]
    subjects: tuple[int, ...]
    lengths: tuple[int, ...]
    keys: Tensor | None
    latent: tuple[int, int]
    masks: MaskRouting | None
    maps: AttentionMaps | None
    routed: dict[tuple, Routed | None] = field(default_factory=dict)

    @property
    def layout(self) -> str:
        """What a trace of this call depends on, beside its tensors."""
        read = self.maps and sorted(chunk.conditioning for chunk in self.maps.maps)
        parts = self.chunks, self.by_index, self.subjects, self.lengths, self.latent
        return repr((*parts, self.keys is None, self.masks is None, read))

    def attend(
        self,
        block: BlockKey,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        image: tuple[Tensor, Tensor],
        previous: Callable | None,
        extra_options: dict,
    ) -> Tensor:
        """Text attention (b, h w, width), with the image term added to the conditional rows and to no other."""
        parts = [
            (rows, chunk and self.route(block, q[rows], k[rows], chunk, extra_options), chunk)
            for rows, chunk in self.parts(len(q), extra_options)
        ]
        out = self.text(q, k, v, parts, previous, extra_options)
        if self.keys is not None:
            image = tuple(x[:, self.keys] for x in image)
        for rows, routed, chunk in parts:
            if routed is not None:
                bias, gate = routed.image_bias, routed.gate
                out = add_image_term(out, rows, q, *image, extra_options["n_heads"], bias, gate)
            elif chunk is not None:
                out = add_image_term(out, rows, q, *image, extra_options["n_heads"])
        return out

    def text(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        parts: list[tuple[slice, Routed | None, Chunk | None]],
        previous: Callable | None,
        extra_options: dict,
    ) -> Tensor:
        """The text branch with class words kept out of other regions; in `previous`, by the difference that makes."""
        biases = [routed and routed.text_bias for _, routed, _ in parts]
        if all(bias is None for bias in biases):
            return text_attention(q, k, v, extra_options) if previous is None else previous(q, k, v, extra_options)
        rows = [rows for rows, _, _ in parts]
        if previous is None:
            return torch.cat(
                [text_attention(q[r], k[r], v[r], extra_options, bias) for r, bias in zip(rows, biases, strict=True)]
            )
        out = previous(q, k, v, extra_options)
        for r, bias in zip(rows, biases, strict=True):
            if bias is not None:
                text = q[r], k[r], v[r], extra_options
                out = add_rows(out, r, text_attention(*text, bias) - text_attention(*text))
        return out

    def parts(self, batch: int, extra_options: dict) -> list[tuple[slice, Chunk | None]]:
        """The batch as slices with their chunks. Attention couples lengthen the batch and publish its true layout."""
        layout = extra_options.get("cond_or_uncond_couple") or extra_options.get("cond_or_uncond_hook_couple")
        chunks = self.chunks if layout is None else [self.by_index.get(index) for index in layout]
        size = batch // len(chunks)
        return [(slice(i * size, (i + 1) * size), chunk) for i, chunk in enumerate(chunks)]

    def route(self, block: BlockKey, q: Tensor, k: Tensor, chunk: Chunk, extra_options: dict) -> Routed | None:
        """How this attention is routed; None for one softmax over all subjects at every pixel."""
        size = tuple(extra_options["activations_shape"][2:])
        key = (size, chunk, self.subjects, k.shape[1])
        if self.maps is not None and block in self.maps.blocks and self.maps.readable(chunk, len(self.subjects)):
            self.maps.read(chunk, q, k, extra_options["n_heads"], size)
            self.routed.clear()
        if key not in self.routed:
            weights = None
            if self.masks is not None:
                weights = self.masks.weights(*size, chunk.area, self.latent)[:, list(self.subjects)].to(q.device)
            elif self.maps is not None:
                weights = self.maps.weights(chunk, size)
            self.routed[key] = None
            if weights is not None:
                self.routed[key] = route(weights, self.lengths, chunk.words, chunk.length, k.shape[1], q.dtype)
        return self.routed[key]


def add_rows(out: Tensor, rows: slice, term: Tensor) -> Tensor:
    """`out` with `term` added to some rows; in place unless a gradient is to flow through it."""
    if term.requires_grad:
        return torch.slice_scatter(out, out[rows] + term, start=rows.start, end=rows.stop)
    out[rows] += term
    return out
