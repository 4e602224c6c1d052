"""Which ComfyUI this runs in: COMFYUI_PATH, the one that the repository was cloned into, or one of ours in .host.

Runs before anything is installed, so it needs the standard library alone. COMFYUI_PATH=own always means ours, and
MMDIFF_HOST, a version of ComfyUI, means ours in that version.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN_VERSION = "0.30.0"  # of ours, where MMDIFF_HOST names no other
MINIMUM = "0.16.3"  # the oldest that the tests pass in


class NoComfyUI(FileNotFoundError):
    """There is no ComfyUI where one should be. The text says where, and what to do."""


def find_comfyui() -> Path:
    """The folder of the ComfyUI to use. Raises NoComfyUI."""
    path = users_comfyui() or own_comfyui()
    if not is_comfyui(path):
        raise NoComfyUI(
            f"There is no ComfyUI in {path}.\nRun python tools/setup_host.py to have one downloaded, or set "
            "COMFYUI_PATH to the folder with yours."
        )
    return path


def users_comfyui() -> Path | None:
    """COMFYUI_PATH, or the ComfyUI whose custom_nodes holds this repository; None for one of ours.

    Raises NoComfyUI if COMFYUI_PATH holds none.
    """
    given, version = os.environ.get("COMFYUI_PATH", ""), os.environ.get("MMDIFF_HOST", "")
    if given == "own" or (version and not given):
        return None
    if given:
        path = Path(given).expanduser().resolve()
        if not is_comfyui(path):
            raise NoComfyUI(
                f"COMFYUI_PATH: {path} holds no ComfyUI (no main.py beside a comfy folder).\n"
                "Name the folder with ComfyUI's main.py, or unset COMFYUI_PATH to have one downloaded."
            )
        if path == own_comfyui():
            return None
        if version:
            raise NoComfyUI(
                f"MMDIFF_HOST asks for ComfyUI {version}, COMFYUI_PATH for the one in {path}.\nUnset one of them."
            )
        return path
    around = ROOT.parent.parent
    return around if ROOT.parent.name == "custom_nodes" and is_comfyui(around) else None


def own_comfyui() -> Path:
    """Where ours is or will be."""
    version = os.environ.get("MMDIFF_HOST") or OWN_VERSION
    folder = ROOT / ".host"
    return (folder if version == OWN_VERSION else folder / version) / "ComfyUI"


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def version_of(comfyui: Path) -> str | None:
    file = comfyui / "comfyui_version.py"
    found = re.search(r'__version__ = "(.*)"', file.read_text(encoding="utf-8")) if file.is_file() else None
    return found and found[1]


def shortcoming(version: str | None) -> str | None:
    """Why nodes cannot be loaded in a ComfyUI of this version (None: unknown, it is older than its version file)."""
    if version is not None and numbers(version) >= numbers(MINIMUM):
        return None
    found = f"this is {version}" if version else "this one is older"
    return f"MM-Diff needs ComfyUI {MINIMUM} or newer, {found}: its nodes are left out. Update ComfyUI."


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def use_comfyui() -> None:
    """Makes `import comfy` work; on the CPU where torch finds no accelerator. Call it before importing any of comfy."""
    sys.path.insert(0, str(find_comfyui()))
    # waiting threads spin for a moment, then sleep: spinning on would take the cores from others, sleeping at once
    # costs a third of the speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.accelerator.is_available()
    args.use_pytorch_cross_attention = True
