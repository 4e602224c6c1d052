"""Faces in reference photos: InsightFace detection, the ArcFace identity vector and the aligned crop.

The released code runs buffalo_l at 640 px, takes the first face and aligns it to 224 px. The analysis may come from any
pack: whatever has InsightFace's `get(bgr)`.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .digest import LENGTH
from .subject import Face

WHICH = LARGEST, FIRST, LEFT_TO_RIGHT = ("largest", "detector's first (as released)", "left to right")
PROVIDERS = {
    "CPU": "CPUExecutionProvider",
    "CUDA": "CUDAExecutionProvider",
    "ROCm": "ROCMExecutionProvider",
    "DirectML": "DmlExecutionProvider",
    "CoreML": "CoreMLExecutionProvider",
}

MODELS = "detection", "recognition"
CROP_SIZE = 224
EMBEDDING_SIZE = 512
DETECTION_SIZES = (640, 512, 384, 256)  # the released size, then smaller ones, which find faces that fill the photo
RECOGNITION_FILE = "w600k_r50.onnx"

_DOWNLOAD = (
    "buffalo_l.zip is at https://github.com/deepinsight/insightface/releases/tag/v0.7 "
    "(its licence allows non-commercial research only)"
)
_INSTALL = (
    "Run: pip install insightface onnxruntime (portable Windows: "
    r"python_embeded\python.exe -m pip install insightface onnxruntime), then restart ComfyUI"
)
_LOADER = "Connect Load Face Analysis (MM-Diff), or the InsightFace loader of another pack"

logger = logging.getLogger(__name__)


def load_face_analysis(root: Path, name: str, provider: str = "CPU") -> Any:
    """The InsightFace pack `root`/models/`name` -> FaceAnalysis, detection at 640 px and recognition. Never downloads.

    provider: a key of PROVIDERS. Raises ImportError without insightface, FileNotFoundError without the pack, ValueError
    if the pack is damaged, lacks a model, or this onnxruntime has no such provider.
    """
    folder = _pack_folder(root, name)
    try:
        import onnxruntime
        from insightface.app import FaceAnalysis
    except ImportError as error:
        raise ImportError(f"Load Face Analysis needs insightface and onnxruntime ({error}). {_INSTALL}.") from error
    available = onnxruntime.get_available_providers()
    if PROVIDERS[provider] not in available:
        raise ValueError(
            f"provider: this onnxruntime cannot run on {provider}, it has {', '.join(available)}. "
            "Choose CPU, or install the one made for it, such as onnxruntime-gpu for CUDA."
        )
    try:
        analysis = FaceAnalysis(
            # a full path: InsightFace looks for a bare name in the working folder first, and downloads what it misses
            name=str(folder.resolve()),
            allowed_modules=list(MODELS),
            providers=list(dict.fromkeys((PROVIDERS[provider], PROVIDERS["CPU"]))),
        )
    except AssertionError as error:
        raise ValueError(_incomplete(folder, "detection")) from error
    except Exception as error:  # onnxruntime's errors have no base class of their own
        raise ValueError(f"pack: '{folder}' cannot be opened: {error}. Unpack it again; {_DOWNLOAD}.") from error
    if "recognition" not in analysis.models:
        raise ValueError(_incomplete(folder, "recognition"))
    analysis.prepare(ctx_id=0, det_size=(DETECTION_SIZES[0], DETECTION_SIZES[0]))
    return analysis


def detect(
    analysis: Any, photos: list[Tensor], which: str = LARGEST, index: int = 1, source: str = "images"
) -> list[Face]:
    """One Face for each photo (H, W, 3) in 0..1.

    which: a name of WHICH; index counts from 1 and is used by `left to right`. Raises ValueError on an object that is
    not InsightFace's, and on a photo without a face or with fewer than `index`, naming `source`'s photo.
    """
    _check_analysis(analysis)
    faces = []
    for number, photo in enumerate(photos, start=1):
        image = to_bgr(photo)
        where = f"photo {number} of {len(photos)} ({image.shape[1]} x {image.shape[0]} px)"
        found = find_faces(analysis, image)
        if not found:
            raise ValueError(
                f"{source}: no face found in {where}. Use a photo where the face is bigger and looks to the "
                "camera: crop closer, or add a border around a face that fills the photo."
            )
        faces.append(_align(image, _choose(found, which, index, where)))
    return faces


def largest_face(analysis: Any, photo: Tensor) -> Face | None:
    """The Face that `detect` takes from a photo (H, W, 3) in 0..1, None without one."""
    image = to_bgr(photo)
    found = find_faces(analysis, image)
    return _align(image, _choose(found, LARGEST, 1, "photo")) if found else None


@dataclass(frozen=True, eq=False)
class FaceFinder:
    """`largest_face` of an analysis."""

    analysis: Any

    def __call__(self, photo: Tensor) -> Face | None:
        return largest_face(self.analysis, photo)

    def fingerprint(self) -> str:
        """16 hex digits of the two models' files; "unknown" where another pack's analysis does not say which."""
        try:
            files = [Path(self.analysis.models[task].model_file) for task in MODELS]
        except (AttributeError, KeyError, TypeError):
            return "unknown"
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:LENGTH]


def find_faces(analysis: Any, image: np.ndarray) -> list:
    """BGR image (H, W, 3) uint8 -> InsightFace's faces in its own order, best score first; empty if there are none.

    The first try is at 640 px as released; the smaller sizes follow only if it finds nothing.
    """
    if max(image.shape[:2]) > DETECTION_SIZES[-1] * min(image.shape[:2]):
        return []  # a strip this narrow would be scaled to no pixel at all, where the detector fails
    detector = getattr(analysis, "det_model", None)
    shape = getattr(detector, "input_shape", None)
    if shape is None or isinstance(shape[2], int):
        return list(analysis.get(image))
    for size in DETECTION_SIZES:
        with _input_size(detector, size):
            if found := analysis.get(image):
                return list(found)
    return []


def to_bgr(photo: Tensor) -> np.ndarray:
    """RGB (H, W, 3) in 0..1 -> BGR (H, W, 3) uint8, rounded, so that an 8-bit photo comes back as it was."""
    return np.ascontiguousarray((photo * 255).round().to(torch.uint8).cpu().numpy()[..., ::-1])


def _align(image: np.ndarray, found: Any) -> Face:
    from insightface.utils.face_align import norm_crop

    crop = norm_crop(image, landmark=np.asarray(found.kps), image_size=CROP_SIZE)
    return Face(
        embedding=torch.from_numpy(np.asarray(found.normed_embedding, dtype=np.float32)),
        crop=torch.from_numpy(crop[..., ::-1].astype(np.float32)) / 255,
        score=float(getattr(found, "det_score", 1.0)),
    )


def _choose(found: list, which: str, index: int, where: str) -> Any:
    _check_faces(found)
    if which == FIRST:
        return found[0]
    if which == LARGEST:
        return max(found, key=lambda face: (face.bbox[2] - face.bbox[0]) * (face.bbox[3] - face.bbox[1]))
    if index > len(found):
        raise ValueError(
            f"face_index: {index} was asked for, but {where} has {len(found)} face(s). "
            "Choose a lower number or another photo."
        )
    return sorted(found, key=lambda face: face.bbox[0] + face.bbox[2])[index - 1]


@contextmanager
def _input_size(detector: Any, size: int) -> Iterator[None]:
    """Detection at size x size px, and the detector's own setting back afterwards."""
    # InsightFace 0.7 reads input_size, 2.x the list of input_sizes
    values = {"input_size": (size, size), "input_sizes": [(size, size)]}
    saved = {name: getattr(detector, name) for name in values if hasattr(detector, name)}
    try:
        for name in saved:
            setattr(detector, name, values[name])
        yield
    finally:
        for name, value in saved.items():
            setattr(detector, name, value)


