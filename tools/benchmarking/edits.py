"""Seconds from an edited node's execution to the end of the first step."""

import time
from collections.abc import Callable

from .sampling import first_step, make_conditioning, make_subject
from .turns import PeakMemory, Setting


def make_edits(base, checkpoint, size: int) -> list[Setting]:
    """The first step after an edit: a LoRA of the same rank in a cached node, our node, a LoRA that is edited too."""
    from mmdiff_model.lora import unet_patches
    from mmdiff_model.sampling import apply_subjects

    patches = unet_patches(base, checkpoint.unet_lora)
    cached, subject = base.clone(), make_subject(1)
    conditioning = make_conditioning([subject])
    cached.add_patches(patches)

    def lora_again():
        model = base.clone()
        model.add_patches(patches)
        return model

    def edit(name: str, make_model: Callable, unedited: Callable | None = None) -> Setting:
        def measure() -> tuple[float, float]:
            first_step(unedited() if unedited else make_model(), conditioning, size)
            with PeakMemory() as memory:
                start = time.perf_counter()
                end = first_step(make_model(), conditioning, size)
            return end - start, memory.peak

        return Setting(name, measure)

    ours = [lambda scale=scale: apply_subjects(base, checkpoint, [subject], scale) for scale in (0.8, 0.7)]
    return [
        edit("prompt edit, a LoRA of rank 64 in a cached node", lambda: cached),
        edit("prompt edit, Apply MM-Diff", ours[0]),
        edit("fuse_scale edit, Apply MM-Diff", ours[1], ours[0]),
        edit("strength edit, a LoRA of rank 64", lora_again),
    ]
