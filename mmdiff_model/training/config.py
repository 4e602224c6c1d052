"""Configurations of `tools/train.py`: a YAML file read into frozen dataclasses, every mistake named by its key."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml

from .dataset import Drops
from .objective import Losses
from .plan import Plan, Positive
from .trainable import PARTS, Part, Shape

WANTED = {int: "a whole number", float: "a number such as 1.0e-4", bool: "true or false", str: "a text", Path: "a path"}


class ConfigError(ValueError):
    """A configuration that cannot be used. Its text names the key."""


@dataclass(frozen=True)
class Base:
    """Files of the frozen base. checkpoint: SDXL in one file; without `vae` its own. face_analysis: a folder with an
    InsightFace model pack, for `portrait`."""

    checkpoint: Path
    clip_vision: Path
    vae: Path | None = None
    face_analysis: Path | None = None


@dataclass(frozen=True)
class SmallWorld:
    """The small world's models in place of SDXL: a folder with their weights."""

    small_world: Path


@dataclass(frozen=True)
class Data:
    """places: folders and .tar shards of annotated records. size: side of the pictures, a multiple of 64 pixels.
    cache: keep prepared examples in memory."""

    places: tuple[Path, ...]
    size: Positive = 1024
    cache: bool = False


@dataclass(frozen=True)
class Samples:
    """A picture painted after every `every` steps. references: one photo for each trigger of the prompt, in order."""

    prompt: str
    references: tuple[Path, ...]
    every: Positive = 500
    steps: Positive = 20
    cfg: float = 5.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A training on a base that is loaded; `output` is the folder of its state, checkpoint and logs."""

    output: Path
    variant: Literal["portrait", "subject"]
    data: Data
    plan: Plan
    shape: Shape = field(default_factory=Shape)
    parts: tuple[Part, ...] = PARTS
    losses: Losses = field(default_factory=Losses)
    drops: Drops = field(default_factory=Drops)
    gradient_checkpointing: bool = False
    checkpoint_seconds: Positive = 600
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """A training with the files of its base, and pictures to paint on the way."""

    base: Base | SmallWorld
    samples: Samples | None = None


def load_config(path: Path) -> TrainConfig:
    """Reads a file; relative paths in it start at the working directory. Raises ConfigError, FileNotFoundError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    try:
        return check(build(TrainConfig, values, ""))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def build(kind: Any, values: Any, key: str) -> Any:
    """A dataclass from a mapping, its fields from the mapping's values. Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{key or 'the file'}: should hold {', '.join(names_of(kind))}, but is {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, 1)
            hint = f"did you mean {joined(key, close[0])}?" if close else f"it may hold {', '.join(fields)}"
            raise ConfigError(f"{joined(key, name)}: no such key; {hint}")
    for name, found in fields.items():
        if found.default is found.default_factory is dataclasses.MISSING and name not in values:
            raise ConfigError(f"{joined(key, name)}: missing")
    hints = typing.get_type_hints(kind, include_extras=True)
    return kind(**{name: convert(hints[name], value, joined(key, name)) for name, value in values.items()})


def convert(kind: Any, value: Any, key: str) -> Any:
    """A value as the type of its field. Raises ConfigError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and types.NoneType in arguments:
            return None
        return convert(choose(arguments, value), value, key)
    if origin is Annotated:
        number = convert(arguments[0], value, key)
        return number if number >= 1 else fail(key, arguments[1], value)
    if origin is Literal:
        return value if value in arguments else fail(key, f"one of {', '.join(arguments)}", value)
    if origin is tuple:
        if not isinstance(value, list) or not value:
            fail(key, "a list with at least one entry", value)
        return tuple(convert(arguments[0], entry, f"{key}[{number}]") for number, entry in enumerate(value))
    if dataclasses.is_dataclass(kind):
        return build(kind, value, key)
    if kind is float and type(value) in (int, float):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    return value if type(value) is kind else fail(key, WANTED[kind], value)


def choose(kinds: tuple[Any, ...], value: Any) -> Any:
    """The kind of a union that a value is meant for: the one whose keys it has, or the first."""
    shares = [len(set(names_of(kind)) & set(value)) if isinstance(value, dict) else 0 for kind in kinds]
    return kinds[shares.index(max(shares))]


def names_of(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []


def fail(key: str, wanted: str, value: Any) -> typing.NoReturn:
    raise ConfigError(f"{key}: should be {wanted}, but is {shown(value)}")


def shown(value: Any) -> str:
    return "empty" if value is None else repr(value)


def joined(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def check(config: TrainConfig) -> TrainConfig:
    """The configuration. Raises ConfigError where values do not go together."""
    if config.data.size % 64:
        raise ConfigError(f"data.size: should be a multiple of 64 pixels, but is {config.data.size}")
    drops = config.drops
    if drops.text + drops.image + drops.both > 1:
        raise ConfigError("drops: text, image and both add up to more than 1")
    if config.variant == "portrait" and getattr(config.base, "face_analysis", None) is None:
        raise ConfigError("base.face_analysis: missing; `portrait` reads faces with an InsightFace model pack")
    return config
