"""DynamicVRAM, ComfyUI's default on NVIDIA: parity and the demo models under it, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from demo_latents import DEMO_LATENTS, paint_demo

TESTS = Path(__file__).resolve().parent


def run(arguments: list[str], **environment: str) -> None:
    """pytest under DynamicVRAM; a failure shows what it printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "MMDIFF_DYNAMIC_VRAM": "1", **environment}
    done = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize(
    "tests", ["test_parity_subject.py", "test_parity_text.py::test_prompts", "test_parity_sampling.py::test_latents"]
)
def test_parity(tests):
    run([str(TESTS / tests)])


def test_demo_models_and_training(tmp_path):
    torch.save(paint_demo()[1], tmp_path / "latents.pt")
    run([str(TESTS / "dynamic_vram_cases.py")], **{DEMO_LATENTS: str(tmp_path / "latents.pt")})
