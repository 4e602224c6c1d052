"""The image term by two small products: pixels over the few tokens of their subjects (4 for each photo).

Attention functions are made for many keys. Here both products run on views, without a copy of q per head, a bias is
part of the first one and the addition to the text branch part of the second.
"""

import torch
from torch import Tensor


def add_image_term(
    out: Tensor,
    rows: slice,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    bias: Tensor | None = None,
    gate: Tensor | None = None,
) -> Tensor:
    """`out` (b, h w, width) with gate * Attn(q, k, v) added to some rows; in place unless a gradient is to flow.

    q (b, h w, width); k, v (m tokens) are those of all rows (1, m, width) or of each (rows, m, width). bias (1 or rows,
    1, h w, m) is added to the scores, gate (1 or rows, h w, 1) scales the term.
    """
    q = q[rows]
    groups, tokens, width = k.shape  # rows with the same tokens are one picture of more pixels
    grouped = [by_head(x, heads) for x in q.reshape(groups, -1, width)]
    if bias is not None:
        bias = bias[:, 0].expand(len(q), -1, -1).reshape(groups, -1, tokens)
    if gate is not None:
        gate = gate.expand(len(q), -1, -1).reshape(groups, -1, 1)

    def weights(i: int) -> Tensor:
        keys = by_head(k[i] * (width // heads) ** -0.5, heads).transpose(1, 2)
        scores = torch.bmm(grouped[i], keys) if bias is None else torch.baddbmm(bias[i], grouped[i], keys)
        return scores.softmax(dim=-1) if gate is None else scores.softmax(dim=-1) * gate[i]

    if out.dtype == q.dtype and not any(x.requires_grad for x in (out, q, k)):
        out = out.contiguous()
        for i, part in enumerate(out[rows].view(groups, -1, width)):
            by_head(part, heads).baddbmm_(weights(i), by_head(v[i], heads))
        return out
    term = torch.stack([torch.bmm(weights(i), by_head(v[i], heads)).transpose(0, 1) for i in range(groups)])
    return torch.slice_scatter(out, out[rows] + term.reshape(q.shape), start=rows.start, end=rows.stop)


def by_head(x: Tensor, heads: int) -> Tensor:
    """(n, width) -> (heads, n, width / heads), a view."""
    return x.unflatten(-1, (heads, -1)).transpose(0, 1)
