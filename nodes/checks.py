"""Checks of inputs, before anything loads (validate_inputs) and again when a node runs, and how their errors are shown.

ComfyUI calls validate_inputs with what is written in the node; a linked input is None, an input that is not connected
keeps the default. Whatever it names loses ComfyUI's own checks, and an error stands at each input that it names. An
Autogrow input arrives with its connected names alone.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps

from comfy_api.latest import io

PACK = __name__.rpartition(".nodes.")[0]
NOT_CONNECTED = object()


def validation(*checks: Callable[[], object]) -> bool | str:
    """What validate_inputs returns: True, or the sentence of the first check that raises."""
    for check in checks:
        try:
            check()
        except (ValueError, FileNotFoundError) as error:
            return str(error)
    return True


def checked(execute: Callable) -> Callable:
    """Decorates a node's execute: linked numbers are held to their input's limits, and errors of the pack's own classes
    are raised as the built-in class they are, since the front end shows where a class is."""

    @wraps(execute)
    def run(cls, *args, **inputs):
        check_limits(cls, inputs)
        try:
            return execute(cls, *args, **inputs)
        except Exception as error:
            if not type(error).__module__.startswith(f"{PACK}."):
                raise
            plain = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            raise plain(str(error)) from error

    return run


def check_limits(node: type[io.ComfyNode], inputs: dict[str, object]) -> None:
    """Raises ValueError naming a number outside of its input's limits, or NaN. ComfyUI checks what is written in a node
    alone, not what is linked to it."""
    for given in node.define_schema().inputs:
        value = inputs.get(given.id)
        if isinstance(given, (io.Int.Input, io.Float.Input)) and isinstance(value, (int, float)):
            low = -math.inf if given.min is None else given.min
            high = math.inf if given.max is None else given.max
            if not low <= value <= high:
                raise ValueError(f"{given.id}: {value} is not within {low} to {high}. Give a number that is.")


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
