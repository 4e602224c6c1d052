"""Figures by picture in a file that grows: what was measured stays, whatever is killed, and is not measured again."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cases import PictureFile
from .figures import Figures

FORMAT, FORMAT_VERSION = "mmdiff_evaluation_pictures", 1


@dataclass
class Measured:
    """A picture's line: its name, what it was, and its Figures but for the boxes.

    stamp: the picture's when it was read. references: what it was compared with, each subject's `references_stamp`.
    """

    picture: str
    stamp: list[int]
    subjects: list[str]
    prompt: str
    references: str
    scores: list[list]  # [metric, subject or None, value]
    protocols: dict[str, float | None] = field(default_factory=dict)
    swaps: dict[str, list[list[float] | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: PictureFile, stamp: list[int], references: str, figures: Figures) -> "Measured":
        scores = [[metric, subject, value] for (metric, subject), value in figures.scores.items()]
        return cls(
            file.name,
            stamp,
            list(file.subjects),
            file.prompt,
            references,
            scores,
            figures.protocols,
            figures.swaps,
        )


class Results:
    """`path` holds a first line of the format and the settings, then a line a picture; the last one of a name counts.

    Raises ValueError where the file is another's, or was measured with other settings.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self._lines: dict[str, Measured] = {}
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "settings": settings}
        if path.exists():
            self._read(json.loads(json.dumps(head)))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append([json.dumps(head, ensure_ascii=False)])

    def get(self, file: PictureFile, references: str) -> Measured | None:
        """What was measured of just this picture with just this prompt and these references."""
        line = self._lines.get(file.name)
        now = (file.stamp, list(file.subjects), file.prompt, references)
        return line if line and (line.stamp, line.subjects, line.prompt, line.references) == now else None

    def add(self, lines: Sequence[Measured]) -> None:
        """Raises OSError; the lines before these stay whole."""
        self._append([json.dumps(vars(line), ensure_ascii=False) for line in lines])
        self._lines |= {line.picture: line for line in lines}

    def _append(self, lines: Sequence[str]) -> None:
        with self.path.open("ab") as file:
            content = "".join(f"{line}\n" for line in lines)
            file.write(content.encode(errors="backslashreplace"))  # JSON's own escapes, of names that are no UTF-8
            file.flush()
            os.fsync(file.fileno())

    def _read(self, head: dict) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a kill or a full disk has cut what is beyond
        begin = json.dumps({"format": FORMAT})[:-1].encode()
        if not whole and (content.startswith(begin) or begin.startswith(content)):
            self.path.unlink()
            return
        try:
            first, *lines = [json.loads(line) for line in whole.splitlines()]
            measured = [Measured(**line) for line in lines]
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"output: {self.path} is damaged or not an evaluation's ({error}). Move it away, or choose another "
                "--output."
            ) from error
        if first != head:
            raise ValueError(
                f"output: {self.path} was measured with {difference(first, head)}. Choose another --output, or delete "
                "it to measure everything again."
            )
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        self._lines = {line.picture: line for line in measured}


def difference(old: object, new: dict) -> str:
    """What two first lines do not share, in words."""
    kind = ("format", "format_version")
    if not isinstance(old, dict) or [old.get(key) for key in kind] != [new[key] for key in kind]:
        return "another program or version"
    before, now = old["settings"], new["settings"]
    name = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    return f"another {name}: {before.get(name)} then, {now.get(name)} now"
