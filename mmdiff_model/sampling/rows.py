"""Rows: whose each row of a batch is, in one model call and in each of its attentions.

ComfyUI runs conditionings side by side, as parts of equal length, and names them (`uuids`, `cond_or_uncond`). Other
packs tile, window, lengthen and split that batch. Whose a row is follows from what host or pack publish and from
lengths; where these do not say, from the text that the row carries. A row that stays unknown gets no image term.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import Attention
from .conditionings import Conditioning

FAR = 0.25  # a text is told from another one by a distance of less than this part of the other's
UNCONDITIONAL = 1  # the cond index that attention couples leave as it is
COUPLE_LAYOUTS = ("cond_or_uncond_couple", "cond_or_uncond_hook_couple")  # ComfyUI-ppm, comfyui-prompt-control


class Row(NamedTuple):
    """A row: its conditioning and its number in the run's batch, None where unknown.

    Where it is not `own`, an attention couple has put a prompt of its own in place of the conditioning's.
    """

    conditioning: Conditioning | None
    picture: int | None = None
    own: bool = True


UNKNOWN = Row(None)


@dataclass(frozen=True)
class Call:
    """The batch of one model call: its rows, the cond index of each part, and (h, w) of its latents."""

    rows: tuple[Row, ...]
    indices: tuple[int, ...]
    size: tuple[int, int]


def call_rows(parts: Sequence[Conditioning | None], pictures: Sequence[int]) -> tuple[Row, ...]:
    """The rows of a call whose parts follow each other, as the host has them."""
    return tuple(Row(part, picture) for part in parts for picture in pictures)


def pictures_of(options: dict, batch: int) -> Sequence[int]:
    """Which pictures of the batch a call takes: those of a context window of the host or AnimateDiff-Evolved, or all.

    The host may set the picture before a window in front of it, as an anchor.
    """
    host, theirs = options.get("context_window"), options.get("ad_params")
    if host is not None and host.dim == 0:
        anchor = getattr(host, "causal_anchor_index", None)
        return [*([] if anchor is None else [anchor]), *host.index_list]
    return theirs["sub_idxs"] if theirs and theirs["sub_idxs"] else range(batch)


def coupled_rows(call: Call, attention: Attention) -> tuple[Row, ...] | None:
    """The rows of a batch that an attention couple has lengthened, each conditional part once for every prompt.

    ComfyUI-ppm and comfyui-prompt-control publish the parts' new order. cgem156-ComfyUI does not; there the lengths
    tell how often, and that repeated queries are equal shows it to be so.
    """
    layout = next((attention.options[key] for key in COUPLE_LAYOUTS if attention.options.get(key)), None)
    count, parts = len(attention.q), len(call.indices)
    length, rest = divmod(len(call.rows), parts)
    if rest or count % length:
        return None
    fixed = call.indices.count(UNCONDITIONAL)
    repeats = (count // length - fixed) // max(parts - fixed, 1)
    sources = [
        (part, repeat)
        for part, index in enumerate(call.indices)
        for repeat in range(1 if index == UNCONDITIONAL else repeats)
    ]
    if len(sources) * length != count or repeats < (2 if layout is None else 1):
        return None
    if layout is None:
        chunks = attention.q.split(length)
        firsts = {part: chunk for (part, repeat), chunk in zip(sources, chunks, strict=True) if repeat == 0}
        if not all(torch.equal(firsts[part], chunk) for (part, _), chunk in zip(sources, chunks, strict=True)):
            return None
    elif [call.indices[part] for part, _ in sources] != list(layout):
        return None
    return tuple(
        row._replace(own=row.own and repeat == 0)
        for part, repeat in sources
        for row in call.rows[part * length : (part + 1) * length]
    )


def rows_by_text(found: Tensor, conditionings: Sequence[Conditioning], texts: Sequence[Tensor]) -> tuple[Row, ...]:
    """Rows of embeddings or keys (b, n, width) -> the conditioning one of whose texts (m, width) each carries.

    texts: (t, m, width) of each conditioning, t above one where a prompt schedule gives each picture its own. The
    nearest, if the others are far: a neighbour may have changed the text a little. Conditionings of the same text that
    call the same subjects need not be told apart; where their areas differ, the row's is not known.
    """
    length = min(found.shape[1], *(text.shape[1] for text in texts))
    carried = found[:, :length].float()

    def distances(text: Tensor) -> Tensor:
        ways = [
            (carried - one).square().mean(dim=(1, 2)) / one.square().mean().clamp(min=1e-12)  # a zeroed text too
            for one in text[:, :length].to(carried)
        ]
        return torch.stack(ways).amin(dim=0)

    rows = []
    for row in torch.stack([distances(text) for text in texts], dim=1).tolist():
        near = min(range(len(row)), key=row.__getitem__)
        best = conditionings[near]
        found = list(zip(row, conditionings, strict=True))
        rivals = [d for d, other in found if (other.subjects, other.words) != (best.subjects, best.words)]
        if row[near] >= FAR * min(rivals, default=1.0):
            rows.append(UNKNOWN)
        elif any(row[near] >= FAR * d for d, other in found if other.area != best.area):
            rows.append(Row(replace(best, area=None)))
        else:
            rows.append(Row(best))
    return tuple(rows)


def is_coupled(attention: Attention) -> bool:
    """Whether an attention couple has published its layout."""
    return any(attention.options.get(key) for key in COUPLE_LAYOUTS)
