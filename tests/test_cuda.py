"""What only a GPU can show: python tools/test.py -m cuda. docs/hosts.md lists it; nobody has run it yet."""

from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch

import demo_pictures
from live import OPTIONS, LiveServer
from pictures import pixels
from small_world.drawn.records import write_records
from small_world.drawn.scenes import make_scene
from test_train_node import graph as training_graph

pytestmark = [
    pytest.mark.live,
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: python tools/test.py -m cuda"),
]

WAYS = {
    "dynamic": (),
    "ordinary patchers": ("--disable-dynamic-vram",),
    "low VRAM": ("--lowvram",),
    "all on the GPU": ("--gpu-only",),
    "fast": ("--fast",),
}
MEAN_DIFFERENCE = 4.0  # of 255: half precision and other kernels move edges
COMFYUI = Path(folder_paths.base_path)


def pair_graph(steps: int = 20) -> dict:
    graph = demo_pictures.Graph([("cat", 3), ("robot", 1)])
    graph.with_subjects("pair", "a cat<|subj|> and a robot<|subj|> standing in a park", seed=0)
    graph.prompt["pair sampler"]["inputs"]["steps"] = steps
    return graph.prompt


def paint(server: LiveServer) -> np.ndarray:
    return pixels(server.images(server.run(pair_graph()), "pair")[0]).astype(int)


@pytest.fixture(scope="module")
def on_the_cpu() -> np.ndarray:
    with LiveServer(COMFYUI, options=OPTIONS) as server:
        return paint(server)


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_a_picture_is_the_cpus(on_the_cpu, options):
    """Twice, so that the second run finds its models where the first has left them."""
    with LiveServer(COMFYUI, options=options) as server:
        pictures = [paint(server) for _ in range(2)]
        log = server.log.read_text(errors="replace")
    assert "Traceback" not in log
    assert ("DynamicVRAM support detected and enabled" in log) == ("--disable-dynamic-vram" not in options)
    for picture in pictures:
        assert np.abs(picture - on_the_cpu).mean() < MEAN_DIFFERENCE


def test_training_beside_loaded_models():
    """The copies are freed with the training, the base paints as before, and the server lives on."""
    with LiveServer(COMFYUI, options=()) as server:
        write_records(server.folder / "input" / "records", [make_scene(6, number) for number in range(4)])
        before = paint(server)
        for name in ("first", "second"):
            server.run(training_graph(name=name))
            assert np.abs(paint(server) - before).max() <= 1
        assert server.process.poll() is None
