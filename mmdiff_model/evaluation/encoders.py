"""CLIP and DINO from folders in the layout of transformers: pictures and prompts -> unit vectors.

The folder's own processor resizes and normalises. Weights are kept in float32, and the host moves them.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy.clip_vision import ClipVisionModel
from torch import Tensor, nn

from ..managed import managed
from ..model_folders import CONFIG, Kind, Loaded, load_folder, type_of

PICTURES_ALONE = "AutoModel", "AutoImageProcessor"
DINOV2_TYPES = ("dinov2", "dinov2_with_registers")
CLIP = Kind("openai/clip-vit-large-patch14", {"clip": ("CLIPModel", "CLIPProcessor")}, reads_text=True)
DINO = Kind("facebook/dino-vits16", dict.fromkeys(("vit", *DINOV2_TYPES, "dinov3_vit"), PICTURES_ALONE))
DINOV2 = Kind("facebook/dinov2-base", dict.fromkeys(DINOV2_TYPES, PICTURES_ALONE))
BATCH = 16

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PictureEncoder:
    """The model called `name`, with its image processor. features(pixels) are its vectors (n, d) of pictures."""

    name: str
    loaded: Loaded
    processor: Any
    features: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def embed(self, pictures: Sequence[Tensor]) -> Tensor:
        """Pictures (H, W, 3) in 0..1, any sizes -> unit vectors (n, d), float32 on the CPU."""
        device = self.loaded.ready()
        features = [
            self.features(self._pixels(pictures[start : start + BATCH]).to(device))
            for start in range(0, len(pictures), BATCH)
        ]
        return nn.functional.normalize(torch.cat(features), dim=-1).cpu()

    def _pixels(self, pictures: Sequence[Tensor]) -> Tensor:
        arrays = [to_bytes(picture) for picture in pictures]
        return self.processor(images=arrays, input_data_format="channels_last", return_tensors="pt")["pixel_values"]


@dataclass(frozen=True)
class ClipEncoder(PictureEncoder):
    """CLIP: pictures, and a prompt in the same space."""

    tokenizer: Any

    @torch.no_grad()
    def embed_text(self, text: str) -> Tensor:
        """Text -> unit vector (d,), float32 on the CPU; what is beyond CLIP's length is cut with a warning."""
        device, model = self.loaded.ready(), self.loaded.model
        limit = model.config.text_config.max_position_embeddings
        if (length := len(self.tokenizer(text, verbose=False)["input_ids"])) > limit:
            logger.warning("prompt: CLIP-T reads the first %d of its %d tokens.", limit, length)
        tokens = self.tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")["input_ids"]
        features = model.text_projection(model.text_model(input_ids=tokens.to(device)).pooler_output)
        return nn.functional.normalize(features[0], dim=-1).cpu()


@dataclass(frozen=True)
class ConnectedVision:
    """CLIP-I by a CLIP that ComfyUI has loaded: its own resize, antialiased bicubic, and a cut of the middle."""

    clip_vision: ClipVisionModel
    name: str = "clip_vision"

    def embed(self, pictures: Sequence[Tensor]) -> Tensor:
        """As PictureEncoder.embed."""
        vectors = [self.clip_vision.encode_image(picture[None])["image_embeds"] for picture in pictures]
        return nn.functional.normalize(torch.cat(vectors).float(), dim=-1).cpu()


def to_bytes(picture: Tensor) -> np.ndarray:
    """(H, W, 3) in 0..1 -> uint8."""
    return (picture * 255).round().byte().numpy()


def load_clip(folder: Path, source: str) -> ClipEncoder:
    """A CLIPModel with its processor and tokenizer. Raises ValueError: files missing, damaged or of another model."""
    loaded = load_folder(folder, CLIP, source, managed)
    model, processor = loaded.model, loaded.processor

    def features(pixels: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

    return ClipEncoder(folder.name, loaded, processor.image_processor, features, processor.tokenizer)


def load_dinov2(folder: Path, source: str) -> PictureEncoder:
    """A DINOv2. Raises ValueError: files missing, damaged or of another model."""
    return load_dino(folder, source, DINOV2)


def load_dino(folder: Path, source: str, kind: Kind = DINO) -> PictureEncoder:
    """A DINO vision transformer; its vector is the class token after the last norm, as in DreamBooth's DINO score.

    Raises ValueError: files missing, damaged or of another model.
    """
    # a ViT's pooler is no part of DINO, whose checkpoints come without it
    is_vit = (folder / CONFIG).is_file() and type_of(folder, source) == "vit"
    loaded = load_folder(folder, kind, source, managed, **({"add_pooling_layer": False} if is_vit else {}))

    def features(pixels: Tensor) -> Tensor:
        return loaded.model(pixel_values=pixels).last_hidden_state[:, 0]

    return PictureEncoder(folder.name, loaded, loaded.processor, features)
