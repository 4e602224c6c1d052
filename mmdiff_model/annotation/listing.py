"""A folder of pictures, at any depth: what is in it, but for what an annotation has written."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from ..pictures import ENDINGS, is_hidden
from .journal import is_journal

SHEET = "contact_sheet.jpg"


def list_pictures(folder: Path, output: Path, say: Callable[[str], None] = print) -> list[Path]:
    """The pictures below `folder`, relative to it, in an order of their names alone; none that an annotation has
    written, to `output` or, which `say` tells, elsewhere in `folder`.

    Raises FileNotFoundError, ValueError where there are none, or `output` is or holds `folder`.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"pictures: {folder} is not a folder. Name the folder of your photos.")
    if folder.resolve() == output.resolve():
        raise ValueError(f"output: {output} is the folder of the pictures. Name a folder of its own.")
    if output.resolve() in folder.resolve().parents:
        raise ValueError(f"output: {output} holds the folder of the pictures, {folder}. Name a folder beside it.")
    written = output.resolve()
    below = list(files_below(folder, say))
    files = [
        file
        for file in below
        if file.suffix.lower() in ENDINGS and file.is_file() and written not in file.resolve().parents
    ]
    outputs = {file.parent for file in below if is_journal(file)}
    earlier = {file for file in files if outputs.intersection(file.parents) or is_written(file)}
    if earlier:
        places = ", ".join(sorted({str(file.parent) for file in earlier})[:4])
        say(f"left out: {len(earlier)} pictures that an annotation has written, in {places}")
    if earlier and len(earlier) == len(files):
        raise ValueError(f"pictures: all in {folder} were written by an annotation. Name the folder of your photos.")
    if not files:
        raise ValueError(f"pictures: {folder} holds none ({', '.join(ENDINGS)}). Name the folder of your photos.")
    return sorted(file.relative_to(folder) for file in files if file not in earlier)


def files_below(folder: Path, say: Callable[[str], None]) -> Iterator[Path]:
    """Every file that is not hidden, behind links too, each folder once; `say` tells which folders cannot be read."""
    known, starts = set(), [folder]
    while starts:
        links = []
        for place, folders, names in os.walk(starts.pop(0), onerror=lambda error: say(f"left out: {error}")):
            here = Path(place).relative_to(folder)
            if is_hidden(here) or (real := os.path.realpath(place)) in known:
                folders.clear()
                continue
            known.add(real)
            folders.sort()
            links += [folder / here / name for name in folders if os.path.islink(folder / here / name)]
            yield from (folder / here / name for name in names if not is_hidden(Path(name)))
        starts += links  # after every real folder, which keeps its own name


def is_written(file: Path) -> bool:
    """Whether a picture is a record's, or a contact sheet."""
    return file.name == SHEET or all(file.with_suffix(ending).is_file() for ending in (".npy", ".json"))
