"""Attention-map constraints: in training, a subject's attention is held to where the subject is (paper, method figure).

Two maps of every subject are constrained: the text map, attention to its class word among the prompt's tokens, and the
image map, attention to its subject tokens among all subject tokens. The paper's formula was not published; these are
the formulas of two relatives.

    balance (FastComposer): mean of the map outside the subject's mask minus its mean inside
    masked  (StoryMaker):   squared distance of the map to the mask

One subject alone: a softmax over its own tokens sums to one at every pixel, so its image map says nothing and no
gradient flows from it. `balance` therefore leaves the image map of a lone subject out. `masked` adds background tokens
to the softmax, trained here and used nowhere else: the map is then low where they win, and their own map is held to
the background.
"""

from typing import Literal, get_args

import torch
from einops import rearrange
from torch import Tensor, nn

from ..sampling.attention import Attention, attention_maps
from ..sampling.projection import BlockKey
from ..sampling.routing import log_weight

Constraint = Literal["balance", "masked", "none"]
BALANCE, MASKED, NONE = get_args(Constraint)


def balance(maps: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """maps and masks (b, s, h w) in 0..1, present (b, s) -> mean over subjects, then over examples, in -1..1.

    FastComposer's foreground-background balance; -1 where all attention is inside and complete.
    """
    inside = (maps * masks).sum(dim=-1) / masks.sum(dim=-1).clamp(min=1e-6)
    outside = (maps * (1 - masks)).sum(dim=-1) / (1 - masks).sum(dim=-1).clamp(min=1e-6)
    return _mean(outside - inside, present)


def masked(maps: Tensor, masks: Tensor, present: Tensor) -> Tensor:
    """Shapes as in `balance` -> mean squared error (StoryMaker)."""
    return _mean((maps - masks).square().mean(dim=-1), present)


def word_maps(q: Tensor, k: Tensor, heads: int, positions: Tensor) -> Tensor:
    """Attention of q (b, h w, width) to the tokens at positions (b, s) of k (b, 77, width): (b, s, h w)."""
    attention = attention_maps(q, k, heads)
    return attention.gather(2, positions[:, None].expand(-1, attention.shape[1], -1)).transpose(1, 2)


def subject_maps(q: Tensor, k: Tensor, heads: int, bias: Tensor, subjects: int) -> tuple[Tensor, Tensor]:
    """Attention of q (b, h w, width) to each subject's tokens, (b, s, h w), and to the background's, (b, 1, h w).

    k (b, m + background, width): as many tokens for each subject, then the background's. bias (b, 1, 1, m) takes those
    of absent subjects out of the softmax.
    """
    tokens = bias.shape[-1]
    attention = attention_maps(q, k, heads, nn.functional.pad(bias.float(), (0, k.shape[1] - tokens)))
    of_subjects = rearrange(attention[..., :tokens], "b p (s n) -> b s p n", s=subjects).sum(dim=-1)
    return of_subjects, attention[..., tokens:].sum(dim=-1)[:, None]


class AttentionConstraint:
    """The constraint's value over one forward pass: `read` is called at every cross-attention, `total` at the end.

    masks (b, s, h, w) in 0..1; positions (b, s) of the class words; text, image (b, s): whose map of which kind exists.
    `masked` needs `background`: K (1, n, width) of the background tokens in every cross-attention.
    """

    def __init__(self, kind: str, masks: Tensor, positions: Tensor, text: Tensor, image: Tensor):
        self.formula = {BALANCE: balance, MASKED: masked}[kind]
        self.masks, self.positions, self.text = masks, positions, text
        self.background: dict[BlockKey, Tensor] = {}
        self.image = image & (image.sum(dim=1, keepdim=True) > 1) if kind == BALANCE else image
        self.terms: dict[str, dict[BlockKey, Tensor]] = {"text": {}, "image": {}}

    def read(self, attention: Attention, present: Tensor) -> None:
        """Adds one cross-attention, once: gradient checkpointing runs it a second time. Maps are made in float32.

        present (b, s): the subjects whose tokens are among the image keys.
        """
        with torch.autocast(attention.q.device.type, enabled=False):
            self.add(attention, present)

    def add(self, attention: Attention, present: Tensor) -> None:
        block, q, k_image, heads = attention.block, attention.q, attention.image[0], attention.heads
        masks = nn.functional.interpolate(self.masks, attention.size, mode="area").flatten(2)
        bias = log_weight(present.float()).repeat_interleave(k_image.shape[1] // present.shape[1], dim=1)[:, None, None]
        words = word_maps(q, attention.k, heads, self.positions)
        self.terms["text"].setdefault(block, self.formula(words, masks, self.text))
        background = self.background.get(block)
        if background is not None:
            k_image = torch.cat((k_image, background.expand(len(q), -1, -1)), dim=1)
        subjects, rest = subject_maps(q, k_image, heads, bias, masks.shape[1])
        term = self.formula(subjects, masks, self.image)
        if background is not None:
            behind = (1 - (masks * self.image[..., None]).sum(dim=1, keepdim=True)).clamp(min=0)
            term = term + self.formula(rest, behind, self.image.any(dim=1, keepdim=True))
        self.terms["image"].setdefault(block, term)

    def total(self) -> dict[str, Tensor]:
        """Means over the cross-attentions: of the text maps and of the image maps."""
        return {kind: torch.stack(list(terms.values())).mean() for kind, terms in self.terms.items()}


def _mean(values: Tensor, present: Tensor) -> Tensor:
    """Means over each example's subjects, then over all examples: a batch is the mean of its parts."""
    present = present.to(values)
    return ((values * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)).mean()
