"""Which tokens of a prompt must be fused, and with what, by an oracle that shares no code with the pack's reading."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from .outcome import Wrong
from .prompt_oracle import Places, places, segments

TRIGGER = re.compile(r"<\|subj(?::([^|]*))?\|>")
ENCODERS = ("l", "g")
EMBEDDING = re.compile(r"(?:(?<=[\s()])|\A)embedding:(\w+)(?=[\s()]|\Z)")

Rows = dict[str, list[list[tuple]]]  # of each encoder: chunks of (token or vector, weight)


class Recorder:
    """Keeps the tokens that a CLIP's text encoders are given; all clones of a CLIP share these."""

    def __init__(self, clip):
        self.given: list[Rows] = []
        encoders = clip.cond_stage_model
        encode = encoders.encode_token_weights

        def record(tokens: Rows):
            self.given.append(tokens)
            return encode(tokens)

        encoders.encode_token_weights = record


def wanted_places(prompt: str, vectors: dict[str, int]) -> list[Places] | None:
    """Where each trigger's word lies among the prompt's real tokens; None where it holds an embedding, or a parenthesis
    too many, in a way that this oracle does not judge. vectors: how many each embedding has, 0 for one that is left
    out."""
    text, ends = "", []
    for part in re.split(r"(<\|subj(?::[^|]*)?\|>)", prompt):
        if TRIGGER.fullmatch(part):
            ends.append(len(text))
        else:
            text += part
    embeddings = list(EMBEDDING.finditer(text))
    for match in reversed(embeddings):
        words = " ".join(["friend"] * vectors.get(match[1], 0))  # a token each
        if any(match.start() < end < match.end() for end in ends):
            return None
        ends = [end + len(words) - len(match[0]) if end >= match.end() else end for end in ends]
        text = text[: match.start()] + words + text[match.end() :]
    found = []
    read = [(char, place) for chars in segments(text) for char, place in chars]
    if "embedding:" in text or embeddings and any(char in "()" for char, _ in read):  # not at a segment's start
        return None
    for end in ends:
        last = max(place for char, place in read if place < end and not is_blank(char))
        if text[last] == ")" and text[:last][-1:] != "\\":  # it closes nothing, and is passed over as if it did
            return None
        found.append(places(text, last, last + 1))
    return found


def is_blank(char: str) -> bool:
    return char.isspace() or unicodedata.category(char) == "Cf"


def wanted_subjects(prompt: str, names: Sequence[str]) -> list[int]:
    """The subject of each trigger: by number, by name, or the next one."""
    found, plain = [], 0
    for label in (match[1] for match in TRIGGER.finditer(prompt)):
        if label is None:
            found.append(plain)
            plain += 1
        else:
            found.append(int(label) - 1 if label.strip().isdecimal() else list(names).index(label.strip()))
    return found


class Fusion:
    """What the text encoders must be given in place of tokens, for a CLIP and the CLS of some subjects."""

    def __init__(self, clip, adapter, names: Sequence[str]):
        self.clip, self.adapter, self.names = clip, adapter, names

    def check(self, prompts: Sequence[str], given: Sequence[Rows], cls: Sequence[Tensor], vectors, told: set) -> None:
        """Raises Wrong unless the class words of the prompt, and the tokens at their places in the negative prompt,
        are fused with their subjects, nothing else is, and the conditioning tells just these (subject, place)."""
        wanted = wanted_places(prompts[0], vectors)
        if wanted is None:
            return
        subjects = wanted_subjects(prompts[0], self.names)
        rows = self.clip.tokenize(TRIGGER.sub("", prompts[0]), return_word_ids=True)
        found = {key: changed(rows[key], given[0][key]) for key in ENCODERS}
        if found["l"] != found["g"]:
            raise Wrong("fused other tokens for one encoder than for the other")
        real = [(i, j) for i, row in enumerate(rows["l"]) for j, token in enumerate(row) if token[2] > 0]
        owners: dict[tuple[int, int], int] = {}
        for subject, place in zip(subjects, wanted, strict=True):
            options = {place.last} if place.last is not None else place.overlapping
            here = [real[index] for index in sorted(options) if real[index] in found["l"]]
            if not here:
                raise Wrong(f"fused {found['l']}, of which none is among {sorted(options)} of the real tokens")
            owners |= {at: subject for at in [at for at in here if at not in owners][:1]}
        if set(found["l"]) != owners.keys():
            raise Wrong(f"fused {found['l']}, and of the tokens of the words only {sorted(owners)} had to be")
        if told != {(subject, i * len(rows["l"][0]) + j) for (i, j), subject in owners.items()}:
            raise Wrong(f"fused {owners} and told {sorted(told)}")
        negative = self.clip.tokenize(prompts[1], return_word_ids=True)
        for tokens, fused in ((rows, given[0]), (negative, given[1])):
            self.check_vectors(tokens, fused, owners, cls)

    def check_vectors(self, tokens: Rows, given: Rows, owners: dict, cls: Sequence[Tensor]) -> None:
        """Of one prompt: its own tokens, those that the encoders were given, and whose the fused ones are."""
        words = {
            (i, j): [self.embed(key, tokens[key][i][j][0]) for key in ENCODERS]
            for i, j in owners
            if i < len(tokens["l"])
        }
        whole = {at: pair for at, pair in words.items() if all(len(vector) for vector in pair)}
        if any(changed(tokens[key], given[key]) != sorted(whole) for key in ENCODERS):
            raise Wrong(f"fused other places of the negative prompt than {sorted(whole)}")
        for (i, j), pair in whole.items():
            fused = self.adapter.fuse(tuple(vector[None] for vector in pair), cls[owners[i, j]][None])
            for key, vector in zip(ENCODERS, fused, strict=True):
                if not torch.allclose(given[key][i][j][0], vector[0], rtol=1e-3, atol=1e-4):
                    raise Wrong(f"fused with another subject or word at {i, j}")

    def embed(self, key: str, token: int | Tensor) -> Tensor:
        """A token's vector; an empty one for another model's."""
        table = getattr(self.clip.cond_stage_model, f"clip_{key}").transformer.get_input_embeddings()
        if not torch.is_tensor(token):
            return table(torch.tensor([token]), out_dtype=torch.float32)[0]
        return token.float() if token.shape[-1] == table.embedding_dim else token[:0]


def changed(before: list[list[tuple]], after: list[list[tuple]]) -> list[tuple[int, int]]:
    """Places whose token is another: (chunk, position)."""
    pairs = ((i, zip(row, other, strict=True)) for i, (row, other) in enumerate(zip(before, after, strict=True)))
    return [(i, j) for i, row in pairs for j, (one, other) in enumerate(row) if not same(one[0], other[0])]


def same(one: int | Tensor, other: int | Tensor) -> bool:
    if torch.is_tensor(one) or torch.is_tensor(other):
        return torch.is_tensor(one) and torch.is_tensor(other) and torch.equal(one, other)
    return one == other
