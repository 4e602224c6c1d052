"""What became of each picture, as a table that a person can read and a resumed run goes by."""

import csv
import io
import os
from collections.abc import Container, Iterator
from functools import partial
from pathlib import Path

from ..files import write_whole
from .pictures import record_name
from .writers import store

COLUMNS = "picture", "settings", "outcome", "words", "caption", "stamp", "content"
HEAD = ",".join(COLUMNS).encode() + b"\n"
FIRST = len(COLUMNS) - 2  # columns of an older version's rows
WRITTEN = "written"
SHOWN = 2000  # letters of a caption; the reader of tables takes 131,072

Seen = tuple[str, str]  # a picture's stamp and content, or an older version's UNSEEN
UNSEEN = "", ""


class Journal:
    """annotation_<rank>.csv of a folder. settings: what the outcome depends on, in a few letters."""

    def __init__(self, folder: Path, settings: str, rank: int = 0):
        self.folder, self.settings = folder, settings
        self.path = folder / f"annotation_{rank}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        whole = whole_lines(self.path) if self.path.exists() else b""
        if whole.startswith(HEAD):
            os.truncate(self.path, len(whole))  # without the line that a kill has cut off
        else:
            write_whole(self.path, partial(store, HEAD + whole.partition(b"\n")[2]))

    def add(self, picture: str, outcome: str, words: str = "", caption: str = "", seen: Seen = UNSEEN) -> None:
        """seen: what was read. Raises OSError."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            (picture, self.settings, outcome, words, " ".join(caption.split())[:SHOWN], *seen)
        )
        with self.path.open("ab", buffering=0) as file:
            file.write(line.getvalue().encode("utf-8", "surrogateescape"))

    def passed_over(self, done: Container[str]) -> dict[str, str]:
        """Why each picture gave no record with these settings, in the journals of all processes; `done` has the names
        of the records that are there."""
        last = {row["picture"]: row["outcome"] for row in self.rows() if row["settings"] == self.settings}
        return {
            picture: outcome
            for picture, outcome in last.items()
            if outcome != WRITTEN and record_name(Path(picture)) not in done
        }

    def seen(self) -> dict[str, Seen]:
        """What was last read of each picture."""
        return {row["picture"]: (row["stamp"], row["content"]) for row in self.rows()}

    def rows(self) -> Iterator[dict[str, str]]:
        """The own process's come last: it has seen again what others had passed over before."""
        for path in sorted(self.folder.glob("annotation_*.csv"), key=lambda path: (path == self.path, path)):
            text = whole_lines(path).decode("utf-8", "surrogateescape")
            for row in [*csv.reader(io.StringIO(text))][1:]:
                if len(row) >= FIRST:
                    yield dict(zip(COLUMNS, [*row, *UNSEEN], strict=False))


def whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
