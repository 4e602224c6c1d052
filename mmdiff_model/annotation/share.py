"""One process's share of a folder, batch by batch: pictures are read ahead, results kept as soon as they are there."""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..files import lock
from ..training.records import Record
from .annotator import Annotator
from .journal import WRITTEN, Journal, Seen
from .pictures import content, read_caption, read_picture, record_name, stamp
from .words import Rejected

READERS = 4
SHOWN = 64
LOCK, LOCKS = ".annotate-{}.lock", re.compile(r"\.annotate-(\d+)\.lock")


def lock_share(folder: Path, rank: int, ranks: int) -> Callable[[], None]:
    """Takes an output folder for one process of `ranks` -> what gives it back; the end of the process does so too.

    With its own rank's lock go those of ranks that an earlier run had and whose work falls to it. Raises
    BlockingIOError where a process of such a rank is still at work, ValueError where the folder cannot be written.
    """
    earlier = {int(found[1]) for path in folder.glob(LOCK.format("*")) if (found := LOCKS.fullmatch(path.name))}
    with ExitStack() as taken:
        for number in sorted(earlier | {rank}):
            if number % ranks == rank:
                taken.callback(lock(folder / LOCK.format(number)))
        return taken.pop_all().close


@dataclass
class Share:
    """Annotates `files` of a folder and counts what came of it.

    size: what the pictures' shorter side is brought down to. shown: the first pictures with their results.
    """

    annotator: Annotator
    folder: Path
    files: Sequence[Path]
    size: int
    batch: int
    outcomes: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    shown: list[tuple[np.ndarray, Record | Rejected]] = field(default_factory=list)

    def run(self, writer, journal: Journal, after: Callable[[Path, Record | Rejected], None]) -> None:
        """Raises OSError where a record cannot be written; those before it stay."""
        for files, read, seen in self.read_ahead():
            good = [number for number, one in enumerate(read) if not isinstance(one, Rejected)]
            results: list[Record | Rejected] = list(read)
            if good:
                names = [record_name(files[number]) for number in good]
                pictures, captions = zip(*(read[number] for number in good), strict=True)
                for number, result in zip(good, self.annotator.annotate(names, pictures, captions), strict=True):
                    results[number] = result
            for file, one, own, result in zip(files, read, seen, results, strict=True):
                self.keep(file, one, own, result, writer, journal)
                after(file, result)

    def keep(self, file: Path, read, seen: Seen, result: Record | Rejected, writer, journal: Journal) -> None:
        if isinstance(result, Record):
            writer.write(result)
            words = [segment.word for segment in result.segments]
            journal.add(file.as_posix(), WRITTEN, " + ".join(words), result.caption, seen)
            self.words.update(word.lower() for word in words)
            self.outcomes[WRITTEN] += 1
        else:
            writer.remove(record_name(file))  # of what the picture was before
            journal.add(file.as_posix(), result.reason, caption=result.caption, seen=seen)
            self.outcomes[result.reason] += 1
        if len(self.shown) < SHOWN and not isinstance(read, Rejected):
            self.shown.append((np.asarray(read[0]), result))

    def read_ahead(self) -> Iterator[tuple[list[Path], list, list[Seen]]]:
        """Batches of files, each with its picture and caption, or why it has none, and what was there before."""
        batches = [list(self.files[start : start + self.batch]) for start in range(0, len(self.files), self.batch)]
        with ThreadPoolExecutor(READERS) as pool:
            started = [[pool.submit(self.read, file) for file in batch] for batch in batches[:1]]
            for batch, following in itertools.zip_longest(batches, batches[1:], fillvalue=[]):
                started.append([pool.submit(self.read, file) for file in following])
                read, seen = zip(*(future.result() for future in started.pop(0)), strict=True)
                yield batch, list(read), list(seen)

    def read(self, file: Path) -> tuple[tuple[Image.Image, str | None] | Rejected, Seen]:
        path = self.folder / file
        seen = stamp(path), content(path)
        try:
            return (read_picture(path, self.size), read_caption(path)), seen
        except Rejected as error:
            return error, seen
