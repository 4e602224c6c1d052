"""tools/fuzz.py: three thousand inputs that nobody planned for, all right or refused."""

import json
import os
import subprocess
import sys

from conftest import ROOT
from mmdiff_model.host import find_comfyui


def test_nothing_is_wrong_and_nothing_is_raised_raw(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools" / "fuzz.py"),
        "--cases",
        "3000",
        "--json",
        str(tmp_path / "found.json"),
    ]
    environment = {**os.environ, "COMFYUI_PATH": str(find_comfyui())}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    figures = json.loads((tmp_path / "found.json").read_text())
    assert not figures["findings"], run.stdout[-3000:] + run.stderr[-2000:]
    assert figures["cases"] >= 3000 and figures["outside"] == 0
    assert run.stdout.splitlines()[-1].startswith(f"fuzz: {figures['cases']} cases in ")
    assert set(figures["outcomes"]) == {"right", "refused"}
    for kind, counts in figures["by_kind"].items():
        assert counts["right"] > 5 and counts["refused"] > 5, kind
        assert figures["memory_mb_by_kind"][kind] < 256, kind
