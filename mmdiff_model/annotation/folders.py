"""Models of transformers in folders of the user's: which is what, and what is wrong with one that cannot be loaded."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

LOCAL = {"local_files_only": True, "trust_remote_code": False}
CONFIG = "config.json"
CAPTIONER, DETECTOR, SEGMENTER = "captioner", "detector", "segmenter"
MODELS = {
    CAPTIONER: {
        "blip-2": ("Blip2ForConditionalGeneration", "Blip2Processor"),
        "florence2": ("Florence2ForConditionalGeneration", "Florence2Processor"),
    },
    DETECTOR: {
        "grounding-dino": ("AutoModelForZeroShotObjectDetection", "GroundingDinoProcessor"),
        "mm-grounding-dino": ("AutoModelForZeroShotObjectDetection", "GroundingDinoProcessor"),
    },
    SEGMENTER: {
        "sam": ("SamModel", "SamProcessor"),
        "sam2": ("Sam2Model", "Sam2Processor"),
        "sam2_video": ("Sam2Model", "Sam2Processor"),
    },
}
ORIGINS = {
    CAPTIONER: "florence-community/Florence-2-large or Salesforce/blip2-opt-2.7b",
    DETECTOR: "IDEA-Research/grounding-dino-base",
    SEGMENTER: "facebook/sam-vit-huge or facebook/sam2.1-hiera-large",
}

Ready = Callable[[], torch.device]


@dataclass(frozen=True)
class Loaded:
    """A model with its processor. ready() brings it where it computes, and says where that is."""

    model: nn.Module
    processor: Any
    ready: Ready


def find_models(places: Sequence[Path], source: str) -> dict[str, Path]:
    """The folder of each role in places that are model folders or hold some. Raises ValueError naming `source`.

    There must be one detector and one segmenter, and there may be one captioner.
    """
    found: dict[str, list[Path]] = {role: [] for role in MODELS}
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"{source}: {place} is not a folder. {needed()}")
        for folder in [place, *sorted(path for path in place.iterdir() if path.is_dir())]:
            if (folder / CONFIG).is_file():
                kind = type_of(folder, source)
                for role in (role for role, kinds in MODELS.items() if kind in kinds):
                    found[role].append(folder)
    for role, folders in found.items():
        if len(folders) > 1:
            names = " and ".join(f"'{folder.name}'" for folder in folders)
            raise ValueError(f"{source}: {names} are both a {role}. Name a folder that holds one of them alone.")
        if not folders and role != CAPTIONER:
            raise ValueError(f"{source}: no {role} in {', '.join(map(str, places))}. {needed()}")
    return {role: folders[0] for role, folders in found.items() if folders}


def needed() -> str:
    return (
        f"It takes a detector ({ORIGINS[DETECTOR]}), a segmenter ({ORIGINS[SEGMENTER]}) and, for captions, a captioner "
        f"({ORIGINS[CAPTIONER]}), each with all of its files in a folder of its own."
    )


def type_of(folder: Path, source: str) -> str:
    """What config.json calls the model. Raises ValueError."""
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_type"))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{source}: {CONFIG} in '{folder}' is damaged ({error}). Get it again.") from error


def load(folder: Path, role: str, source: str, place: Callable[[nn.Module], Ready], dtype: torch.dtype) -> Loaded:
    """The model of a folder. Raises ValueError: files missing, damaged, of another model or of another form."""
    import transformers

    names = MODELS[role][type_of(folder, source)]
    if unknown := sorted(set(names) - set(dir(transformers))):
        raise ValueError(
            f"{source}: '{folder.name}' is a {role} that transformers {transformers.__version__} does not have "
            f"({unknown[0]}). Update transformers: pip install --upgrade transformers."
        )
    transformers.utils.logging.disable_progress_bar()
    with errors_of(folder, role, source):
        model_class, processor_class = (getattr(transformers, name) for name in names)
        processor = processor_class.from_pretrained(folder, **LOCAL)
        model, report = model_class.from_pretrained(folder, output_loading_info=True, dtype=dtype, **LOCAL)
        weights = {name for name, _ in model.named_parameters()}
        if missing := sorted(weights.intersection(report["missing_keys"])):
            raise ValueError(f"its weights lack {len(missing)} parts, such as {missing[0]}")
    return Loaded(model, processor, place(model.eval().requires_grad_(False)))


@contextmanager
def errors_of(folder: Path, role: str, source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers, tokenizers, safetensors and pickle each raise their own kinds
        raise ValueError(
            f"{source}: '{folder.name}' cannot be loaded as a {role}: {error}. Get its files again in the form that "
            f"transformers itself reads, such as those of {ORIGINS[role]}."
        ) from error
