"""Sampling runs of a benchmark: its subjects and conditionings, the time of a step and of the first one."""

import statistics
import time
from collections.abc import Callable, Sequence

from random_models import TOKENS

from .turns import PeakMemory, wait_for_device

CLS, TEXT, POOLED = 768, 2048, 1280  # widths of SDXL's and CLIP ViT-L/14's vectors


def make_subject(photos: int, region=None):
    import torch

    from mmdiff_model.subject import Subject

    return Subject(torch.randn(CLS), torch.randn(photos, TOKENS, TEXT), "portrait", "benchmark", region=region)


def make_conditioning(subjects: Sequence = ()) -> list:
    """A prompt of 77 tokens that calls each subject by a class word of its own."""
    import torch

    from mmdiff_model.subject import identify
    from mmdiff_model.text import CALLED, CLASS_WORDS, WRITTEN

    entry = {"pooled_output": torch.randn(1, POOLED)}
    if subjects:
        entry[CLASS_WORDS] = tuple((i, 3 + 4 * i) for i in range(len(subjects)))
        entry[CALLED] = tuple((i, identify(subject)) for i, subject in enumerate(subjects))
        entry[WRITTEN] = ()
    return [[torch.randn(1, 77, TEXT), entry]]


def step_time(model, conditioning: list, size: int, steps: int) -> tuple[float, float]:
    """Median seconds of a step, without the set-up before the first, and the run's peak memory in MB."""
    clock = StepClock()
    model.set_model_unet_function_wrapper(clock)
    with PeakMemory() as memory:
        sample(model, conditioning, size, steps)
    return statistics.median(clock.seconds), memory.peak


def first_step(model, conditioning: list, size: int) -> float:
    """When the first step is done."""
    ends = []
    sample(model, conditioning, size, 1, lambda *_: ends.append(time.perf_counter()))
    return ends[0]


def sample(model, conditioning: list, size: int, steps: int, callback: Callable | None = None) -> None:
    import comfy.samplers
    import torch

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(conditioning, make_conditioning())
    guider.set_cfg(5.0)
    noise, sampler = torch.randn(1, 4, size, size), comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        guider.sample(
            noise,
            torch.zeros_like(noise),
            sampler,
            torch.linspace(10, 1, steps + 1),
            callback=callback,
            disable_pbar=True,
            seed=0,
        )


class StepClock:
    """model_function_wrapper: seconds of each model call, up to the end of the device's work."""

    def __init__(self):
        self.seconds = []

    def __call__(self, apply_model, call: dict):
        wait_for_device()
        start = time.perf_counter()
        out = apply_model(call["input"], call["timestep"], **call["c"])
        wait_for_device()
        self.seconds.append(time.perf_counter() - start)
        return out
