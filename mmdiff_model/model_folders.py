"""Models of transformers in folders of the user's: loading one, and what is wrong with one that cannot be loaded.

Nothing is downloaded. Every error names `source`, the input that chose the folder. Needs no ComfyUI.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

LOCAL = {"local_files_only": True, "trust_remote_code": False}
CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",))

Ready = Callable[[], torch.device]
Place = Callable[[nn.Module], Ready]


@dataclass(frozen=True)
class Kind:
    """A kind of model. origin: where its files come from. classes: transformers' names of model and processor by the
    model_type in config.json; `other` those of any other type."""

    origin: str
    classes: Mapping[str, tuple[str, str]]
    other: tuple[str, str] | None = None
    reads_text: bool = False


@dataclass(frozen=True)
class Loaded:
    """A model with its processor. ready() brings it where it computes, and says where that is. lacking: names of those
    of its parameters that its files do not have."""

    model: nn.Module
    processor: Any
    ready: Ready
    lacking: tuple[str, ...] = ()


def type_of(folder: Path, source: str) -> str:
    """What config.json calls the model. Raises ValueError."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{source}: {CONFIG} in '{folder}' is damaged ({error}). Get it again.") from error


def load_folder(
    folder: Path,
    kind: Kind,
    source: str,
    place: Place,
    dtype: torch.dtype = torch.float32,
    may_lack: tuple[str, ...] = (),
    **options: bool,
) -> Loaded:
    """The model of a folder. Its weights may lack what begins with `may_lack`; options go to the model's class.

    Raises ValueError: files missing, damaged, of another model or of another form.
    """
    import transformers

    names = classes_of(folder, kind, source)
    if unknown := sorted(set(names) - set(dir(transformers))):
        raise ValueError(
            f"{source}: '{folder.name}' is a model that transformers {transformers.__version__} does not have "
            f"({unknown[0]}). Update transformers: pip install --upgrade transformers."
        )
    transformers.utils.logging.disable_progress_bar()
    with errors_of(folder, source, kind.origin):
        model_class, processor_class = (getattr(transformers, name) for name in names)
        processor = processor_class.from_pretrained(folder, **LOCAL)
        if dtype != torch.float32:
            options["dtype"] = dtype
        model, report = model_class.from_pretrained(folder, output_loading_info=True, **LOCAL, **options)
        model = model.float() if dtype == torch.float32 else model
        lacking = tuple(name for name, _ in model.named_parameters() if name in report["missing_keys"])
        if missing := [name for name in lacking if not name.startswith(may_lack)]:
            raise ValueError(f"its weights lack {', '.join(missing[:3])}")
    return Loaded(model, processor, place(model.eval().requires_grad_(False)), lacking)


def classes_of(folder: Path, kind: Kind, source: str) -> tuple[str, str]:
    """transformers' names of model and processor. Raises ValueError: a file is missing, or of another model."""

    def check(there: bool, name: str) -> None:
        if not there:
            raise ValueError(
                f"{source}: '{folder}' lacks {name}. Put all files of the model there, such as those of {kind.origin}."
            )

    check((folder / CONFIG).is_file(), CONFIG)
    found = type_of(folder, source)
    names = kind.classes.get(found, kind.other)
    if names is None:
        raise ValueError(
            f"{source}: '{folder.name}' is a model of type '{found}', {' or '.join(kind.classes)} is needed. Choose "
            f"another folder, such as the files of {kind.origin}."
        )
    check(any((folder / name).is_file() for name in PROCESSORS), PROCESSORS[0])
    check(any(file for pattern in WEIGHTS for file in folder.glob(pattern)), "its weights (model.safetensors)")
    tokenizer = any(all((folder / name).is_file() for name in files) for files in TOKENIZERS)
    check(tokenizer or not kind.reads_text, "its tokenizer (tokenizer.json)")
    return names


@contextmanager
def errors_of(folder: Path, source: str, origin: str) -> Iterator[None]:
    """Raises ValueError naming the folder in place of whatever loading raises."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers, safetensors and pickle each raise their own kinds
        raise ValueError(
            f"{source}: '{folder.name}' cannot be loaded: {error}. Get its files again in the form that transformers "
            f"itself reads, such as those of {origin}."
        ) from error
