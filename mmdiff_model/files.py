"""Files that are replaced as a whole: a crash or a full disk leaves the old one or the new, never a part."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """write(partial) makes a hidden file beside `path` that then takes its place; what it raises leaves none behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
