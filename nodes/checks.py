"""Checks of inputs, before anything loads (validate_inputs) and again when a node runs, and how their errors are shown.

ComfyUI calls validate_inputs with what is written in the node; a linked input is None, an input that is not connected
keeps the default. Whatever it names loses ComfyUI's own checks, and an error stands at each input that it names. An
Autogrow input arrives with its connected names alone.
"""

import math
import traceback
from collections.abc import Callable, Sequence
from functools import wraps

from comfy_api.latest import io
from torch import Tensor

from ..mmdiff_model.checkpoint import Checkpoint
from ..mmdiff_model.subject import Subject

PACK = __name__.rpartition(".nodes.")[0]
NOT_CONNECTED = object()
TAKES = {"MMDIFF": Checkpoint, "MMDIFF_SUBJECT": Subject, "IMAGE": Tensor, "MASK": Tensor}
JUDGES = {"clip_model", "dino_model", "dinov2_model", "face_recogniser", "box_model"}
# whatever looks for these says more
FILES, FACES = {"checkpoint", "file", "pack", "models", *JUDGES}, "face_analysis"
JSON = str | int | float | list | dict  # what a prompt holds in place of a link


def validation(*checks: Callable[[], object]) -> bool | str:
    """What validate_inputs returns: True, or the sentence of the first check that raises."""
    for check in checks:
        try:
            check()
        except (ValueError, FileNotFoundError) as error:
            return printable(str(error))
    return True


def printable(text: str) -> str:
    """Text without halves of emojis and bytes of names that are no UTF-8, which end ComfyUI's worker in a message."""
    return text.encode(errors="replace").decode()


def checked(execute: Callable) -> Callable:
    """Decorates a node's execute: what arrives is checked by its schema, and errors of the pack's own classes are
    raised as the built-in class they are, since the front end shows where a class is."""

    @wraps(execute)
    def run(cls, *args, **inputs):
        inputs = check_inputs(cls.define_schema(), inputs)
        try:
            return execute(cls, *args, **inputs)
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            whole = text == printable(text)
            if whole and not type(error).__module__.startswith(f"{PACK}."):
                raise
            plain = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            raise plain(printable(str(error))) from (error if whole else None)

    return run


def check_inputs(schema: io.Schema, inputs: dict[str, object]) -> dict[str, object]:
    """The inputs, whole numbers and truths as such: a link of any type may bring 5.0 and 1 for them.

    Raises ValueError naming an input that is not in the schema, or that holds what it does not take. ComfyUI checks
    what is written in a widget alone, not what a link brings, nor what a prompt has in a link's place."""
    known, taken = {given.id: given for given in schema.inputs}, dict(inputs)
    for name, value in inputs.items():
        if name not in known:
            raise ValueError(f"{name}: this node has no such input. Leave it out; it has {names_of(schema) or 'none'}.")
        given = known[name]
        if isinstance(given, io.Autogrow.Input):
            if not isinstance(value, dict):
                raise ValueError(f"{name}: got {kind_of(value)} for the whole list. Connect to {names_of(schema)}.")
            for slot, one in value.items():
                if one is not None:
                    check_input(f"{name}.{slot}", given.template.input, one)
        elif value is not None or not given.optional:
            taken[name] = check_input(name, given, value)
    return taken


def names_of(schema: io.Schema) -> str:
    """The names of a node's inputs, those of a growing list by its first and last."""
    lists = {
        given.id: f"{given.id}.{given.template.names[0]} to {given.template.names[-1]}"
        for given in schema.inputs
        if isinstance(given, io.Autogrow.Input)
    }
    return ", ".join(lists.get(given.id, given.id) for given in schema.inputs)


def check_input(name: str, given: io.Input, value: object) -> object:
    """The value as the input takes it. Raises ValueError naming the input unless it does: a number within its limits,
    true or false, a text, a choice of its own, or what its socket is for."""
    if isinstance(given, io.Int.Input | io.Float.Input):
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{name}: got {kind_of(value)} in place of a number. Give a number.")
        if isinstance(given, io.Int.Input):
            if not isinstance(value, int) and not value.is_integer():
                raise ValueError(f"{name}: got {value} in place of a whole number. Give a whole number.")
            value = int(value)
        low = -math.inf if given.min is None else given.min
        high = math.inf if given.max is None else given.max
        if not low <= value <= high:
            raise ValueError(f"{name}: {value} is not within {low} to {high}. Give a number that is.")
    elif isinstance(given, io.Boolean.Input):
        if not isinstance(value, int | float) or value not in (0, 1):
            raise ValueError(f"{name}: got {kind_of(value)} in place of true or false. Give one of them.")
        value = bool(value)
    elif isinstance(given, io.String.Input) and not isinstance(value, str):
        raise ValueError(f"{name}: got {kind_of(value)} in place of a text. Write or link a text.")
    elif isinstance(given, io.Combo.Input):
        if name not in FILES:
            check_option(name, value, given.options)
    elif not isinstance(given, io.WidgetInput) and name != FACES:
        kind = given.get_io_type()
        if value is None or isinstance(value, JSON) or not isinstance(value, TAKES.get(kind, object)):
            raise ValueError(
                f"{name}: got {kind_of(value)} in place of a link of type {kind}. Connect a node's output."
            )
    return value


def kind_of(value: object) -> str:
    return "nothing" if value is None else f"a value of type '{type(value).__name__}'"


def check_range(start_percent: float | None, end_percent: float | None) -> None:
    """Raises ValueError unless both are parts of sampling, the start first; None is a linked input, not known yet."""
    for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
        if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise ValueError(f"{name}: {value} is not a part of sampling. Give a number from 0 to 1.")
    if start_percent is not None and end_percent is not None and start_percent > end_percent:
        raise ValueError(
            f"start_percent: {start_percent} is after end_percent {end_percent}. Set it at or below end_percent."
        )


def check_option(name: str, value: str | None, options: Sequence[str]) -> None:
    """Raises ValueError unless a combo's value is one of its options; None is a linked input, not known yet."""
    if value is not None and value not in options:
        raise ValueError(f"{name}: '{value}' is not one of {', '.join(options)}. Choose one of them.")
