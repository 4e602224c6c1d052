"""Pictures become annotated training data, and a sheet that shows what was found in them."""

import hashlib
import logging
from collections import Counter
from pathlib import Path

import comfy.model_management
import comfy.utils
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from .checks import check_option, checked, validation
from .folders import find, plain_name, register, shown, writing
from .images import photos_from

FOLDER = register("mmdiff_annotation", ".json")
DATA = "mmdiff_data"
ALL = "all"
BATCH = 8

logger = logging.getLogger(__name__)


def model_sets() -> list[str]:
    """`all`, and the folders in models/mmdiff_annotation that hold model folders themselves."""
    files = map(Path, folder_paths.get_filename_list(FOLDER))
    return [ALL, *sorted({file.parts[0] for file in files if file.name == "config.json" and len(file.parts) > 2})]


class MMDiffAnnotate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffAnnotate",
            display_name="Annotate Pictures (MM-Diff)",
            category="MM-Diff/training",
            description="Makes training data of pictures: a caption, and a mask for each class word in it. Shows what "
            "was found on a sheet. Downloads nothing.",
            search_aliases=["mm-diff data", "dataset", "caption", "grounding dino", "sam", "segment"],
            inputs=[
                io.Image.Input("images", tooltip="The pictures to train on, of any size."),
                io.Combo.Input(
                    "models",
                    options=model_sets(),
                    default=ALL,
                    tooltip="Models in models/mmdiff_annotation, each with all of its files in a folder of its own: "
                    "Grounding DINO, SAM or SAM 2, and for captions Florence-2 or BLIP-2. 'all' takes those that lie "
                    "there; a folder in it can hold another set.",
                ),
                io.String.Input(
                    "words",
                    default="",
                    placeholder="dog, cat",
                    tooltip="The class words to look for, such as: dog, cat. Empty takes the phrases of the captions, "
                    "which Florence-2 can tell.",
                ),
                io.String.Input(
                    "name",
                    default="my_data",
                    tooltip=f"Folder of the records in input/{DATA}. Other pictures are added to what is there; the "
                    "same pictures replace theirs.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="data", tooltip="The folder, for the data input of Train MM-Diff."),
                io.Image.Output(
                    display_name="sheet",
                    tooltip="The pictures with their masks, words and captions, or the reason why one gives no record.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor, models: str, words: str, name: str) -> io.NodeOutput:
        from ..mmdiff_model.annotation.annotator import Annotator
        from ..mmdiff_model.annotation.words import Rejected
        from ..mmdiff_model.annotation.writers import FolderWriter
        from ..mmdiff_model.managed import managed

        photos = [(photo * 255).round().byte().numpy() for photo in photos_from(images)]
        folder = data_folder(name)
        annotator = Annotator.load(model_places(models), words_of(words), managed, half_precision())
        writer, results = FolderWriter(folder), []
        bar = comfy.utils.ProgressBar(len(photos))
        for start in range(0, len(photos), BATCH):
            comfy.model_management.throw_exception_if_processing_interrupted()
            batch = photos[start : start + BATCH]
            names = [f"picture_{hashlib.sha256(photo.tobytes()).hexdigest()[:16]}" for photo in batch]
            pictures = [Image.fromarray(photo) for photo in batch]
            for number, result in enumerate(annotator.annotate(names, pictures, [None] * len(batch))):
                with writing("name", folder / names[number]):
                    if isinstance(result, Rejected):
                        logger.warning("MM-Diff: picture %d passed over: %s", start + number + 1, result)
                        writer.remove(names[number])  # of an earlier run
                    else:
                        writer.write(result)
                results.append(result)
            bar.update(len(batch))
        rejected = [result for result in results if isinstance(result, Rejected)]
        if len(rejected) == len(results):
            raise ValueError(nothing_found(rejected))
        sheet = contact_sheet(photos, results)
        return io.NodeOutput(data_name(folder), sheet, ui=ui.PreviewImage(sheet, cls=cls))

    @classmethod
    def validate_inputs(cls, models=None, words=None, name=None) -> bool | str:
        return validation(
            lambda: check_option("models", models, model_sets()),
            lambda: not isinstance(words, str) or words_of(words),
            lambda: not isinstance(name, str) or data_folder(name),
        )


def words_of(text: str) -> tuple[str, ...]:
    """The class words, each once; none of an empty text. Raises ValueError on a text without any."""
    from ..mmdiff_model.annotation.words import parse_words

    if not (words := parse_words(text)) and text.strip():
        raise ValueError(f"words: '{shown(text)}' names none. Write class words, such as: dog, cat, or leave it empty.")
    return words


def model_places(models: str) -> list[Path]:
    """The folders that hold a choice's models. Raises FileNotFoundError."""
    if models != ALL:
        return [find(FOLDER, models, "models")]
    return [Path(root) for root in folder_paths.get_folder_paths(FOLDER) if Path(root).is_dir()] or [
        Path(folder_paths.get_folder_paths(FOLDER)[0])
    ]


def half_precision() -> torch.dtype:
    """What a captioner computes in: half precision where the host uses it."""
    device = comfy.model_management.get_torch_device()
    return torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32


def contact_sheet(photos: list[np.ndarray], results: list) -> Tensor:
    """The contact sheet as an IMAGE (1, H, W, 3)."""
    from ..mmdiff_model.annotation.sheet import draw_sheet

    return torch.from_numpy(np.array(draw_sheet(photos, results))).float()[None] / 255


def data_folder(name: str) -> Path:
    """The folder of training data with a name. Raises ValueError on a name that leads elsewhere."""
    return Path(folder_paths.get_input_directory()) / DATA / plain_name("name", name, "is not a plain folder name")


def data_name(folder: Path) -> str:
    """The folder as Train MM-Diff takes it: below the input folder."""
    return f"{DATA}/{folder.name}"


def nothing_found(rejected: list) -> str:
    """Why no picture gave a record."""
    reasons = Counter(result.reason for result in rejected)
    told = ", ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    captions = "; ".join(dict.fromkeys(f'"{result.caption}"' for result in rejected[:3] if result.caption))
    return (
        f"words: no picture gave a record ({told}). "
        + (f"The captions are such as {captions}. " if captions else "")
        + "Choose words that stand in the captions and that the pictures show."
    )
