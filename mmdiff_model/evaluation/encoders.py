"""CLIP and DINO from folders in the layout of transformers: pictures and prompts -> unit vectors.

The folder's own processor resizes and normalises. Weights are read from that folder alone, kept in float32 and moved
by a ModelPatcher. Every error names the node's input, `source`.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import numpy as np
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

CLIP_TYPES = ("clip",)
DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
DINO_TYPES = ("vit", *DINOV2_TYPES, "dinov3_vit")
CLIP_ORIGIN, DINO_ORIGIN, DINOV2_ORIGIN = (
    "openai/clip-vit-large-patch14",
    "facebook/dino-vits16",
    "facebook/dinov2-base",
)
PICTURE_FILES = ("config.json", "preprocessor_config.json")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
LOCAL = {"local_files_only": True, "trust_remote_code": False}
BATCH = 16

logger = logging.getLogger(__name__)


class ClipFeatures(nn.Module):
    """A CLIPModel; ModelPatcher writes `device`, which transformers' own modules only let read."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.clip = model

    def pictures(self, pixels: Tensor) -> Tensor:
        return self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)

    def text(self, tokens: Tensor) -> Tensor:
        return self.clip.text_projection(self.clip.text_model(input_ids=tokens).pooler_output)


class DinoFeatures(nn.Module):
    """A vision transformer; its vector is the class token after the last norm, as in DreamBooth's DINO score."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.dino = model

    def pictures(self, pixels: Tensor) -> Tensor:
        return self.dino(pixel_values=pixels).last_hidden_state[:, 0]


@dataclass(frozen=True)
class PictureEncoder:
    """The model called `name` under its patcher, with the folder's image processor."""

    name: str
    patcher: ModelPatcher
    processor: Any

    @torch.no_grad()
    def embed(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (H, W, 3) in 0..1, any sizes -> unit vectors (n, d), float32 on the CPU."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        features = [
            self.patcher.model.pictures(self._pixels(pictures[start : start + BATCH]))
            for start in range(0, len(pictures), BATCH)
        ]
        return nn.functional.normalize(torch.cat(features), dim=-1).cpu()

    def _pixels(self, pictures: Sequence[Tensor]) -> Tensor:
        arrays = [to_bytes(picture) for picture in pictures]
        processed = self.processor(images=arrays, input_data_format="channels_last", return_tensors="pt")
        return processed["pixel_values"].to(self.patcher.load_device)


@dataclass(frozen=True)
class ClipEncoder(PictureEncoder):
    """CLIP: pictures, and a prompt in the same space."""

    tokenizer: Any

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        """Text -> unit vector (d,), float32 on the CPU; what is beyond CLIP's length is cut with a warning."""
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        limit = self.patcher.model.clip.config.text_config.max_position_embeddings
        if (length := len(self.tokenizer(text, verbose=False)["input_ids"])) > limit:
            logger.warning("prompt: CLIP-T reads the first %d of its %d tokens.", limit, length)
        tokens = self.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")["input_ids"]
        features = self.patcher.model.text(tokens.to(self.patcher.load_device))
        return nn.functional.normalize(features[0], dim=-1).cpu()


@dataclass(frozen=True)
class ClipVisionEncoder:
    """The model of a CLIP_VISION socket, which resizes and normalises by itself; it has no text side."""

    clip_vision: ClipVisionModel
    name: str = "clip_vision"

    def embed(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (H, W, 3) in 0..1, any sizes -> unit vectors (n, d), float32 on the CPU."""
        features = [self.clip_vision.encode_image(picture[None])["image_embeds"] for picture in pictures]
        return nn.functional.normalize(torch.cat(features).float(), dim=-1).cpu()


def to_bytes(picture: Tensor) -> np.ndarray:
    """(H, W, 3) in 0..1 -> uint8."""
    return (picture * 255).round().byte().numpy()


def load_dinov2(folder: Path, source: str) -> PictureEncoder:
    """A DINOv2. Raises ValueError: files missing, damaged or of another model."""
    return load_dino(folder, source, DINOV2_TYPES, DINOV2_ORIGIN)


def load_clip(folder: Path, source: str) -> ClipEncoder:
    """A CLIPModel with its processor and tokenizer. Raises ValueError: files missing, damaged or of another model."""
    from transformers import AutoTokenizer, CLIPModel

    check_folder(folder, source, CLIP_TYPES, CLIP_ORIGIN)
    if not any(all((folder / name).is_file() for name in names) for names in TOKENIZERS):
        raise ValueError(lacking(folder, source, "its tokenizer (tokenizer.json)", CLIP_ORIGIN))
    with errors_of(folder, source, CLIP_ORIGIN):
        model, processor = _load(CLIPModel, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    return ClipEncoder(folder.name, patcher_of(ClipFeatures(model)), processor, tokenizer)


def load_dino(
    folder: Path, source: str, types: Sequence[str] = DINO_TYPES, origin: str = DINO_ORIGIN
) -> PictureEncoder:
    """A DINO vision transformer with its processor. Raises ValueError: files missing, damaged or of another model."""
    from transformers import AutoModel

    kind = check_folder(folder, source, types, origin)
    # a ViT's pooler is no part of DINO, whose checkpoints come without it
    unpooled = {"add_pooling_layer": False} if kind == "vit" else {}
    with errors_of(folder, source, origin):
        model, processor = _load(AutoModel, folder, **unpooled)
    return PictureEncoder(folder.name, patcher_of(DinoFeatures(model)), processor)


def check_folder(folder: Path, source: str, types: Sequence[str] | None, origin: str) -> str:
    """The model's type, one of `types` where given. Raises ValueError: a file is missing, or of another model."""
    for name in PICTURE_FILES:
        if not (folder / name).is_file():
            raise ValueError(lacking(folder, source, name, origin))
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise ValueError(lacking(folder, source, "its weights (model.safetensors)", origin))
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
        raise ValueError(
            f"{source}: config.json in '{folder}' is damaged ({error}). Get it again from {origin}."
        ) from error
    if types and found not in types:
        raise ValueError(
            f"{source}: '{folder.name}' is a model of type '{found}', {' or '.join(types)} is needed. "
            f"Choose another folder, such as the files of {origin}."
        )
    return found


def lacking(folder: Path, source: str, missing: str, origin: str) -> str:
    return f"{source}: '{folder}' lacks {missing}. Put all files of the model there, such as those of {origin}."


@contextmanager
def errors_of(folder: Path, source: str, origin: str) -> Iterator[None]:
    """Raises ValueError naming the folder in place of whatever loading raises."""
    try:
        yield
    except Exception as error:  # transformers, tokenizers, safetensors and pickle each raise their own kinds
        raise ValueError(
            f"{source}: '{folder.name}' cannot be loaded: {error}. Get its files again, such as those of {origin}."
        ) from error


def load_parts(kind: Any, folder: Path, **options: bool) -> tuple[nn.Module, Any, list[str]]:
    """The model in float32, its image processor, and the names of what its weights lack."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder, **LOCAL)
    model, report = kind.from_pretrained(folder, output_loading_info=True, **LOCAL, **options)
    return model.float().eval().requires_grad_(False), processor, sorted(report["missing_keys"])


def _load(kind: Any, folder: Path, **options: bool) -> tuple[nn.Module, Any]:
    model, processor, missing = load_parts(kind, folder, **options)
    if missing:
        raise ValueError(f"its weights lack {', '.join(missing[:3])}")
    return model, processor


def patcher_of(features: nn.Module) -> ModelPatcher:
    return ModelPatcher(
        features,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.text_encoder_offload_device(),
    )