def _check_analysis(analysis: Any) -> None:
    if isinstance(analysis, Mapping) or not callable(getattr(analysis, "get", None)):
        raise ValueError(f"face_analysis: an InsightFace object is needed, got '{type(analysis).__name__}'. {_LOADER}.")
    models = getattr(analysis, "models", None)
    recognition = models.get("recognition") if isinstance(models, Mapping) else None
    file = Path(getattr(recognition, "model_file", RECOGNITION_FILE)).name
    if file != RECOGNITION_FILE:
        logger.warning(
            "face_analysis: recognises faces with %s, but MM-Diff was trained with buffalo_l's %s. "
            "Expect little likeness.",
            file,
            RECOGNITION_FILE,
        )


def _check_faces(found: list) -> None:
    for name, shape in {"bbox": (4,), "kps": (5, 2), "normed_embedding": (EMBEDDING_SIZE,)}.items():
        value = getattr(found[0], name, None)
        if np.shape(value) != shape:
            raise ValueError(
                f"face_analysis: its faces have no usable {name} (shape {np.shape(value)}, expected "
                f"{shape}): it lacks a recognition or key point model, or is not InsightFace. {_LOADER}."
            )


def _pack_folder(root: Path, name: str) -> Path:
    folder = root / "models" / name
    if any(folder.glob("*.onnx")):
        return folder
    files = (file.relative_to(root) for file in sorted(root.rglob("*")) if file.suffix in (".onnx", ".zip"))
    elsewhere = ", ".join(str(file) for file in files if name in (*file.parts, file.stem))
    found = f"'{root}' has {elsewhere} instead: move or unpack these there" if elsewhere else "none was found"
    raise FileNotFoundError(
        f"pack: the .onnx files of '{name}' must lie in '{folder}' itself, but {found}. {_DOWNLOAD}."
    )


def _incomplete(folder: Path, task: str) -> str:
    files = ", ".join(sorted(file.name for file in folder.glob("*.onnx")))
    return f"pack: '{folder}' has no {task} model, only {files}. Unpack all of the pack there; {_DOWNLOAD}."
