"""What earlier runs have made of a folder's pictures, against what is there now."""

from collections.abc import Container, Iterable
from pathlib import Path

from .journal import Journal
from .pictures import content, record_name, stamp


def changed(folder: Path, files: Iterable[Path], journal: Journal, done: Container[str]) -> set[Path]:
    """The pictures to annotate again: they or their captions are not what was read. Notes what is there of others.

    done: the records that are there. Raises ValueError where such a one is of another folder's picture.
    """
    last, again, others = journal.last(), set(), {}
    for file in files:
        row, recorded = last.get(file.as_posix()), record_name(file) in done
        here = row is None or journal.is_own(row)
        if not recorded and (row is None or not here):
            continue
        seen = stamp(folder / file)
        if row and here and row["stamp"] == seen:
            if not row["folder"]:
                journal.note(file.as_posix(), row, (seen, row["content"]))
        elif now := content(folder / file):
            if row and row["content"] != now and not here:
                others[file] = row["folder"]
            elif row and row["content"] != now and row["stamp"]:
                again.add(file)
            else:
                journal.note(file.as_posix(), row, (seen, now))
    if others:
        first = min(others)
        raise ValueError(
            f"output: {len(others)} of its records are of other pictures than those of that name in {folder}: that of "
            f"{first} is of {others[first]}. Choose another --output. If the folder was only moved, and its pictures "
            "or captions changed, delete their records to have them annotated again."
        )
    return again
