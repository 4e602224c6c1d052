"""Prompt grammar: `<|subj|>` directly after the class word, as the released code has it.

The k-th plain trigger is the k-th subject; `<|subj:2|>` and `<|subj:anna|>` name one by number or name, as often as
wanted.
"""

import re
import unicodedata
from collections.abc import Sequence

from .mistyped import find_mistyped, visible

PLAIN_TRIGGER = "<|subj|>"
TRIGGER = re.compile(r"<\|subj(?::([^|]*))?\|>")
NAME = re.compile(r"[^|<>\x00-\x1f\x7f-\x9f]{0,200}")  # a name that a trigger can call, or none
EMBEDDING = re.compile(r"(?:(?<=[()])|\A)embedding:.*", re.DOTALL)  # in a class word; its name ends at white space
MOST_LETTERS = 20_000  # more take minutes to read, once for each trigger
MOST_TRIGGERS = 100  # each is found by the whole prompt's tokens
NUMBER_DIGITS = 4  # more do not number a subject, and Python refuses to read some thousands
QUOTED, BEFORE, AFTER = 200, 30, 16  # characters of a prompt, and around a place in it, that an error quotes
WHERE = (
    f"Put {PLAIN_TRIGGER} directly after the subject's class word, as in: a photo of a man{PLAIN_TRIGGER} on the beach"
)
RIGHT = (
    f"Write {PLAIN_TRIGGER}, <|subj:2|> or <|subj:anna|> in just these signs, directly after the class word. It goes "
    "behind a choice, not inside: {boy|girl}" + PLAIN_TRIGGER
)


class PromptError(ValueError):
    """A trigger is missing or out of place; the message quotes the prompt, and the part around a place in it."""

    def __init__(self, prompt: str, problem: str, place: int | None = None, remedy: str = WHERE):
        if place is not None:
            near = prompt[max(0, place - BEFORE) : place + AFTER]
            problem += f' at "{near}"' if near != prompt else ""
        quoted = prompt if len(prompt) <= QUOTED else f"{prompt[:QUOTED]}..."
        message = f'positive: {problem} in "{quoted}". {remedy}'
        super().__init__(message.encode(errors="replace").decode())  # half an emoji in a message ends ComfyUI's worker


def strip_triggers(prompt: str) -> str:
    """The prompt as the text encoders read it."""
    return TRIGGER.sub("", prompt)


def word_ends(prompt: str) -> list[int]:
    """Where the word before each trigger ends in the prompt without triggers; 0 where there is none."""
    text, ends, removed = strip_triggers(prompt), [], 0
    for match in TRIGGER.finditer(prompt):
        ends.append(_word_end(text, match.start() - removed))
        removed += len(match[0])
    return ends


def class_word_ends(prompt: str) -> list[int]:
    """Where each trigger's class word ends in the prompt without triggers. Raises PromptError where no word does."""
    text, ends = strip_triggers(prompt), word_ends(prompt)
    for match, end in zip(TRIGGER.finditer(prompt), ends, strict=True):
        if not end:
            raise PromptError(prompt, "a trigger has no word before it", match.start())
        if not _is_of_a_word(text[end - 1]) and not embedding_before(text, end):
            raise PromptError(prompt, "a trigger stands after a punctuation mark, not after a word", match.start())
    return ends


def embedding_before(text: str, end: int) -> str:
    """The embedding whose name ends there, such as embedding:friend, or "" where another word does."""
    word = re.split(r"\s", text[:end])[-1]
    found = EMBEDDING.search(word)
    return found[0] if found else ""


def _is_of_a_word(char: str) -> bool:
    """Letters and digits of any script, marks on them, and emojis."""
    return char.isalnum() or not char.isascii() and unicodedata.category(char)[0] not in "PZC"


def _word_end(text: str, place: int) -> int:
    """Where the word before a place ends: white space, invisible characters and the ends of weights are passed over."""
    while place:
        char = text[place - 1]
        if char.isspace() or unicodedata.category(char) == "Cf":
            place -= 1
        elif char == ")" and text[place - 2 : place - 1] != "\\":
            place = _weight_start(text, place - 1)
        else:
            break
    return place


def _weight_start(text: str, end: int) -> int:
    """Where the weight that ends there begins: ComfyUI reads what follows a group's last colon with float()."""
    colon = text.rfind(":", 0, end)
    if colon < 1 or text.rfind(")", 0, end) > colon:
        return end
    try:
        float(text[colon + 1 : end])
    except ValueError:
        return end
    return colon


