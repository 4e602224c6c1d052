"""Contact sheets: pictures side by side in one file.

python -m small_world.sheet FILE.png [--seed 0] [--count 48] [--held-out] [--references]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from .scenes import make_scene, references


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 8, gap: int = 2) -> Image.Image:
    """Pictures (h, w, 3) uint8 of one size, row by row, on white."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap), rows * (height + gap)), "white")
    for number, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (number % columns * (width + gap), number // columns * (height + gap)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--held-out", action="store_true", help="characters of the evaluation")
    parser.add_argument("--references", action="store_true", help="each character alone, as the vision encoder sees it")
    options = parser.parse_args()
    scenes = [make_scene(options.seed, index, options.held_out) for index in range(options.count)]
    pictures = [scene.picture for scene in scenes]
    if options.references:
        pictures = [picture for scene in scenes for picture in references(scene, options.seed)]
    contact_sheet(pictures).save(options.file)


if __name__ == "__main__":
    main()
