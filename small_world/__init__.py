"""A small world of drawn characters, and a shrunken SDXL family trained in it from nothing.

    python -m small_world.drive --folder FOLDER      # all phases of the training; run again to continue

The world (looks, heads, drawing, poses, backgrounds, captions, scenes, records) needs numpy and Pillow alone. The
models (models, vocabulary, transformers) are ComfyUI's own classes at small sizes, trained by train_*.py; the trained
ones come with the pack in WEIGHTS.
"""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
ADAPTER_FILE = "mmdiff.safetensors"