def check_triggers(prompt: str, subjects: int) -> None:
    """What can be said of a prompt before the subjects are known, but for their number.

    Raises PromptError without a trigger, with too many, with more plain ones than subjects, on an unknown number, a
    mistyped one, and on one without a word before it; ValueError on more than MOST_LETTERS.
    """
    check_spelling(prompt)
    found = list(TRIGGER.finditer(prompt))
    if not found:
        raise PromptError(prompt, "there is no trigger")
    if len(found) > MOST_TRIGGERS:
        raise PromptError(prompt, f"there are more than {MOST_TRIGGERS} triggers", found[MOST_TRIGGERS].start())
    plain = [match for match in found if match[1] is None]
    if len(plain) > subjects:
        place = plain[subjects].start()
        remedy = (
            f"Each {PLAIN_TRIGGER} calls the next subject: connect one more, or take this trigger out. To call a "
            f"subject that is connected again, write its number, as in <|subj:{subjects}|>"
        )
        raise PromptError(prompt, f"there are more triggers than subjects ({subjects} connected)", place, remedy)
    for match in found:
        label = (match[1] or "").strip()
        if match[1] is not None and (not label or label.isdecimal() and _number(label) not in range(1, subjects + 1)):
            raise _unknown(prompt, match, [""] * subjects)
    class_word_ends(prompt)


def check_spelling(prompt: str) -> None:
    """Raises PromptError on a mistyped trigger, which would be read as words, and ValueError as check_length does."""
    check_length(prompt, "positive")
    if place := find_mistyped(prompt, TRIGGER):
        before, wrong = strip_triggers(prompt[: place.start])[-BEFORE:], visible(prompt[place])
        raise PromptError(prompt, f'a trigger is mistyped, after "{before}": "{wrong}"', remedy=RIGHT)


def check_negative(prompt: str) -> None:
    """Raises ValueError on a trigger, mistyped or not, which would be read as words, and as check_length does."""
    check_length(prompt, "negative")
    found = TRIGGER.search(prompt)
    if place := slice(*found.span()) if found else find_mistyped(prompt, TRIGGER):
        shown = visible(prompt[place]).encode(errors="replace").decode()
        raise ValueError(
            f"negative: a trigger {shown} stands in the negative prompt, where it calls nobody. Take it out; how the "
            "negative prompt is fused is the input negative_fusion."
        )


def check_length(prompt: str, source: str) -> None:
    """Raises ValueError naming the input on more than MOST_LETTERS."""
    if len(prompt) > MOST_LETTERS:
        raise ValueError(
            f"{source}: the prompt has {len(prompt)} letters, more than {MOST_LETTERS} are not read. Shorten it."
        )


def trigger_subjects(prompt: str, names: Sequence[str]) -> list[int]:
    """Subject (index into `names`) of every trigger in order. Unnamed subjects have the name "".

    Raises PromptError as check_triggers does, on an unknown name, and on one that two subjects have.
    """
    check_triggers(prompt, len(names))
    subjects, plain = [], 0
    for match in TRIGGER.finditer(prompt):
        if match[1] is None:
            subjects.append(plain)
            plain += 1
        else:
            subjects.append(_called(prompt, match, names))
    return subjects


def _called(prompt: str, match: re.Match, given: Sequence[str]) -> int:
    label, names = composed(match[1].strip()), [composed(name) for name in given]
    if label.isdecimal():  # no name is a number
        return _number(label) - 1
    if label not in names:
        raise _unknown(prompt, match, given)
    if names.count(label) > 1:
        problem = f"two subjects have the name '{label}', in letters that look the same,"
        raise PromptError(prompt, problem, match.start(), "Give each its own name in MM-Diff Subject Region")
    return names.index(label)


def composed(name: str) -> str:
    """A name in Unicode's composed form: systems write the same letters in two forms."""
    return unicodedata.normalize("NFC", name)


def _number(label: str) -> int:
    return int(label) if len(label) <= NUMBER_DIGITS else 0


def _unknown(prompt: str, match: re.Match, names: Sequence[str]) -> PromptError:
    known = ", ".join([f"1 to {len(names)}", *(f"'{name}'" for name in names if name)])
    shown = match[0] if len(match[0]) <= BEFORE else f"{match[0][:BEFORE]}..."
    problem = f"the trigger {shown} names no connected subject (known: {known})"
    remedy = "Write one of those in its place, or connect the subject that it means. MM-Diff Subject Region gives names"
    return PromptError(prompt, problem, match.start(), remedy)
