"""Files that are replaced as a whole: a crash, a full disk or another writer leaves the old one or the new.

A file is written in a hidden folder of its own beside its place. Writers hold a shared lock of the place's folder, so
whoever gets it alone knows that the hidden folders there were left by killed processes.
"""

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

if os.name == "nt":
    import msvcrt
else:
    import fcntl

PARTIAL = re.compile(r"\..+\.[0-9a-f]{12}\.partial|\..+\.(safetensors|pt|json|csv)\.partial")  # now, and once
LOCK_FILE = "training.lock"


def write_whole(path: Path, write: Callable[[Path], object], overwrite: bool = True) -> None:
    """write(partial) makes a file that is flushed to the disk and then takes the place of `path`, with the rights that
    the umask gives; what it raises leaves nothing behind. Without `overwrite`, raises FileExistsError where another
    writer was first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing_in(path.parent):
        folder = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
        folder.mkdir()
        try:
            partial = folder / "partial"
            partial.touch()
            mode = partial.stat().st_mode
            write(partial)
            partial.chmod(mode)  # safetensors takes away the rights of others
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            (os.replace if overwrite else place_anew)(partial, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        flush_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the file system refuses meanwhile is raised as OSError with the path and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{path}: could not be written ({error}). Free some disk space or fix the folder, then run the same "
            "command again."
        ) from error


def place_anew(partial: Path, path: Path) -> None:
    """Gives a file its place. Raises FileExistsError where another writer was first."""
    try:
        os.link(partial, path)
    except FileExistsError as error:
        raise FileExistsError(f"'{path.name}' was made by another writer meanwhile. Choose another name.") from error
    except OSError:  # a file system without links
        os.replace(partial, path)


@contextmanager
def writing_in(folder: Path) -> Iterator[None]:
    """Says that a file is being written in a folder; where nobody else says so, sweeps what killed writers left."""
    if os.name == "nt":  # cannot lock folders: what is left there stays
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # another writer, or a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sweep(folder)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


@cache
def sweep(folder: Path) -> None:
    """Once a folder and process: thousands of files may be written there, and each time would list them all."""
    for entry in os.scandir(folder):
        if not PARTIAL.fullmatch(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def flush_folder(folder: Path) -> None:
    """Makes a rename in it survive a power cut; Windows has no such call."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def lock_training(folder: Path) -> Callable[[], None]:
    """Takes a training's folder for this process -> what gives it back; the end of the process does so too.

    Raises ValueError where another training has it or it cannot be written.
    """
    try:
        return lock(folder / LOCK_FILE)
    except BlockingIOError as error:
        raise ValueError(
            f"{folder}: another training is at work in this folder. Wait until it ends, stop it, or choose another "
            "folder."
        ) from error


def lock(path: Path) -> Callable[[], None]:
    """Takes a file for this process -> what gives it back; the end of the process does so too.

    Raises BlockingIOError where another process has it, ValueError where its folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ValueError(
            f"{path.parent}: this folder cannot be written ({error.strerror}). Make it writable, or choose another "
            "folder."
        ) from error
    try:
        if os.name == "nt":
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except PermissionError as error:  # what Windows says of a lock that another process has
        file.close()
        raise BlockingIOError(*error.args) from error
    except OSError:
        file.close()
        raise
    return file.close
