"""Folders of generated pictures and of reference photos, in DreamBench's layout.

REFERENCES/<subject>/*.jpg, with prompts_and_classes.txt beside them or not; PICTURES/<subject>/*.png, or
PICTURES/<subject>+<subject>/*.png, with the prompt of NAME.png in NAME.txt. A folder that holds pictures itself is one
subject.
"""

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..pictures import ENDINGS, UnreadablePicture, is_hidden, read

BETWEEN = "+"
CLASSES_FILE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class PictureFile:
    """A generated picture: its path, its name below the folder, its subjects and its prompt ("" is none)."""

    path: Path
    name: str
    subjects: tuple[str, ...]
    prompt: str

    @property
    def stamp(self) -> list[int]:
        """Size and time: another picture of the same name has another, and one that is gone has none."""
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return []
        return [status.st_size, status.st_mtime_ns]


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder itself, by name; hidden files are somebody's half-written ones."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in ENDINGS and not is_hidden(Path(path.name)) and path.is_file()
    )


def folders_in(folder: Path, pattern: str = "*") -> list[Path]:
    """The folders in a person's folder, by name; those that systems and network drives keep there are no one's."""
    return sorted(path for path in folder.glob(pattern) if path.is_dir() and not is_hidden(path.relative_to(folder)))


def read_picture(path: Path) -> Tensor:
    """A picture file -> (H, W, 3) in 0..1, turned as its camera says, on white where it is transparent.

    Raises ValueError naming it.
    """
    try:
        image = read(path)
    except UnreadablePicture as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    return torch.from_numpy(np.array(image)).float() / 255


def read_text(path: Path) -> str:
    """A text file in UTF-8, with a byte order mark or without. Raises ValueError naming it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}. Save it as UTF-8.") from error


def read_references(folder: Path, source: str = "references") -> dict[str, list[Path]]:
    """The photos of each subject by its name. Raises ValueError naming `source` where there are none."""
    if not folder.is_dir():
        raise ValueError(f"{source}: the folder {folder} does not exist. Name the folder of the subjects' photos.")
    subjects = {path.name: pictures_in(path) for path in folders_in(folder)}
    subjects = {name: photos for name, photos in subjects.items() if photos}
    if not subjects and (photos := pictures_in(folder)):
        subjects = {folder.resolve().name: photos}
    if not subjects:
        raise ValueError(
            f"{source}: no pictures ({', '.join(ENDINGS)}) in {folder} or its folders. Put each subject's photos into "
            "a folder of its name there."
        )
    return subjects


def read_pictures(folder: Path, subjects: Sequence[str], prompt: str = "") -> list[PictureFile]:
    """The generated pictures by name; `prompt` is theirs where no .txt is beside them.

    Raises ValueError: no folder, no pictures, or a folder whose name is not that of subjects.
    """
    if not folder.is_dir():
        raise ValueError(f"pictures: the folder {folder} does not exist. Name the folder of the generated pictures.")
    found = []
    for place in [folder, *folders_in(folder, "**/*")]:
        if not (files := pictures_in(place)):
            continue
        named = subjects_of(folder, place, subjects)
        for path in files:
            text = path.with_suffix(".txt")
            words = read_text(text).strip() if text.is_file() else prompt
            found.append(PictureFile(path, path.relative_to(folder).as_posix(), named, words))
    if not found:
        raise ValueError(f"pictures: no pictures ({', '.join(ENDINGS)}) in {folder} or its folders.")
    return found


def subjects_of(folder: Path, place: Path, subjects: Sequence[str]) -> tuple[str, ...]:
    """The subjects of the pictures in `place`, which is `folder` or below it."""
    if place == folder:
        if len(subjects) == 1:
            return tuple(subjects)
        raise ValueError(
            f"pictures: {folder} holds pictures itself, but there are {len(subjects)} subjects. Put them into folders "
            f"named by their subjects, such as {subjects[0]} or {subjects[0]}{BETWEEN}{subjects[1]}."
        )
    name = place.relative_to(folder).parts[0]
    named = (name,) if name in subjects else tuple(name.split(BETWEEN))
    if unknown := [subject for subject in named if subject not in subjects]:
        known = ", ".join(subjects[:8]) + (", ..." if len(subjects) > 8 else "")
        raise ValueError(
            f"pictures: the folder '{name}' should be named by its subjects, but the references have no "
            f"'{unknown[0]}' (they have {known}). Rename it, or move it elsewhere."
        )
    return named


@dataclass(frozen=True)
class Classes:
    """DreamBench's class words by subject, and its prompts with {} in place of the class word."""

    words: dict[str, str]
    objects: tuple[str, ...]
    live: tuple[str, ...]

    def prompts(self, subject: str) -> tuple[str, ...]:
        return self.live if self.words[subject] in LIVE_CLASSES else self.objects


def read_classes(references: Path) -> Classes | None:
    """prompts_and_classes.txt of DreamBench's data set, None without. Raises ValueError where it is not that."""
    path = references / CLASSES_FILE
    if not path.is_file():
        return None
    text = read_text(path)
    head, _, prompts = text.partition("Object Prompts")
    objects, _, live = prompts.partition("Live Subject Prompts")
    words = dict(re.findall(r"^([\w-]+),([\w -]+?)\s*$", head, re.MULTILINE))
    words.pop("subject_name", None)
    given = [
        tuple(
            " ".join(ast.literal_eval(quoted).format("", "{}").split())
            for quoted in re.findall(r"('(?:[^'\\]|\\.)*')\.format", part)
        )
        for part in (objects, live)
    ]
    if not (words and all(given)):
        raise ValueError(f"references: {path} is not DreamBench's file of class words and prompts. Rename or mend it.")
    return Classes(words, *given)
