"""The models of annotation in folders of the user's: which is what."""

from collections.abc import Sequence
from pathlib import Path

from ..model_folders import CONFIG, Kind, type_of

CAPTIONER, DETECTOR, SEGMENTER = "captioner", "detector", "segmenter"
DINO = "AutoModelForZeroShotObjectDetection", "GroundingDinoProcessor"
MODELS = {
    CAPTIONER: Kind(
        "florence-community/Florence-2-large or Salesforce/blip2-opt-2.7b",
        {
            "blip-2": ("Blip2ForConditionalGeneration", "Blip2Processor"),
            "florence2": ("Florence2ForConditionalGeneration", "Florence2Processor"),
        },
        reads_text=True,
    ),
    DETECTOR: Kind(
        "IDEA-Research/grounding-dino-base", {"grounding-dino": DINO, "mm-grounding-dino": DINO}, reads_text=True
    ),
    SEGMENTER: Kind(
        "facebook/sam-vit-huge or facebook/sam2.1-hiera-large",
        {
            "sam": ("SamModel", "SamProcessor"),
            "sam2": ("Sam2Model", "Sam2Processor"),
            "sam2_video": ("Sam2Model", "Sam2Processor"),
        },
    ),
}


def find_models(places: Sequence[Path], source: str) -> dict[str, Path]:
    """The folder of each role in places that are model folders or hold some. Raises ValueError naming `source`.

    There must be one detector and one segmenter, and there may be one captioner.
    """
    found: dict[str, list[Path]] = {role: [] for role in MODELS}
    others = []
    for place in places:
        if not place.is_dir():
            raise FileNotFoundError(f"{source}: {place} is not a folder. {needed()}")
        for folder in [place, *sorted(path for path in place.iterdir() if path.is_dir())]:
            if (folder / CONFIG).is_file():
                kind = type_of(folder, source)
                roles = [role for role, model in MODELS.items() if kind in model.classes]
                for role in roles:
                    found[role].append(folder)
                others += [] if roles else [f"'{folder.name}' is a model of type '{kind}'"]
    for role, folders in found.items():
        if len(folders) > 1:
            names = " and ".join(f"'{folder.name}'" for folder in folders)
            raise ValueError(f"{source}: {names} are both a {role}. Name a folder that holds one of them alone.")
        if not folders and role != CAPTIONER:
            told = f" ({', '.join(others)})" if others else ""
            raise ValueError(f"{source}: no {role} in {', '.join(map(str, places))}{told}. {needed()}")
    return {role: folders[0] for role, folders in found.items() if folders}


def needed() -> str:
    return (
        f"It takes a detector ({MODELS[DETECTOR].origin}), a segmenter ({MODELS[SEGMENTER].origin}) and, for captions, "
        f"a captioner ({MODELS[CAPTIONER].origin}), each with all of its files in a folder of its own."
    )
