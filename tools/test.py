"""Sets up a ComfyUI (see setup_host.py) and runs the tests in it: python tools/test.py [pytest's own arguments]."""

from __future__ import annotations

import os
import subprocess
import sys

import setup_host

# two processes, each a file of tests at a time: more of them need more memory than they save time
EVERYTHING = ["-q", "--numprocesses=2", "--dist=loadfile"]


def main() -> int:
    """The exit status of pytest, which is a failure too where it found no test; 1 if setting up failed."""
    host = setup_host.prepare_or_say()
    if host is None:
        return 1
    environment = {**os.environ, "COMFYUI_PATH": str(host.comfyui)}
    command = [host.python, "-m", "pytest", *(sys.argv[1:] or EVERYTHING)]
    status = subprocess.run(command, cwd=setup_host.ROOT, env=environment).returncode
    print("All tests passed." if status == 0 else f"The tests failed (pytest's exit status {status}).", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
