"""What the steps of a set-up do, whichever host it is for: run commands, unpack, link, and say what went wrong.

Runs before anything is installed, so it needs the standard library alone.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

RETRY = "Make sure that 8 GB are free on the disk, then run the same command again: what is done is kept."
UNWRITABLE = "If this folder cannot be written to, or its disk is full, copy it elsewhere and run the command there."
NO_NETWORK = (
    "The package index was not reached: there is no network connection. Run the same command again when there is one: "
    "what is done is kept."
)
# what a step's output says of the cause, and what to try then
CAUSES = {
    r"NewConnectionError|Max retries|ConnectionError|ConnectTimeout|ProxyError|Name(Resolution|OrService)": NO_NETWORK,
    r"Read-only file system|Permission denied|No space left": UNWRITABLE,
}


class SetupError(Exception):
    """A failed step. Its text says which one, ends with the step's last output, and says what to try."""


def run_step(step: str, command: list[str | Path], remedy: str) -> None:
    """Runs a command, its current line shown on a terminal; it ends where this process is asked to.

    Raises SetupError with its last lines and what to try: the remedy, unless the output tells of a cause.
    """
    tail: collections.deque[str] = collections.deque(maxlen=6)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    width = shutil.get_terminal_size().columns - 8
    try:
        for line in process.stdout:
            found = [CAUSES[cause] for cause in CAUSES if re.search(cause, line)]
            remedy = found[0] if found else remedy
            if NO_NETWORK not in found:  # pip repeats such lines many times
                tail.append(line.rstrip())
            if sys.stdout.isatty():
                print(f"\r\033[K      {line.strip()[:width]}", end="\r", flush=True)
        failed = process.wait()
    except BaseException:
        end(process)
        raise
    if failed:
        lines = [f"{step} failed: {' '.join(map(str, command))}", *(f"    {line}" for line in tail)]
        raise SetupError("\n".join([*lines, remedy]))


def end(process: subprocess.Popen) -> None:
    """Ends a step with all that it has started: pip runs others, which would go on beside the next set-up."""
    if os.name == "nt":
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True)
    else:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def extract(archive: tarfile.TarFile, folder: str, target: Path) -> None:
    """Writes the files below <top>/<folder> of the archive below target."""
    for member in archive:
        name = member.name.partition("/")[2]
        if member.isfile() and name.startswith(f"{folder}/"):
            path = target / name.removeprefix(f"{folder}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def link_folder(source: Path, link: Path) -> None:
    """Makes link lead to source, in place of an older link; on Windows it is a junction, which needs no privilege."""
    if os.path.lexists(link):
        if link.resolve() == source:
            return
        link.unlink() if link.is_symlink() else link.rmdir()
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(source), str(link))
    else:
        link.symlink_to(source, target_is_directory=True)


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def lend_packages(lender: Path, borrower: Path) -> None:
    """Lets an environment see another's packages, PyTorch above all; those that it has itself come before them."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(subprocess.run([venv_python(borrower), "-c", code], stdout=subprocess.PIPE, text=True).stdout.strip())
    lent = lender / own.relative_to(borrower)
    (own / "mm-diff-lent.pth").write_text(str(lent), encoding="utf-8")
