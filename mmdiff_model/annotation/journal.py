"""What became of each picture, as a table that a person can read and a resumed run goes by."""

import csv
import io
import os
import re
from collections.abc import Container
from contextlib import suppress
from functools import partial
from pathlib import Path

from ..files import write_whole
from .pictures import record_name
from .writers import store

FIRST = "picture", "settings", "outcome", "words", "caption"  # all that the oldest version's rows have
LATER = "stamp", "content", "run", "folder"
COLUMNS = FIRST + LATER
HEAD = ",".join(COLUMNS).encode() + b"\n"
WRITTEN = "written"
SHOWN = 2000  # letters of a caption; the reader of tables takes 131,072

Seen = tuple[str, str]  # a picture's stamp and content, or UNSEEN
UNSEEN = "", ""


class Journal:
    """annotation_<rank>.csv of a folder. settings: what the outcome depends on, in a few letters. pictures: the folder
    that the pictures' names are below."""

    def __init__(self, folder: Path, settings: str, rank: int = 0, pictures: str = ""):
        self.folder, self.settings, self.pictures = folder, settings, pictures
        self.path = folder / f"annotation_{rank}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        whole = whole_lines(self.path) if self.path.exists() else b""
        if whole.startswith(HEAD):
            os.truncate(self.path, len(whole))  # without the line that a kill has cut off
        else:
            write_whole(self.path, partial(store, HEAD + whole.partition(b"\n")[2]))
        self.run = 1 + max((int(row["run"] or 0) for row in self.rows()), default=0)

    def add(self, picture: str, outcome: str, words: str = "", caption: str = "", seen: Seen = UNSEEN) -> None:
        """seen: what was read. Raises OSError."""
        self.write(picture, self.settings, outcome, words, " ".join(caption.split())[:SHOWN], seen)

    def note(self, picture: str, row: dict[str, str] | None, seen: Seen) -> None:
        """What is there of a picture whose outcome, or record without a row, stays. Raises OSError."""
        first = [row[column] for column in FIRST] if row else [picture, self.settings, WRITTEN, "", ""]
        self.write(*first, seen)

    def write(self, picture: str, settings: str, outcome: str, words: str, caption: str, seen: Seen) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            (picture, settings, outcome, words, caption, *seen, self.run, self.pictures)
        )
        with self.path.open("ab", buffering=0) as file:
            file.write(line.getvalue().encode("utf-8", "surrogateescape"))

    def is_own(self, row: dict[str, str]) -> bool:
        """Whether a row is of this folder of pictures; an older version has not noted it."""
        return row["folder"] in ("", self.pictures)

    def passed_over(self, done: Container[str]) -> dict[str, str]:
        """Why each picture gave no record with these settings, in the journals of all processes; `done` has the names
        of the records that are there."""
        own = (row for row in self.rows() if row["settings"] == self.settings and self.is_own(row))
        last = {row["picture"]: row["outcome"] for row in own}
        return {
            picture: outcome
            for picture, outcome in last.items()
            if outcome != WRITTEN and record_name(Path(picture)) not in done
        }

    def last(self) -> dict[str, dict[str, str]]:
        """The latest row of each picture."""
        return {row["picture"]: row for row in self.rows()}

    def rows(self) -> list[dict[str, str]]:
        """Those of all processes, the latest run's last. An older version's have no run; of them the own process's come
        last: it has seen again what others had passed over before."""
        found = []
        for path in sorted(self.folder.glob("annotation_*.csv"), key=lambda path: (path == self.path, path)):
            text = whole_lines(path).decode("utf-8", "surrogateescape")
            for row in [*csv.reader(io.StringIO(text))][1:]:
                if len(row) >= len(FIRST):
                    found.append(dict(zip(COLUMNS, [*row, *[""] * len(LATER)], strict=False)))
        return sorted(found, key=lambda row: int(row["run"] or 0))


def whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]


def is_journal(file: Path) -> bool:
    """Whether a file is the table that an annotation keeps in its output folder."""
    if re.fullmatch(r"annotation_\d+\.csv", file.name):
        with suppress(OSError), file.open("rb") as opened:
            begin = ",".join(FIRST).encode()
            return opened.read(len(begin)) == begin
    return False
