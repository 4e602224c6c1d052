"""Checks of inputs, before anything loads (validate_inputs) and again when a node runs, and how their errors are shown.

ComfyUI calls validate_inputs with what is written in the node; a linked input is None, an input that is not connected
keeps the default. Whatever it names loses ComfyUI's own checks, and an error stands at each input that it names. An
Autogrow input arrives with its connected names alone.
"""

import math
from collections.abc import Callable, Sequence
from functools import wraps

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


def plain_errors(execute: Callable) -> Callable:
    """Raises errors of the pack's own classes as the built-in class they are: the front end shows where a class is."""

    @wraps(execute)
    def run(*args, **inputs):
        try:
            return execute(*args, **inputs)
        except Exception as error:
            if not type(error).__module__.startswith(f"{PACK}."):
                raise
            plain = next(kind for kind in type(error).__mro__ if kind.__module__ == "builtins")
            raise plain(str(error)) from error

    return run


def check_finite(**inputs: float) -> None:
    """Raises ValueError naming the input that is NaN or infinite."""
    for name, value in inputs.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {value} is not a number to work with. Give a finite one.")


def check_range(start_percent: float | None, end_percent: float | None) -> None:
    """Raises ValueError unless both are parts of sampling, the start first; None is a linked input, not known yet."""
    for name, value in (("start_percent", start_percent), ("end_percent", end_percent)):
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{name}: {value} is not a part of sampling. Give a number from 0 to 1.")
    if start_percent is not None and end_percent is not None and start_percent > end_percent:
        raise ValueError(
            f"start_percent: {start_percent} is after end_percent {end_percent}. Set it at or below end_percent."
        )


def check_option(name: str, value: str | None, options: Sequence[str]) -> None:
    """Raises ValueError unless a combo's value is one of its options; None is a linked input, not known yet."""
    if value is not None and value not in options:
        raise ValueError(f"{name}: '{value}' is not one of {', '.join(options)}. Choose one of them.")
