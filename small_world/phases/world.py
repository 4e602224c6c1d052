"""Scenes as training records, drawn when they are read."""

from dataclasses import dataclass

import numpy as np

from mmdiff_model.training.records import Record, Segment

from ..drawn.records import VISIBLE
from ..drawn.scenes import make_scene, references


@dataclass(frozen=True)
class World:
    """The first `count` training scenes of a seed, as mmdiff_model.training reads records."""

    seed: int
    count: int

    def __len__(self) -> int:
        return self.count

    def digest(self) -> str:
        """What tells these scenes from others."""
        return f"{self.count} scenes of seed {self.seed}"

    def map_digest(self) -> str:
        """The maps are drawn with the scenes."""
        return self.digest()

    def read(self, index: int) -> Record:
        """Scene `index`; each character's reference shows it in another pose."""
        scene = make_scene(self.seed, index)
        segments = tuple(
            Segment(scene.caption[start:end], start, end, mask >= VISIBLE, picture)
            for (start, end), mask, picture in zip(scene.spans, scene.masks, references(scene, self.seed), strict=True)
        )
        return Record(f"scene {index}", np.array(scene.picture), scene.caption, segments)
