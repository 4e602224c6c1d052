"""What became of each picture, as a table that a person can read and a resumed run goes by."""

import csv
import io
import os
from collections.abc import Container, Iterator
from pathlib import Path

from .pictures import record_name

COLUMNS = "picture", "settings", "outcome", "words", "caption"
WRITTEN = "written"


class Journal:
    """annotation_<rank>.csv of a folder. settings: what the outcome depends on, in a few letters."""

    def __init__(self, folder: Path, settings: str, rank: int = 0):
        self.folder, self.settings = folder, settings
        self.path = folder / f"annotation_{rank}.csv"
        folder.mkdir(parents=True, exist_ok=True)
        if not self.path.exists() or not whole_lines(self.path):
            self.path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        else:
            os.truncate(self.path, len(whole_lines(self.path)))  # without the line that a kill has cut off

    def add(self, picture: str, outcome: str, words: str = "", caption: str = "") -> None:
        """Raises OSError."""
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            (picture, self.settings, outcome, words, " ".join(caption.split()))
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

    def rows(self) -> Iterator[dict[str, str]]:
        """The own process's come last: it has seen again what others had passed over before."""
        for path in sorted(self.folder.glob("annotation_*.csv"), key=lambda path: (path == self.path, path)):
            text = whole_lines(path).decode("utf-8", "surrogateescape")
            for row in csv.DictReader(io.StringIO(text)):
                if None not in row.values():
                    yield row


def whole_lines(path: Path) -> bytes:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
