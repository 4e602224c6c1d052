"""Where a class word's characters lie among a prompt's tokens, found without the pack: weights parsed by hand, tokens
placed by the tokenizers library's own character offsets."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import comfy.sd1_clip
import transformers

Chars = list[tuple[str, int]]  # a character that is read, and where it stands in the prompt
OPEN, CLOSE = "open", "close"
# as people write them, and as the host writes them for itself, which a prompt may hold too
ESCAPED = {"\\(": "(", "\\)": ")", "\0\2": "(", "\0\1": ")"}


@dataclass(frozen=True)
class Places:
    """Indices among a prompt's real tokens: those that hold a part of a word, and the one that must be fused, where
    the text after the word leaves the tokens of the text before it as they are."""

    overlapping: set[int]
    last: int | None


@cache
def fast_tokenizer() -> transformers.PreTrainedTokenizerBase:
    return transformers.CLIPTokenizerFast.from_pretrained(Path(comfy.sd1_clip.__file__).parent / "sd1_tokenizer")


def segments(text: str) -> list[Chars]:
    """The texts that the host tokenises one by one."""
    items: list[tuple[str, int, str | None]] = []
    place = 0
    while place < len(text):
        if escaped := ESCAPED.get(text[place : place + 2]):
            items.append((escaped, place + 1, None))
            place += 2
        else:
            items.append((text[place], place, {"(": OPEN, ")": CLOSE}.get(text[place])))
            place += 1
    return list(_read(items))


def _read(items):
    depth, start = 0, 0
    pieces = []
    for number, (_, _, kind) in enumerate(items):
        if kind == OPEN:
            if depth == 0:
                pieces.append(items[start:number])
                start = number
            depth += 1
        elif kind == CLOSE:
            depth -= 1
            if depth == 0:
                pieces.append(items[start : number + 1])
                start = number + 1
    pieces.append(items[start:])
    for piece in pieces:
        if len(piece) >= 2 and piece[0][2] == OPEN and piece[-1][2] == CLOSE:
            yield from _read(_without_weight(piece[1:-1]))
        elif piece:
            yield [(char, place) for char, place, _ in piece]


def _without_weight(items):
    colon = max((number for number, item in enumerate(items) if item[0] == ":"), default=0)
    if colon and not any(kind for _, _, kind in items[colon:]):
        try:
            float("".join(char for char, _, _ in items[colon + 1 :]))
        except ValueError:
            return items
        return items[:colon]
    return items


def offsets(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a text, and the characters that each stands for."""
    read = fast_tokenizer()(text, add_special_tokens=False, return_offsets_mapping=True)
    return read["input_ids"], read["offset_mapping"]


def places(text: str, start: int, end: int) -> Places:
    """Where the characters start to end of a prompt without triggers and embeddings lie among its real tokens."""
    count, overlapping, last = 0, set(), None
    for chars in segments(text):
        read = "".join(char for char, _ in chars)
        ids, spans = offsets(read)
        inside = {number for number, (_, place) in enumerate(chars) if start <= place < end}
        for number, (first, stop) in enumerate(spans):
            if inside & set(range(first, stop)):
                overlapping.add(count + number)
        if inside:
            before, _ = offsets(read[: max(inside) + 1])
            last = count + len(before) - 1 if ids[: len(before)] == before else None
        count += len(ids)
    return Places(overlapping, last)
