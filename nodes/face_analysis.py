"""Loading InsightFace packs from models/insightface."""

from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..mmdiff_model.faces import PROVIDERS, load_face_analysis
from .checks import checked

FOLDER = "insightface"
RELEASED_PACK = "buffalo_l"
folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))


def pack_names() -> list[str]:
    """The folders in models/insightface/models, and buffalo_l first, there or not."""
    models = [Path(root) / "models" for root in folder_paths.get_folder_paths(FOLDER)]
    names = {folder.name for path in models if path.is_dir() for folder in path.iterdir() if folder.is_dir()}
    return [RELEASED_PACK, *sorted(names - {RELEASED_PACK})]


def pack_root(name: str) -> Path:
    """The insightface folder that holds the pack, else the one in ComfyUI's own models folder."""
    roots = [Path(root) for root in folder_paths.get_folder_paths(FOLDER)]
    return next((root for root in roots if (root / "models" / name).is_dir()), Path(folder_paths.models_dir) / FOLDER)


class MMDiffFaceAnalysisLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MMDiffFaceAnalysisLoader",
            display_name="Load Face Analysis (MM-Diff)",
            category="MM-Diff/loaders",
            description="Loads InsightFace's face detection and recognition, which portrait checkpoints need. "
            "Downloads nothing.",
            search_aliases=["insightface", "buffalo_l", "arcface", "face detection"],
            inputs=[
                io.Combo.Input(
                    "pack",
                    options=pack_names(),
                    default=RELEASED_PACK,
                    tooltip="A folder of .onnx files in models/insightface/models. MM-Diff was trained with "
                    "buffalo_l (for non-commercial research); others give little likeness.",
                ),
                io.Combo.Input(
                    "provider",
                    options=list(PROVIDERS),
                    default="CPU",
                    advanced=True,
                    tooltip="What runs the models. CPU takes no video memory and is fast enough for photos; "
                    "the others need the onnxruntime made for them.",
                ),
            ],
            outputs=[
                io.FaceAnalysis.Output(
                    display_name="face analysis", tooltip="The InsightFace object, for Encode MM-Diff Subject."
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, pack: str, provider: str) -> io.NodeOutput:
        return io.NodeOutput(load_face_analysis(pack_root(pack), pack, provider))
