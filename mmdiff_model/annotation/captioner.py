"""Captions by BLIP-2 or Florence-2; Florence-2 also says which of a caption's phrases it sees."""

from collections.abc import Sequence

import torch
from PIL import Image

from ..model_folders import Loaded

CAPTION, GROUNDING = "<CAPTION>", "<CAPTION_TO_PHRASE_GROUNDING>"
CAPTION_TOKENS, GROUNDING_TOKENS = 60, 512


class Captioner:
    """Pictures (PIL, RGB) -> what they show, in English."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        self.grounds = loaded.model.config.model_type == "florence2"

    def captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        tasks = [CAPTION] * len(pictures) if self.grounds else None
        written = self.generate(pictures, tasks, CAPTION_TOKENS, skip_special_tokens=True)
        return [" ".join(text.split()) for text in written]

    def phrases(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[list[str]]:
        """The phrases of each caption that the picture shows, if the model can tell (`grounds`)."""
        tasks = [GROUNDING + caption for caption in captions]
        written = self.generate(pictures, tasks, GROUNDING_TOKENS, skip_special_tokens=False)
        found = [
            self.loaded.processor.post_process_generation(text, task=GROUNDING, image_size=picture.size)[GROUNDING]
            for text, picture in zip(written, pictures, strict=True)
        ]
        return [list(dict.fromkeys(one["labels"])) for one in found]

    @torch.no_grad()
    def generate(
        self, pictures: Sequence[Image.Image], tasks: list[str] | None, tokens: int, skip_special_tokens: bool
    ) -> list[str]:
        device, processor, model = self.loaded.ready(), self.loaded.processor, self.loaded.model
        text = {} if tasks is None else {"text": tasks, "padding": True}
        inputs = processor(images=list(pictures), return_tensors="pt", **text).to(device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return processor.batch_decode(written, skip_special_tokens=skip_special_tokens)
