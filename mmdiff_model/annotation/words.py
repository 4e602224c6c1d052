"""Class words: where they stand in a caption, and which boxes belong to them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torchvision.ops import nms

IOU = 0.5
SUBJECTS = 2
NUMBERS = "two", "three", "four", "many"
COUNTED = re.compile(rf"(?<![\w-])(?:{'|'.join(NUMBERS)})\s+$", re.IGNORECASE)
NO_WORD, NO_BOX = "no class word in the caption", "no box for any word"
MANY, UNEQUAL, UNNAMED = (
    "more than two subjects",
    "more or fewer boxes of one word than the caption has of it",
    "no box for a word of the caption",
)


class Rejected(ValueError):
    """A picture that gives no record. Its text is one of few reasons, to be counted."""

    def __init__(self, reason: str, caption: str = ""):
        super().__init__(reason)
        self.reason, self.caption = reason, caption


@dataclass(frozen=True)
class Phrase:
    """A class word where it stands: caption[start:end] == text."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Box:
    """What a detector found: its words, (left, top, right, bottom) in pixels, and how sure it is."""

    label: str
    edges: tuple[float, float, float, float]
    score: float


def split_words(text: str) -> tuple[str, ...]:
    """The words of a list such as "dog, cat"."""
    return tuple(" ".join(word.split()) for word in re.split(r"[,;\n]", text) if key(word))


def parse_words(text: str) -> tuple[str, ...]:
    """The words of a list, each once."""
    return tuple({key(word): word for word in split_words(text)}.values())


def key(text: str) -> str:
    """What two spellings of one phrase share: the detector's tokenizer changes case and spaces."""
    return re.sub(r"[\W_]+", "", text.lower())


def find_words(caption: str, words: Iterable[str]) -> list[Phrase]:
    """Every place of every word in the caption, in order. Longer ones win where they overlap; counted ones ("two
    dogs") are left out."""
    wanted = sorted({word for word in words if key(word)}, key=len, reverse=True)
    if not wanted:
        return []
    pattern = rf"(?<![\w-])(?:{'|'.join(map(re.escape, wanted))})(?![\w-])"
    return [
        Phrase(found[0], *found.span())
        for found in re.finditer(pattern, caption, re.IGNORECASE)
        if not COUNTED.search(caption[: found.start()]) and not counts(found[0])
    ]


def place_words(caption: str, words: Sequence[str]) -> list[Phrase]:
    """Where each word stands in the caption; one that comes again takes the next place. Raises ValueError."""
    places = find_words(caption, words)
    found = []
    for word in words:
        place = next((place for place in places if key(place.text) == key(word)), None)
        if place is None:
            again = " once more" if word in words[: len(found)] else ""
            raise ValueError(
                f"caption: '{word}' does not stand{again} in \"{caption}\". Write a caption with the word of each mask."
            )
        places.remove(place)
        found.append(place)
    return found


def counts(phrase: str) -> bool:
    """Whether a phrase starts with a number word."""
    return phrase.lower().split()[0] in NUMBERS


def is_subject(chunk: str) -> bool:
    """Whether a noun chunk can name a subject: its last word does not end in "ing"."""
    return not chunk.lower().endswith("ing")


def write_caption(words: Sequence[str]) -> str:
    """A caption for pictures that have none: "a photo of a dog and an owl"."""
    named = [f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}" for word in words]
    return f"a photo of {' and '.join(named)}"


def keep_apart(boxes: Sequence[Box]) -> list[Box]:
    """The boxes that are left after non-maximum suppression, and that do not count several things."""
    if not boxes:
        return []
    edges, scores = torch.tensor([box.edges for box in boxes]), torch.tensor([box.score for box in boxes])
    kept = [boxes[number] for number in nms(edges, scores, IOU).tolist()]
    return [box for box in kept if key(box.label) and not counts(box.label)]


def choose(phrases: Sequence[Phrase], boxes: Sequence[Box]) -> list[tuple[Phrase, Box]]:
    """One or two of the boxes with the words that they show, in the caption's order. Raises Rejected.

    boxes: those of keep_apart. Several boxes of one word take the caption's places of it from left to right, if there
    are as many.
    """
    if not boxes:
        raise Rejected(NO_BOX)
    if len(boxes) > SUBJECTS:
        raise Rejected(MANY)
    chosen = []
    for name in dict.fromkeys(key(box.label) for box in boxes):
        places = [phrase for phrase in phrases if key(phrase.text) == name]
        owners = sorted((box for box in boxes if key(box.label) == name), key=lambda box: box.edges[0])
        if places and len(owners) > 1 and len(owners) != len(places):
            raise Rejected(UNEQUAL)
        chosen.extend(zip(places, owners, strict=False))
    if not chosen:
        raise Rejected(UNNAMED)
    return sorted(chosen, key=lambda pair: pair[0].start)
