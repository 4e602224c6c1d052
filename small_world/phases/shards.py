"""Drawn data kept on disk in shards, each made from its number alone; a killed run goes on with the next one."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]


def load_shards(folder: Path, count: int, make: Callable[[int], Arrays]) -> Arrays:
    """`count` shards of arrays from `folder`, the missing ones made by make(number), joined along the first axis."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for number in range(count):
        path = folder / f"{number:04d}.npz"
        if not path.is_file():
            partial = folder / "partial.npz"
            np.savez(partial, **make(number))
            os.replace(partial, path)
            logger.info("%s: shard %d of %d", folder.name, number + 1, count)
        with np.load(path) as arrays:
            shards.append(dict(arrays))
    return {key: np.concatenate([shard[key] for shard in shards]) for key in shards[0]}
