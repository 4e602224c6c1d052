"""The processes of one training: alone, or several that Hugging Face Accelerate has started."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Processes:
    """One process on one device."""

    def __init__(self, device: torch.device):
        self.device, self.rank, self.ranks = device, 0, 1

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same on each."""
        return values


class Accelerated(Processes):
    """The processes of `accelerate launch` or torchrun, each on its own device; one where nothing was launched."""

    def __init__(self):
        import comfy.model_management
        from accelerate import Accelerator

        on_cpu = comfy.model_management.get_torch_device().type == "cpu"
        self.accelerator = Accelerator(cpu=on_cpu)  # without a GPU it joins no CPU processes
        super().__init__(self.accelerator.device)
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes

    def mean(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "mean")


@contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM or SIGINT has come since, for a training to end in order."""
    asked: list[int] = []
    numbers = signal.SIGTERM, signal.SIGINT
    previous = [signal.signal(number, lambda number, _: asked.append(number)) for number in numbers]
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in zip(numbers, previous, strict=True):
            signal.signal(number, handler)
