"""The code style and the types that pyproject.toml asks for, on every file of the repository."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("check", [["check", "--output-format=concise"], ["format", "--check"]], ids=" ".join)
def test_ruff(check):
    run = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_types():
    run = subprocess.run([sys.executable, "tools/check_types.py"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
