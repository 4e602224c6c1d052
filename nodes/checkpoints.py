"""Loading MM-Diff checkpoints from models/mmdiff, and saving one as a single .safetensors."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..mmdiff_model.checkpoint import OFFICIAL_FILES, load_checkpoint, save_checkpoint
from .checks import checked, validation
from .folders import file_name, find, new_file, register, state_of, writing
from .sockets import MMDiff, mmdiff_input

FOLDER = register("mmdiff", ".safetensors", ".bin")


def checkpoint_names() -> list[str]:
    """The .safetensors files, and folders with at least one official file ("." is models/mmdiff itself)."""
    names = set()
    for file in map(Path, folder_paths.get_filename_list(FOLDER)):
        if file.suffix == ".safetensors":
            names.add(file.as_posix())
        elif file.name in OFFICIAL_FILES:
            names.add(file.parent.as_posix())
    return sorted(names)


class MMDiffLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffLoader",
            display_name="Load MM-Diff",
            category="MM-Diff/loaders",
            description="Loads an MM-Diff checkpoint: the official folder of three files, or one .safetensors.",
            search_aliases=["mmdiff", "mm-diff", "personalization", "identity"],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=checkpoint_names(),
                    tooltip="A folder with the three official files, or a .safetensors file, in models/mmdiff.",
                ),
                io.Boolean.Input(
                    "text_encoder_2_lora",
                    default=False,
                    advanced=True,
                    tooltip="Also apply the LoRA of the second text encoder. The released code reads it but never "
                    "applies it.",
                ),
            ],
            outputs=[MMDiff.Output(display_name="mmdiff", tooltip="The checkpoint, for the other MM-Diff nodes.")],
        )

    @classmethod
    @checked
    def execute(cls, checkpoint: str, text_encoder_2_lora: bool) -> io.NodeOutput:
        return io.NodeOutput(load_checkpoint(find(FOLDER, checkpoint, "checkpoint"), text_encoder_2_lora))

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str | None, text_encoder_2_lora: bool) -> str:
        return state_of(FOLDER, checkpoint, "checkpoint")


class MMDiffSaveCheckpoint(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffSaveCheckpoint",
            display_name="Save MM-Diff Checkpoint",
            category="MM-Diff/loaders",
            description="Writes a loaded MM-Diff checkpoint as one .safetensors into models/mmdiff, where Load "
            "MM-Diff finds it.",
            search_aliases=["convert mmdiff", "safetensors"],
            inputs=[
                mmdiff_input(),
                io.String.Input(
                    "filename",
                    default="mmdiff",
                    tooltip="Name of the file, without .safetensors. It must not exist yet.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, mmdiff, filename: str) -> io.NodeOutput:
        path = new_file(FOLDER, filename)
        with writing("filename", path):
            save_checkpoint(mmdiff, path, overwrite=False)
        return io.NodeOutput(ui=ui.PreviewText(f"Saved {path.name} to {path.parent}"))

    @classmethod
    def validate_inputs(cls, filename=None) -> bool | str:
        return validation(lambda: not isinstance(filename, str) or file_name(filename))
