"""A run's conditionings: which subjects each of them calls, where their class words are, where in the picture it acts.

A subject belongs to the conditionings that call it. One with triggers gets the subjects that it calls and no other (in
the released code the tokens of others are masked), a positive one without any trigger gets all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from uuid import uuid4

from comfy.samplers import create_cond_with_same_area_if_none
from torch import Tensor

from ..schedule import FROM_STEP, RANGE, UNTIL_STEP
from ..subject import Subject, identify
from ..text import CALLED, CLASS_WORDS, TOKENS, WRITTEN, WrittenWord

Area = tuple[int, int, int, int]
PHASE = (RANGE, FROM_STEP, UNTIL_STEP)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """One conditioning of a run; its number is its place among them.

    subjects: those it calls, none where it is negative; words: (subject, token position) of its class words; period:
    after so many keys its text comes again; area (h, w, y, x) of the latent; text (1, tokens, width), as encoded.
    missing: those that it calls and the model does not carry, by number and name; `triggers` is False where it has
    none. written: the class words of the others, for people. joined: another text follows the prompt's own.
    """

    number: int
    subjects: tuple[int, ...]
    words: tuple[tuple[int, int], ...]
    period: int
    area: Area | None
    text: Tensor = field(compare=False)
    missing: tuple[str, ...] = ()
    triggers: bool = True
    written: tuple[WrittenWord, ...] = field(default=(), compare=False)
    joined: bool = False

    def place(self, size: tuple[int, int], latent: tuple[int, int]) -> Area | None:
        """The part of the latent (H, W) that a call of this size sees; None where it sees another one, a tile."""
        h, w, y, x = self.area or (*latent, 0, 0)
        h, w = min(h, latent[0] - y), min(w, latent[1] - x)
        return (h, w, y, x) if (h, w) == size else None


def with_owners(conds: dict[str, list[dict]]) -> Iterator[tuple[str, dict, dict]]:
    """Every entry of a run with its side's name, and the first entry that has the same embeddings: its owner.

    Where one side is restricted to an area, ComfyUI gives the other a twin: a copy of the restricted entry with the
    other side's embeddings. What is said of the owner's text holds for the twin.
    """
    owners: list[tuple[object, dict]] = []
    for name, entries in conds.items():
        for entry in entries:
            text = entry["model_conds"]["c_crossattn"]
            owner = next((owner for embeddings, owner in owners if embeddings is text), entry)
            owners.append((text, owner))
            yield name, entry, owner


def share_phases(conds: dict[str, list[dict]]) -> None:
    """Gives twins the phase of the text that they carry. In place."""
    for _, entry, owner in with_owners(conds):
        entry.update({key: owner[key] for key in PHASE if key in owner})


def add_twins(conds: dict[str, list[dict]]) -> None:
    """Gives prompts and areas a twin in every phase of delayed text, where ComfyUI gave one in the first. In place."""
    phases = dict.fromkeys(phase(entry) for entries in conds.values() for entry in entries)
    for this in (found for found in phases if found != phase({})):
        acting = {
            name: [entry for entry in entries if phase(entry) in (this, phase({}))] for name, entries in conds.items()
        }
        for name, other in permutations(conds, 2):
            for entry in list(acting[name]):
                before = len(acting[other])
                create_cond_with_same_area_if_none(acting[other], entry)
                for twin in acting[other][before:]:
                    twin.update({key: value for key, value in zip(PHASE, this, strict=True) if value is not None})
                    conds[other].append(twin)


def phase(entry: dict) -> tuple:
    """The phase of delayed text that an entry is of; that of an entry without any is the empty one's."""
    return tuple(entry.get(key) for key in PHASE)


def find_conditionings(conds: dict[str, list[dict]], subjects: Sequence[Subject]) -> dict[object, Conditioning]:
    """The conditionings of a run by uuid; a twin gets one of its own."""
    identities = [identify(subject) for subject in subjects]
    found: dict[object, Conditioning] = {}
    for name, cond, owner in with_owners(conds):
        if cond["uuid"] in found:
            cond["uuid"] = uuid4()
        text = cond["model_conds"]["c_crossattn"].cond
        found[cond["uuid"]] = read_conditioning(
            len(found), owner, text, cond.get("area"), identities, negative="negative" in name
        )
    return found


def read_conditioning(
    number: int, entry: dict, text: Tensor, area: Sequence[int] | None, identities: Sequence[tuple], negative: bool
) -> Conditioning:
    """A conditioning from what its text node wrote into its entry, with the model's subjects in place of the node's."""
    area = None if area is None else tuple(area)
    tokens, encoded = entry.get(TOKENS, (text.shape[1], text.shape[1]))
    period = text.shape[1] * tokens // encoded
    if negative:
        return Conditioning(number, (), (), period, area, text)
    if CALLED not in entry:
        return Conditioning(number, tuple(range(len(identities))), (), period, area, text, triggers=False)
    carried = {index: match_subject(index, who, identities) for index, who in entry[CALLED]}
    missing = tuple(
        f"{index + 1}" + (f" ('{who[-1]}')" if who[-1] else "")
        for index, who in entry[CALLED]
        if carried[index] is None
    )
    words = tuple(
        (carried[index], position) for index, position in entry[CLASS_WORDS] if carried.get(index) is not None
    )
    written = tuple(
        word._replace(subject=carried[word.subject]) for word in entry[WRITTEN] if carried.get(word.subject) is not None
    )
    called = tuple(sorted({subject for subject in carried.values() if subject is not None}))
    joined = text.shape[1] > encoded
    return Conditioning(number, called, words, period, area, text, missing, written=written, joined=joined)


def match_subject(index: int, who: tuple[str, ...], carried: Sequence[tuple[str, ...]]) -> int | None:
    """Which of the carried subjects a text node's subject is, by identity; `index` decides between equals only.

    What is in the text is its CLS. Tokens, region and name tell subjects of one CLS apart.
    """
    candidates = [number for number, other in enumerate(carried) if other[0] == who[0]]
    for trait in range(1, len(who)):
        candidates = [number for number in candidates if carried[number][trait] == who[trait]] or candidates
    if not candidates:
        return None
    return index if index in candidates else candidates[0]
