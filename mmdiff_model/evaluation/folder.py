"""A whole folder's figures: batches, each subject's photos read once, and what is measured kept as it comes."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .cases import BETWEEN, PictureFile, read_picture
from .figures import Case, Models, measure
from .matching import FaceMatcher, reference_faces, unseen_faces
from .recogniser import Recogniser
from .results import Measured, Results
from .similarity import plain_prompt

BATCH = 16
READERS = 2
PART = 1 << 20


@dataclass(frozen=True)
class Known:
    """A subject's unit vectors: of its photos by metric, and of its faces and its unseen face by recogniser."""

    photos: dict[str, Tensor]
    faces: tuple[np.ndarray, ...] = ()
    unseen: tuple[np.ndarray, ...] = ()


@dataclass
class Judges:
    """Everything that scores; subjects are read when a picture first needs them.

    references: each subject's photos. unseen: a further photo of each, or of none. words: their class words, or none.
    """

    models: Models
    references: dict[str, list[Path]]
    analysis: Any = None
    recogniser: Recogniser | None = None
    unseen: dict[str, Path] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)
    _known: dict[str, Known] = field(default_factory=dict)

    def known(self, subject: str) -> Known:
        """Raises ValueError naming the subject: an unreadable photo, or one without a face."""
        if subject not in self._known:
            self._known[subject] = self._read(subject)
        return self._known[subject]

    def references_stamp(self, subject: str) -> str:
        """Differs where the content of the subject's photos or of its unseen photo does, or its word."""
        photos, unseen = self.references[subject], [self.unseen[subject]] if subject in self.unseen else []
        parts = [digest(photos), digest(unseen), self.words.get(subject)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def case(self, file: PictureFile, picture: Tensor) -> Case:
        known = [self.known(subject) for subject in file.subjects]
        words = [self.words[subject] for subject in file.subjects] if self.models.boxes is not None else []
        matchers = [
            FaceMatcher(
                self.analysis,
                [subject.faces[i] for subject in known],
                recogniser,
                [subject.unseen[i] for subject in known] if all(subject.unseen for subject in known) else [],
            )
            for i, recogniser in enumerate(self._recognisers)
        ]
        faces, second = (*matchers, None, None)[:2]
        return Case(picture, plain_prompt(file.prompt), [subject.photos for subject in known], words, faces, second)

    @property
    def _recognisers(self) -> list[Recogniser | None]:
        if self.analysis is None:
            return []
        return [None] if self.recogniser is None else [None, self.recogniser]

    def _read(self, subject: str) -> Known:
        photos = [read_picture(path) for path in self.references[subject]]
        source = f"references: {subject}"
        faces = tuple(reference_faces(self.analysis, photos, source, judge) for judge in self._recognisers)
        unseen = ()
        if subject in self.unseen and faces:
            photo = read_picture(self.unseen[subject])
            unseen = tuple(
                unseen_faces(self.analysis, [photo], [own], f"unseen: {subject}", judge)[0]
                for own, judge in zip(faces, self._recognisers, strict=True)
            )
        return Known(self.models.embed_photos(photos), faces, unseen)


@dataclass(frozen=True)
class MeasuredFolder:
    """`lines` follow the files; `bad` says what is wrong with those that could not be read."""

    lines: list[Measured]
    bad: list[str]


def measure_folder(
    files: Sequence[PictureFile], judges: Judges, results: Results, say: Callable[[str], None] = lambda line: None
) -> MeasuredFolder:
    """Measures what `results` lacks and adds it, batch by batch. `say` gets a line of progress after each.

    Raises ValueError: a subject's photos. OSError: a full disk; what was measured before stays.
    """
    subjects = dict.fromkeys(subject for file in files for subject in file.subjects)
    stamps = {subject: judges.references_stamp(subject) for subject in subjects}
    references = {file: BETWEEN.join(stamps[subject] for subject in file.subjects) for file in files}
    missing = [file for file in files if results.get(file, references[file]) is None]
    if len(missing) < len(files):
        say(f"{len(files) - len(missing)} of {len(files)} pictures were measured before.")
    for file in missing:
        for subject in file.subjects:
            judges.known(subject)  # what is wrong with a subject's photos is said before hours of work
    bad: dict[PictureFile, str] = {}
    start, done = time.monotonic(), 0
    for batch in in_batches(missing):
        good = [read for read in batch if isinstance(read.picture, Tensor)]
        bad |= {read.file: str(read.picture) for read in batch if isinstance(read.picture, ValueError)}
        figures = measure(judges.models, [judges.case(read.file, read.picture) for read in good])
        results.add(
            [
                Measured.of(read.file, read.stamp, references[read.file], of_picture)
                for read, of_picture in zip(good, figures, strict=True)
            ]
        )
        done += len(batch)
        say(progress(done, len(missing), time.monotonic() - start))
    lines = {file: results.get(file, references[file]) for file in files}
    meanwhile = "was replaced or removed meanwhile. Run the same command again."
    bad = {file: f"{file.path} {meanwhile}" for file, line in lines.items() if line is None} | bad
    return MeasuredFolder([line for line in lines.values() if line is not None], list(bad.values()))


@dataclass(frozen=True)
class Read:
    """A picture, or what is wrong with it, and its file's stamp of before it was read."""

    file: PictureFile
    stamp: list[int]
    picture: Tensor | ValueError


def in_batches(files: Sequence[PictureFile]) -> Iterator[list[Read]]:
    """Batches of pictures; the next one is read while this one is measured."""

    def read(file: PictureFile) -> Read:
        stamp = file.stamp
        try:
            return Read(file, stamp, read_picture(file.path))
        except ValueError as error:
            return Read(file, stamp, error)

    batches = [files[start : start + BATCH] for start in range(0, len(files), BATCH)]
    with ThreadPoolExecutor(READERS) as readers:
        coming = [readers.submit(read, file) for file in batches[0]] if batches else []
        for number in range(1, len(batches) + 1):
            batch = [future.result() for future in coming]
            coming = [readers.submit(read, file) for file in batches[number]] if number < len(batches) else []
            yield batch


def digest(paths: Iterable[Path]) -> str:
    """16 hex digits of the files' contents, in their order."""
    whole = hashlib.sha256()
    for path in paths:
        of_file = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(PART):
                of_file.update(part)
        whole.update(of_file.digest())
    return whole.hexdigest()[:16]


def progress(done: int, total: int, seconds: float) -> str:
    """`128 of 3000 pictures, 14.2 pictures/s, 3:22 left`"""
    speed = done / max(seconds, 1e-6)
    left = round((total - done) / speed)
    return f"{done} of {total} pictures, {speed:.1f} pictures/s, {left // 60}:{left % 60:02} left"
