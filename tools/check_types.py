"""Checks the types of the pack, the small world and the tools with ty: python tools/check_types.py [ty's own arguments]

The repository is a package that ComfyUI imports under a name of its own, so that it is checked through a link with a
name that Python can import.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from setup_host import ROOT
from setup_steps import link_folder

CHECKED = "nodes", "mmdiff_model", "small_world", "tools"


def main() -> int:
    """ty's exit status."""
    with tempfile.TemporaryDirectory() as folder:
        pack = Path(folder) / "mm_diff_pack"
        link_folder(ROOT, pack)
        places = [option for path in (pack, pack / "tools") for option in ("--extra-search-path", path)]
        command = [sys.executable, "-m", "ty", "check", "--config-file", pack / "ty.toml"]
        command += ["--project", folder, "--python", sys.prefix, *places, "--output-format", "concise", *sys.argv[1:]]
        status = subprocess.run([*command, *(pack / name for name in CHECKED)], cwd=folder).returncode
        pack.unlink()
    return status


if __name__ == "__main__":
    sys.exit(main())
