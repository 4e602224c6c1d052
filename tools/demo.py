"""Sets up a ComfyUI (see setup_host.py) and paints the demo's pictures with it into demo_output."""

from __future__ import annotations

import subprocess
import sys

import setup_host

# the Python of ComfyUI's Windows archive does not look for modules beside the script that it runs
PAINT = "import sys; sys.path.insert(0, sys.argv[1]); import demo_pictures; sys.exit(demo_pictures.main(sys.argv[2]))"


def main() -> int:
    """The exit status of the painting; 1 if setting up failed."""
    host = setup_host.prepare_or_say()
    if host is None:
        return 1
    return subprocess.run([host.python, "-c", PAINT, setup_host.ROOT / "tools", host.comfyui]).returncode


if __name__ == "__main__":
    sys.exit(main())
