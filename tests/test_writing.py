"""Files are whole or as they were, whoever writes and whatever is killed; a training's folder has one training."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import ROOT
from mmdiff_model.files import LOCK_FILE, lock_training, write_whole

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals, rights and locks of folders are Unix's")
FILES = "import sys; sys.path.insert(0, {root!r}); sys.modules['comfy'] = None; import importlib.util as u;"
FILES += "spec = u.spec_from_file_location('files', {file!r}); files = u.module_from_spec(spec);"
FILES += (
    "spec.loader.exec_module(files); from pathlib import Path; import torch; from safetensors.torch import save_file;"
)
FILES = FILES.format(root=str(ROOT), file=str(ROOT / "mmdiff_model" / "files.py"))
WRITER = (
    FILES
    + """
print("ready", flush=True)
number = int(sys.argv[2])
while True:
    number += 2
    tensors = {f"{i}": torch.full((100_000,), float(number)) for i in range(3)}
    files.write_whole(Path(sys.argv[1]), lambda partial: save_file(tensors, partial))
"""
)
HOLDER = FILES + "release = files.lock_training(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.read()"


def start(code: str, *arguments) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def value_of(path: Path) -> float:
    """The one number that a whole file of a writer holds."""
    values = torch.cat(list(load_file(path).values())).unique()
    assert len(values) == 1
    return float(values)


def test_two_writers_of_one_file(tmp_path):
    """Every reading while both write is a whole file, and neither writer fails."""
    path = tmp_path / "state.safetensors"
    writers = [start(WRITER, path, number) for number in (0, 1)]
    seen, until = set(), time.monotonic() + 5
    while time.monotonic() < until:
        if path.exists():
            seen.add(value_of(path))
    assert all(writer.poll() is None for writer in writers)
    for writer in writers:
        kill(writer)
    assert len(seen) > 10 and len({value % 2 for value in seen}) == 2


@POSIX
def test_kills_leave_a_whole_file_and_what_they_leave_is_swept(tmp_path):
    path, chance = tmp_path / "state.safetensors", random.Random(3)
    left = 0
    for _ in range(6):
        writer = start(WRITER, path, 0)
        time.sleep(chance.uniform(0.05, 0.4))
        kill(writer)
        left += len([file for file in os.listdir(tmp_path) if file.endswith(".partial")])
        if path.exists():
            value_of(path)
    (tmp_path / ".state.safetensors.partial").write_text("of an older version")
    write_whole(path, lambda partial: save_file({"a": torch.ones(3)}, partial))
    assert os.listdir(tmp_path) == [path.name]
    assert left > 0, "no kill came while a file was being written"


@POSIX
def test_a_process_sweeps_a_folder_once(tmp_path, monkeypatch):
    """However many files it writes there; another folder, and another process, are swept of their own."""
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    for number in range(20):
        write_whole(tmp_path / f"{number}.txt", lambda partial: partial.write_text("a"))
    assert listed.count(tmp_path) == 1
    left = [folder / ".a.txt.0123456789ab.partial" for folder in (tmp_path, tmp_path / "other")]
    for path in left:
        path.mkdir(parents=True)
        write_whole(path.parent / "a.txt", lambda partial: partial.write_text("a"))
    assert [path.exists() for path in left] == [True, False]
    kill(start(FILES + "files.write_whole(Path(sys.argv[1]), Path.touch); print('ready', flush=True)", tmp_path / "b"))
    assert not left[0].exists()


@POSIX
def test_what_a_live_writer_writes_is_not_swept(tmp_path):
    """It is stopped in the middle of its file while another writes beside it, and then goes on."""
    path = tmp_path / "slow.txt"
    code = (
        FILES + "\ndef write(partial):\n print('ready', flush=True)\n sys.stdin.readline()\n partial.write_text('slow')"
    )
    code += "\nfiles.write_whole(Path(sys.argv[1]), write)"
    slow = start(code, path)
    write_whole(tmp_path / "quick.txt", lambda partial: partial.write_text("quick"))
    assert len([name for name in os.listdir(tmp_path) if name.endswith(".partial")]) == 1
    slow.communicate("go\n", timeout=60)
    assert slow.returncode == 0 and path.read_text() == "slow"
    assert sorted(os.listdir(tmp_path)) == ["quick.txt", "slow.txt"]


@POSIX
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_rights_are_those_of_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    write_whole(tmp_path / "a.safetensors", lambda partial: save_file({"a": torch.ones(3)}, partial))
    os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


def test_one_training_in_a_folder(tmp_path):
    """Another process is refused while the first lives; a kill gives the folder free."""
    holder = start(HOLDER, tmp_path)
    with pytest.raises(ValueError, match="another training is at work in this folder. Wait until it ends, stop it, or"):
        lock_training(tmp_path)
    kill(holder)
    release = lock_training(tmp_path)
    with pytest.raises(ValueError, match="another training"):
        lock_training(tmp_path)
    release()
    lock_training(tmp_path)()
    assert os.listdir(tmp_path) == [LOCK_FILE]


@POSIX
def test_a_stopped_training_keeps_its_folder(tmp_path):
    holder = start(HOLDER, tmp_path)
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(ValueError, match="another training"):
        lock_training(tmp_path)
    kill(holder)


@POSIX
def test_a_folder_that_cannot_be_written_is_not_said_to_be_in_use(tmp_path):
    """Neither one without the right to write nor one below a file."""
    (tmp_path / "closed").mkdir(mode=0o500)
    (tmp_path / "file").touch()
    user = os.geteuid()
    with pytest.raises(
        ValueError, match="file/below: this folder cannot be written .Not a directory.. Make it writable"
    ):
        lock_training(tmp_path / "file" / "below")
    if user == 0:
        os.seteuid(65534)  # root may write everywhere
    try:
        with pytest.raises(
            ValueError, match="closed: this folder cannot be written .Permission denied.. Make it writable"
        ):
            lock_training(tmp_path / "closed")
    finally:
        os.seteuid(user)
