"""A small world of drawn characters, and a shrunken SDXL family trained in it from nothing.

drawn: the pictures, from seeds. family: the models, ComfyUI's own classes at small sizes. phases: their trainings.
measured: the evaluation. The trained weights come with the pack in WEIGHTS; the demo nodes need drawn and family alone.
"""

from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
ADAPTER_FILE = "mmdiff.safetensors"
