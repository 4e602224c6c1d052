"""Batches of examples. Which records, which noise and what is left out depend on the seed and on the example's number
alone, so that a resumed run, or one on another number of processes, sees what an uninterrupted one would have seen."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Annotated

import pydantic.dataclasses
import torch
from pydantic import Field
from torch import Tensor

from .examples import Example
from .plan import STRICT
from .records import BadRecord, Record, Records

TIMESTEPS = 1000
Share = Annotated[float, Field(ge=0, le=1)]

logger = logging.getLogger(__name__)


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Drops:
    """Shares of examples whose caption, whose subjects or both are left out, for guidance, and of those whose noise
    loss counts the subjects' masks alone."""

    text: Share = 0.05
    image: Share = 0.05
    both: Share = 0.05
    background: Share = 0.5


@dataclass(frozen=True)
class Batch:
    """b examples with s subjects at most, on the CPU; `present` (b, s) says which there are.

    latents and noise (b, 4, h, w), timesteps (b,), masks (b, s, h, w), photos and crops (b, s, S, S, 3), identity
    (b, s, 512) or None, positions (b, s) and rows (b lists of 77 ids) for each text encoder. Flags (b,): drop_text,
    drop_image, and subjects_only for a noise loss inside the masks.
    """

    names: list[str]
    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    masks: Tensor
    present: Tensor
    photos: Tensor
    crops: Tensor
    identity: Tensor | None
    rows: dict[str, list[list[int]]]
    positions: dict[str, Tensor]
    drop_text: Tensor
    drop_image: Tensor
    subjects_only: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        moved = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value.to(device) for name, value in moved.items() if torch.is_tensor(value)}
        return replace(self, **moved)


class Examples:
    """Batches from records; bad ones are counted by reason in `rejected`, named in the log and passed over.

    cache: keep what was prepared in memory, for small data.
    """

    def __init__(
        self, records: Records, prepare: Callable[[Record], Example], drops: Drops, seed: int, cache: bool = False
    ):
        self.records, self.prepare, self.drops, self.seed = records, prepare, drops, seed
        self.cache: dict[int, Example] | None = {} if cache else None
        self.bad: set[int] = set()
        self.epoch, self.order = -1, torch.empty(0)
        self.rejected: Counter[str] = Counter()

    def batch(self, step: int, size: int, rank: int = 0, ranks: int = 1) -> Batch:
        """The share of one of `ranks` processes in micro-batch `step` of size * ranks examples.

        Raises ValueError when no record is left that can be used.
        """
        first = (step * ranks + rank) * size
        numbers = range(first, first + size)
        return collate(
            [self.at(number) for number in numbers], [self.chances(number) for number in numbers], self.drops
        )

    def at(self, number: int) -> Example:
        """The example with a number: every record once in each epoch, in an order of the epoch's own."""
        epoch, first = divmod(number, len(self.records))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, torch.randperm(len(self.records), generator=seeded(self.seed, 0, epoch))
        for place in range(first, first + len(self.records)):
            if (example := self.load(int(self.order[place % len(self.records)]))) is not None:
                return example
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.rejected.most_common())
        raise ValueError(f"data: none of the {len(self.records)} records can be used ({reasons})")

    def load(self, index: int) -> Example | None:
        """The prepared record, or None if it is bad."""
        if index in self.bad:
            return None
        if self.cache is not None and index in self.cache:
            return self.cache[index]
        try:
            example = self.prepare(self.records.read(index))
        except BadRecord as error:
            self.bad.add(index)
            self.rejected[error.reason] += 1
            logger.warning("skipped: %s", error)
            return None
        if self.cache is not None:
            self.cache[index] = example
        return example

    def chances(self, number: int) -> tuple[torch.Generator, float, float]:
        """The example's own randomness: a generator for its noise, and what decides on its drops."""
        generator = seeded(self.seed, 1, number)
        drop, background = torch.rand(2, generator=generator).tolist()
        return generator, drop, background


def collate(examples: list[Example], chances: list[tuple[torch.Generator, float, float]], drops: Drops) -> Batch:
    """Examples and their randomness -> Batch, padded to the largest number of subjects."""
    subjects = max(len(example.masks) for example in examples)
    text, both = drops.text, drops.text + drops.both
    dropped = [drop for _, drop, _ in chances]
    return Batch(
        names=[example.name for example in examples],
        latents=torch.stack([example.latent for example in examples]),
        noise=torch.stack(
            [torch.randn(e.latent.shape, generator=random) for e, (random, _, _) in zip(examples, chances, strict=True)]
        ),
        timesteps=torch.cat([torch.randint(TIMESTEPS, (1,), generator=random) for random, _, _ in chances]),
        masks=pad([example.masks for example in examples], subjects),
        present=pad([torch.ones(len(example.masks), dtype=torch.bool) for example in examples], subjects),
        photos=pad([example.photos for example in examples], subjects),
        crops=pad([example.crops for example in examples], subjects),
        identity=None if examples[0].identity is None else pad([example.identity for example in examples], subjects),
        rows={key: [example.rows[key] for example in examples] for key in examples[0].rows},
        positions={
            key: pad([torch.tensor(example.positions[key]) for example in examples], subjects)
            for key in examples[0].positions
        },
        drop_text=torch.tensor([drop < both for drop in dropped]),
        drop_image=torch.tensor([text <= drop < both + drops.image for drop in dropped]),
        subjects_only=torch.tensor([background < drops.background for _, _, background in chances]),
    )


def pad(tensors: list[Tensor], length: int) -> Tensor:
    """Tensors (s, ...) with s up to `length` -> (b, length, ...), zeros where there is none."""
    out = tensors[0].new_zeros(len(tensors), length, *tensors[0].shape[1:])
    for row, tensor in zip(out, tensors, strict=True):
        row[: len(tensor)] = tensor
    return out


def seeded(seed: int, stream: int, number: int) -> torch.Generator:
    """A generator of its own for each number of a stream."""
    return torch.Generator().manual_seed((seed * 2 + stream) * 1_000_000_007 + number)
