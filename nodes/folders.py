"""The pack's four model folders, and the names that a user may give to something in them or in ComfyUI's own.

They are models/mmdiff for checkpoints, mmdiff_subjects for subject files, mmdiff_annotation for the models that
annotate, and mmdiff_evaluation for those that judge.
"""

import os
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

from ..mmdiff_model.prompt import composed

LONGEST_NAME = 200  # bytes: endings and a hidden folder's name still fit into the 255 that file systems allow
SIGNS = " .-_()',&+"
PLAIN = (
    "Use letters, digits, spaces and . - _ ( ) ' , & + in at most 200 bytes, with no dot at an end or beside another, "
    "and no name that Windows keeps for a device."
)
PORTS = {f"{port}{digit}" for port in ("COM", "LPT") for digit in "0123456789\xb9\xb2\xb3"}
DEVICES = {"CON", "PRN", "AUX", "NUL", *PORTS}


def is_plain(name: str) -> bool:
    """Whether a name is as PLAIN says, with letters of any script, and the same file on every system."""
    characters = all(character in SIGNS or unicodedata.category(character)[0] in "LMN" for character in name)
    if not characters or not 0 < len(name.encode()) <= LONGEST_NAME:
        return False
    edges = name.startswith((".", " ")) or name.endswith((".", " "))
    return not edges and ".." not in name and name.split(".")[0].rstrip().upper() not in DEVICES


def plain_name(source: str, name: str, problem: str = "is not a plain file name") -> str:
    """The name without spaces around it. Raises ValueError naming the input `source`."""
    if not is_plain(stripped := name.strip()):
        raise ValueError(f"{source}: '{shown(name)}' {problem}. {PLAIN}")
    return stripped


def shown(name: str) -> str:
    """A name from outside, short enough for a message and without characters that cannot be printed."""
    printable = "".join(character if character.isprintable() else "?" for character in name[:100])
    return printable + "..." * (len(name) > 100)


def register(folder: str, *extensions: str) -> str:
    """Adds models/<folder> beside whatever extra_model_paths.yaml gives for it; returns the folder's name."""
    folder_paths.add_model_folder_path(folder, str(Path(folder_paths.models_dir) / folder))
    folder_paths.folder_names_and_paths[folder][1].update(extensions)
    return folder


def find(folder: str, name: str, source: str) -> Path:
    """Full path of a file or folder in a registered folder. Raises FileNotFoundError naming the input `source`."""
    roots = folder_paths.get_folder_paths(folder)
    if not name.strip():
        raise FileNotFoundError(f"{source}: no name is given. Choose one of those in {', '.join(roots)}.")
    twins: list[str] = []
    leads_out = any(
        kind(name).is_absolute() or kind(name).drive or ".." in kind(name).parts
        for kind in (PurePosixPath, PureWindowsPath)
    )
    for path in (Path(root) / name for root in roots if not leads_out):
        try:
            if path.exists():
                return path
            twins += twins_of(path)
        except (OSError, ValueError):  # a name that no file can have
            break
    there = f", which has '{shown(twins[0])}', in other capitals or accents" if twins else ""
    raise FileNotFoundError(
        f"{source}: '{shown(name)}' is no longer in {', '.join(roots)}{there}. Put it back or choose another, then "
        "refresh the node definitions (R)."
    )


def twins_of(path: Path) -> list[str]:
    """Other names in a path's folder that some systems take for the same: in other capitals, or with accents that are
    composed in another way."""
    same = composed(path.name).casefold()
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    return [name for name in names if name != path.name and composed(name).casefold() == same]


def state_of(folder: str, name: str | None, source: str) -> str:
    """When a file, or the files of a folder, were written, and their sizes: another after a change.

    name: None where it comes over a link, whose change ComfyUI sees by itself.
    """
    if name is None:
        return ""
    path = find(folder, name, source)
    stats = [(file.name, stat_of(file)) for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    return " ".join(f"{name} {stat.st_mtime_ns} {stat.st_size} {stat.st_ino}" for name, stat in stats)


def stat_of(file: Path) -> os.stat_result:
    """Of what a link leads to, or of a link that leads to nothing."""
    try:
        return file.stat()
    except OSError:
        return file.lstat()


def file_name(filename: str) -> str:
    """The .safetensors that a filename stands for. Raises ValueError on one that is not plain."""
    return f"{plain_name('filename', filename.strip().removesuffix('.safetensors'))}.safetensors"


def new_file(folder: str, filename: str, overwrite: bool | None = None) -> Path:
    """Path of a .safetensors to write in a registered folder: that of the file which this system takes the name for,
    or whose name looks the same. Raises ValueError on a bad name, FileExistsError also on one that other systems take
    for another's that is there, NotADirectoryError.

    overwrite: None for a node without that switch.
    """
    root = Path(folder_paths.get_folder_paths(folder)[0])
    path = root / file_name(filename)
    if os.path.lexists(root) and not root.is_dir():
        raise NotADirectoryError(f"filename: {root} should be a folder, and is none. Move away what is there.")
    twins = [] if path.name in (os.listdir(root) if root.is_dir() else ()) else twins_of(path)
    if len(twins) == 1 and (os.path.lexists(path) or composed(twins[0]) == composed(path.name)):
        path = root / twins.pop()
    if path.is_dir():
        raise FileExistsError(f"filename: '{path.name}' is a folder in {root}. Choose another name.")
    if twins:
        raise FileExistsError(
            f"filename: '{path.name}' is the same name as '{shown(twins[0])}' on some systems, and that is already in "
            f"{root}. Choose another name, or write it in the same letters."
        )
    if os.path.lexists(path) and not overwrite:
        remedy = "delete that file" if overwrite is None else "switch overwrite on"
        raise FileExistsError(f"filename: '{path.name}' is already in {root}. Choose another name, or {remedy}.")
    return path


@contextmanager
def writing(source: str, path: Path) -> Iterator[None]:
    """What the file system refuses meanwhile is raised as OSError naming the input `source` and the place."""
    try:
        yield
    except FileExistsError as error:
        raise FileExistsError(f"{source}: {error}") from error
    except OSError as error:
        raise OSError(
            f"{source}: '{path.name}' could not be written to {path.parent} ({error.strerror or error}). Free some "
            "disk space or make the folder writable, then queue the workflow again."
        ) from error
