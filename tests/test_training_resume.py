"""What a training goes on with: the same base, whatever it was loaded for, and the same data, wherever it lies."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import ROOT
from mmdiff_model.training.config import Data, Settings
from mmdiff_model.training.plan import Plan
from mmdiff_model.training.processes import Processes
from mmdiff_model.training.records import Records
from mmdiff_model.training.session import Session
from mmdiff_model.training.state import StateError
from mmdiff_model.training.trainable import Shape

sys.path.append(str(ROOT))

from small_world.drawn.records import write_records  # noqa: E402
from small_world.drawn.scenes import make_scene  # noqa: E402
from small_world.phases.phase import load_base  # noqa: E402

SHAPE = Shape(depth=1, token_hidden=32, lora_rank=2, text_lora_rank=2, vision_layers=1)


@pytest.fixture
def data(tmp_path) -> Path:
    write_records(tmp_path / "data", [make_scene(5, number) for number in range(3)])
    return tmp_path / "data"


@pytest.fixture
def begin(small_weights, data, tmp_path) -> Callable[..., None]:
    """Begins the training in one folder, or goes on with it, and saves its state."""

    def start(weights: Path = small_weights, places: tuple[Path, ...] = (data,), size: int = 128) -> None:
        settings = Settings(
            output=tmp_path / "run", variant="subject", data=Data(places, size), plan=Plan(steps=1), shape=SHAPE
        )
        session = Session(settings, load_base(weights), Records.open(places), Processes(torch.device("cpu")))
        session.loop.save()
        session.close()

    start()
    return start


def add_lora(tensors: dict[str, torch.Tensor]) -> None:
    """A change of rank 1, a hundredth of a projection's size."""
    weight = next(tensor for name, tensor in tensors.items() if name.endswith("attn2.to_q.weight"))
    change = torch.outer(torch.randn(len(weight)), torch.randn(weight.shape[1]))
    weight += (change * weight.float().norm() / change.norm() / 100).to(weight.dtype)


def change_convolution(tensors: dict[str, torch.Tensor]) -> None:
    next(tensor for tensor in tensors.values() if tensor.ndim == 4).mul_(1.01)


BASES = {"model": ("unet", add_lora), "VAE": ("codec", change_convolution)}


@pytest.mark.parametrize("name", BASES)
def test_another_base_is_refused(begin, small_weights, tmp_path, name):
    part, change = BASES[name]
    path = shutil.copytree(small_weights, tmp_path / "other") / f"{part}.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    with pytest.raises(StateError, match=f"was started with another {name} than this one .*Put back") as caught:
        begin(path.parent)
    assert str(caught.value).count(" another ") == 2, "no other part of the base is named"


def test_a_base_in_another_precision_is_the_same(begin, small_weights, tmp_path):
    other = shutil.copytree(small_weights, tmp_path / "other")
    for path in other.glob("*.safetensors"):
        save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    begin(other)


def test_other_data_is_refused_and_a_copy_is_not(begin, data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "copy")
    begin(places=(copy,))
    write_records(copy / "more", [make_scene(5, 3)])
    with pytest.raises(StateError, match=r"another data set than this one \(3 records \w+, now 4 records \w+\)\. Put"):
        begin(places=(copy,))
    with pytest.raises(StateError, match=r"other settings \(data\.size was 128, now 64\)"):
        begin(size=64)
