"""Records become examples: what the frozen parts of the base make of a picture, its caption and its subjects."""

from collections.abc import Callable
from dataclasses import dataclass

import comfy.utils
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_base import BaseModel
from comfy.sd import CLIP, VAE
from torch import Tensor, nn

from ..adapter import PORTRAIT
from ..prompt import PLAIN_TRIGGER
from ..subject import BLACK, WHITE, Face
from ..text import CHUNK, ENCODERS, find_class_words
from ..vision import resize, resize_square, segment
from .records import BadRecord, Record

BEYOND, OUTSIDE, NO_FACE = "word beyond the 77 tokens", "subject outside of the square crop", "no face in a subject"
NO_WORD = "no class word where the record says"
FindFace = Callable[[Tensor], Face | None]


@dataclass(frozen=True)
class Example:
    """One picture, ready for the objective; s subjects.

    latent (4, h, w) as the UNet sees it, masks (s, h, w) in 0..1. photos and crops (s, S, S, 3) in 0..1: what CLS and
    what patches are read from. identity (s, 512) of faces, in `portrait`. rows: 77 token ids for each text encoder;
    positions (s) of the class words in each.
    """

    name: str
    latent: Tensor
    masks: Tensor
    photos: Tensor
    crops: Tensor
    identity: Tensor | None
    rows: dict[str, list[int]]
    positions: dict[str, list[int]]


class Preparation:
    """Prepares records with the frozen base. `find_face` is needed by `portrait`: a photo (H, W, 3) -> its Face."""

    def __init__(
        self,
        model: BaseModel,
        clip: CLIP,
        vae: VAE,
        clip_vision: ClipVisionModel,
        variant: str,
        size: int,
        find_face: FindFace | None = None,
    ):
        self.model, self.clip, self.vae = model, clip, vae
        self.variant, self.size, self.find_face = variant, size, find_face
        self.photo_size = clip_vision.image_size
        self.empty = {key: row for key, (row, _) in self.tokens("", []).items()}

    @torch.no_grad()
    def __call__(self, record: Record) -> Example:
        """Raises BadRecord where a subject cannot be used."""
        picture = centre_square(torch.from_numpy(record.picture)).float() / 255
        masks = torch.stack([centre_square(torch.from_numpy(found.mask)).float() for found in record.segments])
        if not masks.flatten(1).any(dim=1).all():
            raise BadRecord(record.name, OUTSIDE)
        pixels = comfy.utils.common_upscale(picture.movedim(-1, 0)[None], self.size, self.size, "lanczos", "disabled")
        latent = self.model.process_latent_in(self.vae.encode(pixels.movedim(1, -1)))[0].float()
        try:
            tokens = self.tokens(record.caption, [found.end for found in record.segments])
        except ValueError as error:  # a word of punctuation alone, or a trigger in the caption
            raise BadRecord(record.name, NO_WORD) from error
        if any(position is None for _, positions in tokens.values() for position in positions):
            raise BadRecord(record.name, BEYOND)
        photos = [
            segment(picture, mask) if found.reference is None else torch.from_numpy(found.reference).float() / 255
            for found, mask in zip(record.segments, masks, strict=True)
        ]
        faces = [self.face(record, photo) for photo in photos] if self.variant == PORTRAIT else None
        fill = BLACK if faces else WHITE
        squares = torch.stack([resize_square(photo, self.photo_size, fill) for photo in photos])
        return Example(
            name=record.name,
            latent=latent,
            masks=nn.functional.interpolate(masks[None], latent.shape[1:], mode="area")[0],
            photos=squares,
            crops=torch.stack([resize(face.crop, self.photo_size) for face in faces]) if faces else squares,
            identity=torch.stack([face.embedding for face in faces]).float() if faces else None,
            rows={key: row for key, (row, _) in tokens.items()},
            positions={key: positions for key, (_, positions) in tokens.items()},
        )

    def tokens(self, caption: str, ends: list[int]) -> dict[str, tuple[list[int], list[int | None]]]:
        """The first 77 tokens for each encoder, and the positions of the words that end at `ends`; None if beyond."""
        rows = {key: [token for token, _ in chunks[0]] for key, chunks in self.clip.tokenize(caption).items()}
        if not ends:
            return {key: (row, []) for key, row in rows.items()}
        prompt = "".join(
            caption[start:end] + PLAIN_TRIGGER
            for start, end in zip([0, *sorted(ends)], [*sorted(ends), len(caption)], strict=True)
        ).removesuffix(PLAIN_TRIGGER)
        order = sorted(range(len(ends)), key=ends.__getitem__)
        words = find_class_words(self.clip, prompt, order)
        found = {}
        for key in ENCODERS:
            places = {
                word.subject: word.position if word.chunk == 0 and word.position < CHUNK - 1 else None
                for word in words[key]
            }
            found[key] = rows[key], [places[subject] for subject in range(len(ends))]
        return found

    def face(self, record: Record, photo: Tensor) -> Face:
        face = self.find_face(photo)
        if face is None:
            raise BadRecord(record.name, NO_FACE)
        return face


def centre_square(picture: Tensor) -> Tensor:
    """(h, w, ...) -> its middle (s, s, ...)."""
    side = min(picture.shape[:2])
    top, left = ((length - side) // 2 for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]
