"""A second face recogniser: an ONNX file or a transformers model in a folder, on faces that InsightFace has found.

The portrait variant is given buffalo_l's vector of the face, so a score by buffalo_l judges its own input.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..managed import managed
from ..model_folders import Kind, errors_of, load_folder
from .encoders import PICTURES_ALONE, PictureEncoder

SETTINGS = "preprocessor_config.json"
KIND = Kind("a face recogniser in transformers' layout, or one .onnx file", {}, other=PICTURES_ALONE)
ALIGNED = 112  # ArcFace's crop; other sizes are cut at a multiple of it and resized
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


@dataclass(frozen=True)
class Recogniser:
    """`embed` takes crops (H, W, 3) in 0..1 of aligned faces and gives vectors (n, d)."""

    name: str
    side: int
    embed: Callable[[Sequence[Tensor]], np.ndarray]

    def vectors(self, image: np.ndarray, found: Sequence[Any]) -> np.ndarray:
        """BGR image (H, W, 3) uint8 and InsightFace's faces in it -> unit vectors (faces, d)."""
        crops = [self._crop(image, face) for face in found]
        vectors = np.asarray(self.embed(crops), dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _crop(self, image: np.ndarray, face: Any) -> Tensor:
        from insightface.utils.face_align import norm_crop

        aligned = norm_crop(image, landmark=np.asarray(face.kps), image_size=-(-self.side // ALIGNED) * ALIGNED)
        crop = torch.from_numpy(aligned[..., ::-1].astype(np.float32)) / 255
        if len(crop) == self.side:
            return crop
        size = (self.side, self.side)
        return nn.functional.interpolate(crop.movedim(2, 0)[None], size, mode="bilinear", antialias=True)[0].movedim(
            0, 2
        )


def load_recogniser(folder: Path, source: str) -> Recogniser:
    """The folder's .onnx file or transformers model. Raises ValueError naming `source`: none, several, damaged."""
    files = sorted(folder.glob("*.onnx"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(
            f"{source}: '{folder}' has several models ({names}). Leave the recogniser's .onnx alone there."
        )
    return _load_onnx(files[0], source) if files else _load_transformers(folder, source)


def _load_transformers(folder: Path, source: str) -> Recogniser:
    """A vision model; its vector is what it pools, or the class token where its weights have no pooler."""
    loaded = load_folder(folder, KIND, source, managed, may_lack=("pooler.",))
    side = ALIGNED * 2  # the processor resizes to its own size

    def features(pixels: Tensor) -> Tensor:
        output = loaded.model(pixel_values=pixels)
        return output.last_hidden_state[:, 0] if loaded.lacking else output.pooler_output.flatten(1)

    encoder = PictureEncoder(folder.name, loaded, loaded.processor, features)
    with errors_of(folder, source, KIND.origin):
        if loaded.model.main_input_name != "pixel_values":
            raise ValueError(f"a model of type '{loaded.model.config.model_type}' does not read pictures alone")
        encoder.embed([torch.zeros(side, side, 3)])  # what cannot be run is said now, not at the first face
    return Recogniser(folder.name, side, lambda crops: encoder.embed(crops).numpy())


def _load_onnx(file: Path, source: str) -> Recogniser:
    """(n, 3, side, side) or (n, side, side, 3) -> (n, d).

    Colours are RGB in -1..1 as in ArcFace, unless preprocessor_config.json beside the file has transformers' keys
    image_mean, image_std (for colours in 0..1) or do_flip_channel_order (BGR).
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            f"{source}: an .onnx file needs onnxruntime ({error}). Run: pip install onnxruntime."
        ) from error
    available = onnxruntime.get_available_providers()
    with errors_of(file.parent, source, KIND.origin):
        session = onnxruntime.InferenceSession(file, providers=[name for name in PROVIDERS if name in available])
        settings = (
            json.loads((file.parent / SETTINGS).read_text(encoding="utf-8"))
            if (file.parent / SETTINGS).is_file()
            else {}
        )
        mean, std = (np.float32(settings.get(key, [0.5] * 3)) for key in ("image_mean", "image_std"))
        [given] = session.get_inputs()
        shape = given.shape
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ValueError(f"its input has the shape {shape}, not a picture's")
        first = shape[1] == 3
        side = shape[2] if isinstance(shape[2], int) else ALIGNED

        def embed(crops: Sequence[Tensor]) -> np.ndarray:
            pixels = (torch.stack(list(crops)).numpy() - mean) / std
            if settings.get("do_flip_channel_order"):
                pixels = pixels[..., ::-1]
            pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) if first else pixels, dtype=np.float32)
            if shape[0] in (None, 1) or isinstance(shape[0], str):
                return np.concatenate([_vector(session, given.name, pixels[i : i + 1]) for i in range(len(pixels))])
            raise ValueError(f"its input takes {shape[0]} pictures at once, one is needed")

        embed([torch.zeros(side, side, 3)])
    return Recogniser(file.name, side, embed)


def _vector(session: Any, name: str, pixels: np.ndarray) -> np.ndarray:
    vector = session.run(None, {name: pixels})[0]
    if vector.ndim != 2 or len(vector) != 1:
        raise ValueError(f"its output has the shape {vector.shape}, a vector (1, d) is needed")
    return vector
