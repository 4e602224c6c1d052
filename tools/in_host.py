"""Tools that need ComfyUI's modules run once more, with the Python of a ComfyUI that is set up for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import setup_host

HOST = "MMDIFF_TOOL_HOST"


def run_in_host(tool: str) -> int | None:
    """The exit status of this command in the host's Python; None where that is at work already."""
    if HOST in os.environ:
        return None
    host = setup_host.prepare()
    environment = {**os.environ, HOST: str(host.comfyui)}
    return subprocess.run([host.python, tool, *sys.argv[1:]], env=environment).returncode


def import_host(*options: str) -> Path:
    """Makes `import comfy` work with ComfyUI's own command line options, which it reads on import -> its folder."""
    comfyui = Path(os.environ[HOST])
    sys.path.insert(0, str(comfyui))
    sys.argv = [sys.argv[0], *options]
    import comfy.options

    comfy.options.enable_args_parsing()
    return comfyui
