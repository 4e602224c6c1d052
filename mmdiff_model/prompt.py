"""Prompt grammar: `<|subj|>` directly after the class word, as the released code has it.

The k-th plain trigger is the k-th subject; `<|subj:2|>` and `<|subj:anna|>` name one by number or name, as often as
wanted.
"""

import logging
import re
from collections.abc import Sequence

PLAIN_TRIGGER = "<|subj|>"
TRIGGER = re.compile(r"<\|subj(?::([^|]*))?\|>")
WEIGHTED = re.compile(rf"((?:(?::[+-]?[\d.]+)?(?<!\\)\))*\s*){TRIGGER.pattern}")  # and the end of weights before it
WHERE = (
    f"Put {PLAIN_TRIGGER} directly after the subject's class word, as in: a photo of a man{PLAIN_TRIGGER} on the beach"
)

logger = logging.getLogger(__name__)


class PromptError(ValueError):
    """A trigger is missing or out of place; the message quotes the prompt."""

    def __init__(self, prompt: str, problem: str):
        super().__init__(f'positive: {problem} in "{prompt}". {WHERE}')


def strip_triggers(prompt: str) -> str:
    """The prompt as the text encoders read it."""
    return TRIGGER.sub("", prompt)


def mark_triggers(prompt: str, marker: str) -> str:
    """The prompt with `marker` in place of each trigger, inside of weights, whose reading it then leaves as it is."""
    return WEIGHTED.sub(lambda found: marker + found[1], prompt)


def trigger_subjects(prompt: str, names: Sequence[str]) -> list[int]:
    """Subject (index into `names`) of every trigger in order. Unnamed subjects have the name "".

    Raises PromptError without a trigger, with more triggers than subjects, and on an unknown number or name. A subject
    that no trigger calls is logged as a warning.
    """
    subjects, plain = [], 0
    for match in TRIGGER.finditer(prompt):
        label = match[1]
        if label is None:
            subject, plain = plain, plain + 1
            if subject >= len(names):
                raise PromptError(prompt, f"there are more triggers than subjects ({len(names)} connected)")
        else:
            subject = _named(prompt, label.strip(), names)
        subjects.append(subject)
    if not subjects:
        raise PromptError(prompt, "there is no trigger")
    for unused in sorted(set(range(len(names))) - set(subjects)):
        logger.warning(
            "MM-Diff: no trigger in the prompt calls subject %d%s, its class word stays plain",
            unused + 1,
            f" ('{names[unused]}')" if names[unused] else "",
        )
    return subjects


def _named(prompt: str, label: str, names: Sequence[str]) -> int:
    if label and label in names:
        return list(names).index(label)
    if label.isdecimal() and 1 <= int(label) <= len(names):
        return int(label) - 1
    known = ", ".join([f"1 to {len(names)}", *(f"'{name}'" for name in names if name)])
    raise PromptError(prompt, f"the trigger <|subj:{label}|> names no connected subject (known: {known})")
