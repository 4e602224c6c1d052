"""ComfyUI's ways of running paint the same picture: caches, attentions, --fast, --deterministic, memory."""

from pathlib import Path

import folder_paths
import numpy as np
import pytest

import demo_pictures
from live import OPTIONS, LiveServer
from pictures import pixels

pytestmark = pytest.mark.live

STEPS, TOLERANCE = 6, 1  # of 255
WAYS = {  # options that touch different parts share a server, which takes seven seconds to start
    "no cache, deterministic": ("--cache-none", "--deterministic"),
    "small cache, fast": ("--cache-lru", "2", "--fast"),
    "split attention": ("--use-split-cross-attention",),
    "quad attention, no smart memory": ("--use-quad-cross-attention", "--disable-smart-memory"),
    "PyTorch attention": ("--use-pytorch-cross-attention",),
}


def paint(*options: str) -> np.ndarray:
    """One picture of two demo characters, with their regions read while sampling."""
    graph = demo_pictures.Graph([("cat", 3), ("robot", 1)])
    graph.with_subjects("pair", "a cat<|subj|> and a robot<|subj|> standing in a park", seed=0)
    graph.prompt["pair sampler"]["inputs"]["steps"] = STEPS
    with LiveServer(Path(folder_paths.base_path), options=(*OPTIONS, *options)) as server:
        return pixels(server.images(server.run(graph.prompt), "pair")[0]).astype(int)


@pytest.fixture(scope="module")
def ordinary() -> np.ndarray:
    return paint()


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
def test_the_picture_stays(ordinary, options):
    assert np.abs(paint(*options) - ordinary).max() <= TOLERANCE
