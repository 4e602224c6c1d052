"""Masks by box: SAM or SAM 2."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..model_folders import Loaded

Edges = tuple[float, float, float, float]


class Segmenter:
    """Pictures (PIL, RGB) and at least one box for each -> a mask for every box."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded

    @torch.no_grad()
    def masks(self, pictures: Sequence[Image.Image], boxes: Sequence[Sequence[Edges]]) -> list[np.ndarray]:
        """(n, h, w) bool for each picture with n boxes."""
        device, processor, model = self.loaded.ready(), self.loaded.processor, self.loaded.model
        most = max(map(len, boxes))
        padded = [[list(edges) for edges in [*own, *[own[-1]] * (most - len(own))]] for own in boxes]  # all alike long
        inputs = processor(images=list(pictures), input_boxes=padded, return_tensors="pt")
        pixels, prompts = (inputs[name].to(model.dtype).to(device) for name in ("pixel_values", "input_boxes"))
        found = model(pixel_values=pixels, input_boxes=prompts, multimask_output=False).pred_masks.float().cpu()
        sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
        masks = processor.post_process_masks(found, *sizes)
        return [mask[: len(own), 0].numpy().astype(bool) for mask, own in zip(masks, boxes, strict=True)]
