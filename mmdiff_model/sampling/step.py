"""One model call of a sampling run: what its cross-attentions are to do, decided before the call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention import Attention
from .conditionings import Conditioning
from .projection import BlockKey
from .routing import Part, Routed, Routing, route
from .rows import UNKNOWN, Call, Row, coupled_rows, is_coupled, rows_by_text

Keys = Callable[[BlockKey], tuple[Sequence[Conditioning], list[Tensor]]]


@dataclass(frozen=True, eq=False)
class Step:
    """What the cross-attentions of one model call do with each row of the batch.

    acting: subjects that act at this sigma; lengths: tokens of all subjects; latent: (H, W) of the whole picture.
    keys: gives the call's conditionings and their texts' keys in a block; say: tells people something once a run.
    `routed` keeps what routing gave.
    """

    call: Call
    acting: frozenset[int]
    lengths: tuple[int, ...]
    latent: tuple[int, int]
    routing: Routing
    conditionings: tuple[Conditioning, ...] = ()
    keys: Keys | None = None
    say: Callable[[str], None] = lambda message: None
    tokens: dict[tuple[int, ...], Tensor | None] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    positions: dict[tuple[int, ...], Tensor] = field(default_factory=dict)
    routed: dict[tuple, Routed | None] = field(default_factory=dict)

    def prepare(self, device: torch.device) -> "Step":
        """Groups the call's rows and looks up their subjects' tokens and class words, before a trace begins."""
        owners = torch.cat([torch.full((length,), i) for i, length in enumerate(self.lengths)])
        for subjects in {self.subjects(conditioning) for conditioning in self.conditionings}:
            if 0 < len(subjects) < len(self.lengths):
                self.tokens[subjects] = torch.isin(owners, torch.tensor(subjects)).nonzero()[:, 0].to(device)
        for conditioning in self.conditionings if self.routing.apart else ():
            positions = tuple(position for _, position in self.words(conditioning))
            self.positions[positions] = torch.tensor(positions, dtype=torch.int64, device=device)
        self.parts.extend(self.group(self.call.rows))
        return self

    @property
    def trace(self) -> str:
        """What a trace of this call depends on, beside its tensors."""
        parts = [(part.rows, part.subjects, self.routing.trace(part)) for part in self.parts]
        return repr((parts, self.call.indices, len(self.call.rows), self.acting, self.lengths, self.latent))

    def attend(self, attention: Attention) -> Tensor:
        """Text attention (b, h w, width), with the image term added to the rows of subjects and to no other."""
        parts = self.parts_of(attention)
        routes = [self.route(attention, part) for part in parts]
        out = self.text(attention, parts, routes)
        for part, routed in zip(parts, routes, strict=True):
            if not any(self.lengths[subject] for subject in part.subjects):
                continue
            routing = () if routed is None else (routed.image_bias, routed.gate)
            out = attention.add_image_term(out, part.rows, self.tokens.get(part.subjects), *routing)
        return out

    def text(self, attention: Attention, parts: list[Part], routes: list[Routed | None]) -> Tensor:
        """The text branch with class words kept out of other regions; in `previous`, by the difference that makes."""
        biases = [routed and routed.text_bias for routed in routes]
        if all(bias is None for bias in biases):
            return attention.as_without_ours()
        if attention.previous is None:
            return torch.cat([attention.text(part.rows, bias) for part, bias in zip(parts, biases, strict=True)])
        out = attention.as_without_ours()
        for part, bias in zip(parts, biases, strict=True):
            if bias is not None:
                out[part.rows] += attention.text(part.rows, bias) - attention.text(part.rows)
        return out

    def route(self, attention: Attention, part: Part) -> Routed | None:
        """How the rows of a part are routed; None for all subjects at every pixel."""
        if not part.subjects or self.routing.lacks(part):
            return None
        if self.routing.read(attention, part):
            self.routed.clear()
        keys = attention.k.shape[1]
        key = (attention.size, keys, *part._replace(rows=None, positions=None))
        if key not in self.routed:
            weights = self.routing.weights(part, attention.size)
            if weights is not None:
                lengths = [self.lengths[subject] for subject in part.subjects]
                weights = route(weights.to(attention.q.device), lengths, part, keys, attention.q.dtype)
            self.routed[key] = weights
        return self.routed[key]

    def parts_of(self, attention: Attention) -> list[Part]:
        """The parts of one attention's batch, which a neighbour may have lengthened or split."""
        count = len(attention.q)
        if count == len(self.call.rows) and not is_coupled(attention):
            return self.parts
        rows = coupled_rows(self.call, attention)
        if rows is None and not is_coupled(attention):
            rows = rows_by_text(attention.k, *self.keys(attention.block))
            alone = len({row.conditioning for row in rows}) == 1 and UNKNOWN not in rows
            if alone and count * len(self.call.indices) == len(self.call.rows):
                pictures = [row.picture for row in self.call.rows[:count]]
                rows = [row._replace(picture=picture) for row, picture in zip(rows, pictures, strict=True)]
        return self.group(rows or (UNKNOWN,) * count)

    def group(self, rows: Sequence[Row]) -> list[Part]:
        """Consecutive rows that are treated alike; where routed, of one conditioning and each picture once."""
        if UNKNOWN in rows:
            self.say(
                f"a batch of {len(rows)} rows beside the sampler's {len(self.call.rows)} does not tell which prompt "
                "each is of (another node changed the batch). Those rows get no subject. Sample without that node."
            )
        if not self.routing.apart and any(not row.own and len(self.subjects(row.conditioning)) > 1 for row in rows):
            self.say(
                "an attention couple of another node paints with prompts of its own, whose triggers are not read: each "
                "gets every subject of the prompt that it is coupled to. Choose routing 'masks' to keep them apart."
            )
        groups: list[list[Row]] = []
        for row in rows:
            last = groups[-1] if groups else None
            if last and self.alike(last[-1], row) and not (self.routing.apart and self.again(last, row)):
                last.append(row)
            else:
                groups.append([row])
        parts, start = [], 0
        for group in groups:
            parts.append(self.part(slice(start, start + len(group)), group))
            start += len(group)
        for part in parts:
            missing = part.subjects and self.routing.lacks(part)
            h, w = self.call.size
            if missing and part.place and not part.whole:
                self.say(
                    f"an area of {w} x {h} latents (ConditioningSetArea, on the positive or the negative prompt) is "
                    f"routed 'off': routing '{self.routing.name}' reads whole pictures. Choose 'masks' for areas."
                )
            elif missing:
                self.say(
                    f"rows of {w} x {h} latents beside the picture's {self.latent[1]} x {self.latent[0]} do not tell "
                    f"{missing} (tiles, windows or single rows of another node). They are routed 'off', routing "
                    f"'{self.routing.name}' needs it. Sample without that node, or one subject per pass."
                )
        return parts

    def subjects(self, conditioning: Conditioning | None) -> tuple[int, ...]:
        """Those that it calls and that act now."""
        return () if conditioning is None else tuple(s for s in conditioning.subjects if s in self.acting)

    def words(self, conditioning: Conditioning) -> tuple[tuple[int, int], ...]:
        """(subject, token position) of the class words of those."""
        return tuple((subject, position) for subject, position in conditioning.words if subject in self.acting)

    def alike(self, a: Row, b: Row) -> bool:
        if not self.routing.apart:
            return self.subjects(a.conditioning) == self.subjects(b.conditioning)
        return (a.conditioning, a.own) == (b.conditioning, b.own)

    def again(self, group: list[Row], row: Row) -> bool:
        return row.picture is not None and row.picture in [other.picture for other in group]

    def part(self, rows: slice, group: list[Row]) -> Part:
        conditioning = group[0].conditioning
        subjects = self.subjects(conditioning)
        if not subjects or not self.routing.apart:
            return Part(rows, subjects)
        pictures = tuple(row.picture for row in group)
        words = self.words(conditioning) if group[0].own else ()
        place = conditioning.place(self.call.size, self.latent)
        return Part(
            rows,
            subjects,
            tuple(subjects.index(subject) for subject, _ in words),
            self.positions.get(tuple(position for _, position in words)),
            conditioning.period,
            conditioning.number,
            place,
            None if None in pictures else pictures,
            whole=conditioning.area is None and place is not None,
        )
