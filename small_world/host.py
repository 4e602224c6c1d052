"""ComfyUI as a library: its folder on the path, its options set before the rest of it is imported.

COMFYUI_PATH, the ComfyUI that this pack was cloned into, or .host/ComfyUI of the repository.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def find_comfyui() -> Path:
    """The first folder with a ComfyUI. Raises FileNotFoundError."""
    places = [Path(os.environ.get("COMFYUI_PATH", ROOT / ".host" / "ComfyUI")), ROOT.parent.parent]
    for place in places:
        if (place / "comfy" / "sd.py").is_file():
            return place
    tried = " or ".join(map(str, places))
    raise FileNotFoundError(f"no ComfyUI in {tried}: set COMFYUI_PATH, or run tools/setup_host.py")


def use_comfyui() -> None:
    """Makes `import comfy` work; on the CPU where there is no CUDA. Call it before importing anything of comfy."""
    sys.path.insert(0, str(find_comfyui()))
    # waiting threads spin for a moment, then sleep: spinning on would take the cores from others, sleeping at once
    # costs a third of the speed
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    import torch
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    args.use_pytorch_cross_attention = True
