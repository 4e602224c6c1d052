"""Configurations of `tools/train.py`: a YAML file read into frozen dataclasses, every mistake named by its key."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .dataset import Drops
from .objective import Losses
from .plan import STRICT, Amount, Plan, Positive
from .trainable import PARTS, Part, Shape

LIST = "a list with at least one entry"
WANTED = {  # what pydantic's kinds of errors say is wanted
    "int_type": "a whole number",
    "float_type": "a number such as 1.0e-4",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "path_type": "a path",
    "tuple_type": LIST,
    "too_short": LIST,
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
}
NO_SUCH_KEY, MISSING, NO_SECTION = "unexpected_keyword_argument", "missing", "dataclass_type"
Seed = Annotated[int, Field(ge=0, le=0xFFFFFFFF)]
Place = Annotated[Path, AfterValidator(Path.expanduser)]


class ConfigError(ValueError):
    """A configuration that cannot be used. Its text names the key."""


@dataclass(frozen=True, config=STRICT)
class Base:
    """Files of the frozen base. checkpoint: SDXL in one file; without `vae` its own. face_analysis: a folder with an
    InsightFace model pack, for `portrait`."""

    checkpoint: Place
    clip_vision: Place
    vae: Place | None = None
    face_analysis: Place | None = None


@dataclass(frozen=True, config=STRICT)
class SmallWorld:
    """The small world's models in place of SDXL: a folder with their weights."""

    small_world: Place


@dataclass(frozen=True, config=STRICT)
class Data:
    """places: folders and .tar shards of annotated records. size: side of the pictures, a multiple of 64 pixels.
    cache: keep prepared examples in memory."""

    places: tuple[Place, ...]
    size: Positive = 1024
    cache: bool = False


@dataclass(frozen=True, config=STRICT)
class Samples:
    """A picture painted after every `every` steps. references: one photo for each trigger of the prompt, in order."""

    prompt: str
    references: Annotated[tuple[Place, ...], Field(min_length=1)]
    every: Positive = 500
    steps: Positive = 20
    cfg: Amount = 5.0
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Settings:
    """A training on a base that is loaded; `output` is the folder of its state, checkpoint and logs."""

    output: Place
    variant: Literal["portrait", "subject"]
    data: Data
    plan: Plan
    shape: Shape = field(default_factory=Shape)
    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS
    losses: Losses = field(default_factory=Losses)
    drops: Drops = field(default_factory=Drops)
    gradient_checkpointing: bool = False
    checkpoint_seconds: Positive = 600
    seed: Seed = 0


BASES = {kind.__name__: kind for kind in (Base, SmallWorld)}


def base_of(values: Any) -> str:
    """Which base a section is meant for."""
    return SmallWorld.__name__ if isinstance(values, dict) and "small_world" in values else Base.__name__


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainConfig(Settings):
    """A training with the files of its base, and pictures to paint on the way."""

    base: Annotated[
        Annotated[Base, Tag(Base.__name__)] | Annotated[SmallWorld, Tag(SmallWorld.__name__)], Discriminator(base_of)
    ]
    samples: Samples | None = None


def load_config(path: Path) -> TrainConfig:
    """Reads a file; relative paths in it start at the working directory. Raises ConfigError, FileNotFoundError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        return check(TypeAdapter(TrainConfig).validate_json(json.dumps(values, default=str)))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    except ValidationError as error:
        errors = sorted(error.errors(), key=lambda found: found["type"] != NO_SUCH_KEY)  # why another may be missing
        raise ConfigError(f"{path}: {sentence(errors[0])}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def sentence(error: Mapping[str, Any]) -> str:
    """A mistake as people read it: the key, what it should be and what it is."""
    *places, last = error["loc"] or ("the file",)
    key, kind = joined(error["loc"]), error["type"]
    if kind == NO_SUCH_KEY:
        names = names_of(places)
        close = difflib.get_close_matches(str(last), names, 1)
        hint = f"did you mean {joined((*places, close[0]))}?" if close else f"it may hold {', '.join(names)}"
        return f"{key}: no such key; {hint}"
    if kind == MISSING:
        return f"{key}: missing"
    if kind == NO_SECTION:
        wanted = f"hold {', '.join(names_of(error['loc']))}"
    else:
        expected = {name: listed(value) for name, value in error.get("ctx", {}).items()}
        wanted = f"be {WANTED[kind].format(**expected)}"
    return f"{key or last}: should {wanted}, but is {shown(error['input'])}"


def names_of(places: Sequence[int | str]) -> list[str]:
    """The keys of the section at a place."""
    kind: Any = TrainConfig
    for place in places:
        hint = BASES.get(str(place)) or typing.get_type_hints(kind)[str(place)]
        kind = next(one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one))
    return [field.name for field in dataclasses.fields(kind)]


def joined(places: Sequence[int | str]) -> str:
    """A place as it is written: data.places[0]."""
    key = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places if place not in BASES)
    return key.removeprefix(".")


def listed(value: Any) -> Any:
    """pydantic's "'a' or 'b'" as "a, b"."""
    return value.replace("'", "").replace(" or ", ", ") if isinstance(value, str) else value


def shown(value: Any) -> str:
    return "empty" if value is None else repr(value)


def check(config: TrainConfig) -> TrainConfig:
    """The configuration. Raises ConfigError where values do not go together."""
    if not config.data.places:
        raise ConfigError(f"data.places: should be {LIST}, but is []")
    if config.data.size % 64:
        raise ConfigError(f"data.size: should be a multiple of 64 pixels, but is {config.data.size}")
    drops = config.drops
    if drops.text + drops.image + drops.both > 1:
        raise ConfigError("drops: text, image and both add up to more than 1")
    if config.variant == "portrait" and getattr(config.base, "face_analysis", None) is None:
        raise ConfigError("base.face_analysis: missing; `portrait` reads faces with an InsightFace model pack")
    return config
