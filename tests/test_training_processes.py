"""Several processes of one training: their gradients are kept once, at SDXL's sizes too; what is refused by name.

That two processes compute what one does is in test_train_tool.py, as commands.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from conftest import ROOT
from mmdiff_model.training.config import load_config
from mmdiff_model.training.loop import Called, Micro
from mmdiff_model.training.memory import build_sdxl
from mmdiff_model.training.processes import REDUCTION, refuse_sharding
from mmdiff_model.training.trainable import Trainable

PROCESSES = 8
SHARDING = {DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM, DistributedType.XLA}


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def one_of_many() -> Iterator[None]:
    """A group of processes of which this one is real."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=PROCESSES)
    yield
    dist.destroy_process_group()


TRAINING = """
import json, sys, torch
from pathlib import Path
from mmdiff_model.host import use_comfyui
use_comfyui()
from mmdiff_model.training.loop import Loop, LossError, Micro
from mmdiff_model.training.plan import Plan
from mmdiff_model.training.processes import Accelerated
from mmdiff_model.training.state import State

folder, processes = Path(sys.argv[1]), Accelerated()
module, rank = torch.nn.Linear(2, 1), processes.rank
loop = Loop(Plan(steps=2, accumulation=2), module, State(folder / "state.pt", {}), processes)

def compute(number):
    loss = module(torch.ones(1, 2)).square().mean()
    bad = loss * (float("nan") if (number, rank) == (3, 1) else 1)
    return Micro(bad, {"part": torch.tensor(float(rank + number))}, [f"example {number} of {rank}"])

told = {"figures": loop.update(compute)[0]}
try:
    loop.update(compute)
except LossError as error:
    told["error"] = str(error)
(folder / f"{rank}.json").write_text(json.dumps(told))
"""


def test_what_is_told_is_of_all_processes(tmp_path):
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert told[0] == told[1]
    assert told[0]["figures"]["part"] == 1.0, "the mean of 0, 1 on the first process and of 1, 2 on the second"
    assert "step 1: the loss is nan, batch: example 3 of 1. Training has stopped" in told[0]["error"]


def storages(tensors: list[torch.Tensor]) -> int:
    """Bytes that the tensors lie in, each storage once."""
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def test_gradients_lie_in_the_buckets_and_nowhere_else(alone):
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4))
    called = DistributedDataParallel(Called(module), **REDUCTION)
    with torch.enable_grad():
        for number in range(3):  # each reaches other layers
            x = torch.ones(2, 8)
            called(lambda number, x=x: Micro(module[1 + number % 2](module[0](x)).sum()), number).loss.backward()
    weights = list(module.parameters())
    assert storages([weight.grad for weight in weights]) == sum(weight.nbytes for weight in weights)


def test_sdxls_trained_weights_go_into_buckets_on_the_meta_device(one_of_many):
    """No values: DDP takes the module as it is, and every gradient of 4 bytes has one place."""
    config = load_config(ROOT / "configs" / "sdxl_subject.yaml")
    with FakeTensorMode(allow_non_fake_inputs=True):
        trainable = Trainable(*build_sdxl(config.plan.dtype), config.variant, config.shape, config.parts)
        shapes = [(weight.shape, weight.dtype, weight.requires_grad) for weight in trainable.parameters()]
    weights = nn.ParameterList(
        nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), trained) for shape, dtype, trained in shapes
    )
    called = DistributedDataParallel(Called(weights), init_sync=False, **REDUCTION)
    told = called._get_ddp_logging_data()
    assert told["num_parameter_tensors"] == len(weights) > 1800 and told["world_size"] == PROCESSES
    assert told["total_parameter_size_bytes"] == sum(weight.nbytes for weight in weights) > 1e9
    assert told["dtypes"] == "float" and told["gradient_as_bucket_view"] == 1
    buckets, _ = dist._compute_bucket_assignment_by_size(list(weights), [1 << 20, 25 << 20], [False] * len(weights))
    assert sorted(number for bucket in buckets for number in bucket) == list(range(len(weights)))


def test_a_configuration_that_shards_the_model_is_refused():
    for kind in DistributedType:
        if kind in SHARDING:
            with pytest.raises(ValueError, match=f"asks for {kind.value}, which divides .*Run accelerate config"):
                refuse_sharding(kind.value)
        else:
            refuse_sharding(kind.value)
