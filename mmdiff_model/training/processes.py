"""The processes of one training: alone, or several that Hugging Face Accelerate has started."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# of DDP: an example without subjects reaches no image branch; gradients that lie in the buckets are kept once
REDUCTION = {"find_unused_parameters": True, "gradient_as_bucket_view": True}


class Processes:
    """One process on one device. It needs torch alone, so that a graph trains without Accelerate."""

    def __init__(self, device: torch.device):
        self.device, self.rank, self.ranks = device, 0, 1

    def prepare(self, module: nn.Module, optimizer: Optimizer, accumulation: int) -> tuple[nn.Module, Optimizer]:
        """What is called and stepped in place of the two, in steps of `accumulation` backward passes."""
        self.accumulation = accumulation
        return module, optimizer

    def accumulate(self, module: nn.Module) -> AbstractContextManager:
        """Around each forward and backward pass; after a step's last one the gradients are the same everywhere."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Adds the loss's share of the step to the gradients."""
        (loss / self.accumulation).backward()

    def clip(self, weights: Iterable[Tensor], limit: float) -> Tensor:
        """Scales the gradients down to a norm of `limit` -> their norm before."""
        return nn.utils.clip_grad_norm_(weights, limit)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same on each."""
        return values

    def gather(self, values: list) -> list:
        """Every process's values one after another, the same on each."""
        return values


class Accelerated(Processes):
    """The processes of `accelerate launch` or torchrun, each on its own device; one where nothing was launched.

    Precision is the plan's and compiling the host's, whatever Accelerate's own configuration says. Raises ValueError
    where that one shards the model.
    """

    def __init__(self):
        import comfy.model_management
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        on_cpu = comfy.model_management.get_torch_device().type == "cpu"
        self.accelerator = Accelerator(
            device_placement=False,  # what is prepared is where ComfyUI computes
            cpu=on_cpu,  # without a GPU it joins no CPU processes
            mixed_precision="no",
            dynamo_backend="no",
            kwargs_handlers=[DistributedDataParallelKwargs(**REDUCTION)],
        )
        refuse_sharding(self.accelerator.distributed_type.value)
        super().__init__(comfy.model_management.get_torch_device())  # by now this process's own
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes

    def prepare(self, module: nn.Module, optimizer: Optimizer, accumulation: int) -> tuple[nn.Module, Optimizer]:
        self.accelerator.gradient_accumulation_steps = accumulation
        return self.accelerator.prepare(module, optimizer)

    def accumulate(self, module: nn.Module) -> AbstractContextManager:
        return self.accelerator.accumulate(module)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip(self, weights: Iterable[Tensor], limit: float) -> Tensor:
        return self.accelerator.clip_grad_norm_(weights, limit)

    def mean(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "mean")

    def gather(self, values: list) -> list:
        from accelerate.utils import gather_object

        return gather_object(values)


def refuse_sharding(kind: str) -> None:
    """Raises ValueError unless Accelerate's kind of processes gives each of them the whole model."""
    if kind != "NO" and not kind.startswith("MULTI_"):
        raise ValueError(
            f"accelerate: its configuration asks for {kind}, which divides the model, and MM-Diff's trained weights "
            "are few enough for every device. Run accelerate config, and choose several GPUs or CPUs without it."
        )


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
