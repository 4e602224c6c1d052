"""Setting up: whose ComfyUI is used, and what a failure says."""

import ast
import io
import re
import signal
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path

import pytest
import yaml

import demo_pictures
import setup_host
import setup_steps
from conftest import ROOT
from mmdiff_model import host
from setup_steps import SetupError


@pytest.fixture
def comfyui(tmp_path):
    """A folder that looks like a ComfyUI, with a virtual environment that has no packages."""
    folder = tmp_path / "ComfyUI"
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text('__version__ = "0.31.2"\n')
    venv.create(folder / "venv", symlinks=True)
    return folder


def test_comfyui_path_comes_first(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert setup_host.users_comfyui() == comfyui
    monkeypatch.setenv("COMFYUI_PATH", "own")
    assert setup_host.users_comfyui() is None


def test_comfyui_around_the_clone_comes_next(comfyui, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(host, "ROOT", comfyui / "custom_nodes" / "ComfyUI-MM-Diff")
    assert setup_host.users_comfyui() == comfyui


def test_comfyui_path_without_a_comfyui(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(SetupError, match=r"COMFYUI_PATH.*holds no ComfyUI"):
        setup_host.prepare()


def test_missing_packages_are_named_and_not_installed(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    files_before = sorted(comfyui.rglob("*"))
    with pytest.raises(SetupError) as failure:
        setup_host.prepare()
    python = setup_steps.venv_python(comfyui / "venv")
    assert f"{python} -m pip install torch" in str(failure.value)
    assert "scikit-image" in str(failure.value) and "COMFYUI_PATH=own" in str(failure.value)
    assert sorted(comfyui.rglob("*")) == files_before


def test_packages_that_are_there_are_not_missing(monkeypatch):
    running = host.find_comfyui()
    monkeypatch.setattr(setup_host, "users_python", lambda comfyui: Path(sys.executable))
    assert setup_host.use_users(running) == setup_host.Host(running, Path(sys.executable))


def test_a_failed_step_says_which_and_what_to_try():
    command = [setup_host.sys.executable, "-c", "print('no space left'); raise SystemExit(3)"]
    with pytest.raises(SetupError, match=r"(?s)^\[2/4\] failed.*no space left\nFree some$"):
        setup_steps.run_step("[2/4]", command, "Free some")


def test_extract_takes_one_folder(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("top/vendor/ComfyUI/comfy/a.py", "top/vendor/other.py", "top/setup.py"):
            archive.addfile(tarfile.TarInfo(name))
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        setup_steps.extract(archive, "vendor/ComfyUI", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "comfy" / "a.py"]


def test_link_replaces_an_older_link(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        setup_steps.link_folder(folder, tmp_path / "link")
        setup_steps.link_folder(folder, tmp_path / "link")
    assert (tmp_path / "link").resolve() == new
    assert old.is_dir()


def test_an_interrupted_step_ends_what_it_started(tmp_path):
    """A terminal that closes, or a time limit: pip's own children must not go on beside the next set-up."""
    late = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    step = f"import subprocess, sys; print('started', flush=True); subprocess.run([sys.executable, '-c', {late!r}])"
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import setup_host
setup_host.users_comfyui = lambda: None
setup_host.make_own = lambda: setup_host.run_step("[1/1]", [sys.executable, "-c", {step!r}], "")
print("ready", flush=True)
print(setup_host.prepare_or_say())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out == "None\n" and err.strip() == setup_host.STOPPED
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_without_a_network_the_cause_stands_last():
    line = "WARNING: Retrying after connection broken by 'NewConnectionError(...)'"
    command = [sys.executable, "-c", f"print({line!r}); print('ERROR: No matching distribution'); raise SystemExit(1)"]
    with pytest.raises(SetupError) as failure:
        setup_steps.run_step("[2/4]", command, "Free some")
    lines = str(failure.value).splitlines()
    assert len(lines) == 3 and lines[-1] == setup_steps.NO_NETWORK


def test_an_environment_borrows_what_it_lacks(tmp_path):
    packages = {}
    for name in ("lender", "borrower"):
        venv.create(tmp_path / name, symlinks=True)
        [packages[name]] = tmp_path.glob(f"{name}/[Ll]ib/**/site-packages")
        (packages[name] / "both.py").write_text(f"source = {name!r}\n")
    (packages["lender"] / "lent.py").write_text("source = 'lender'\n")
    setup_steps.lend_packages(tmp_path / "lender", tmp_path / "borrower")
    command = [
        setup_steps.venv_python(tmp_path / "borrower"),
        "-c",
        "import both, lent; print(both.source, lent.source)",
    ]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "borrower lender\n"


def test_a_read_only_folder_is_the_cause_whatever_the_step():
    line = "OSError: [Errno 30] Read-only file system: '.host'"
    with pytest.raises(SetupError) as failure:
        setup_steps.run_step("[2/4]", [sys.executable, "-c", f"print({line!r}); raise SystemExit(2)"], "Free some")
    assert str(failure.value).splitlines()[1:] == [f"    {line}", setup_steps.UNWRITABLE]


def test_a_half_made_environment_is_made_again(tmp_path):
    own = setup_host.Own("0.30.0", tmp_path / "ComfyUI", tmp_path / ".venv")
    venv.create(own.venv, symlinks=True)
    setup_host.make_venv(own)
    assert subprocess.run([own.python, "-m", "pip", "--version"], capture_output=True).returncode == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(host, "ROOT", tmp_path)
    monkeypatch.setattr(setup_host, "VENV", tmp_path / "file" / ".venv")
    (tmp_path / "file").touch()
    with pytest.raises(SetupError, match=f"(?s){tmp_path}.*Not a directory.*copy it elsewhere"):
        setup_host.prepare()


def test_the_demo_says_first_that_its_pictures_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(demo_pictures, "OUTPUT", tmp_path / "file" / "demo_output")
    assert demo_pictures.main(str(tmp_path)) == 1
    said = capsys.readouterr()
    assert said.out == "" and f"{tmp_path / 'file' / 'demo_output'}: Not a directory.\n" in said.err
    assert "copy it elsewhere" in said.err


def test_another_version_has_a_place_of_its_own(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setenv("MMDIFF_HOST", host.MINIMUM)
    own = setup_host.Own.chosen()
    assert own.comfyui == ROOT / ".host" / host.MINIMUM / "ComfyUI" == host.own_comfyui()
    assert own.venv == ROOT / ".host" / host.MINIMUM / ".venv"
    monkeypatch.setenv("MMDIFF_HOST", host.OWN_VERSION)
    assert setup_host.Own.chosen().venv == ROOT / ".venv"
    monkeypatch.setenv("MMDIFF_HOST", "0.1.0")
    with pytest.raises(SetupError, match=r"MMDIFF_HOST: ComfyUI 0.1.0 cannot be downloaded. There are 0.30.0"):
        setup_host.prepare()


def test_every_host_is_in_the_matrix_and_in_the_table():
    """Whatever MMDIFF_HOST takes is run before a release, and users are told what came of it, and of others."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = {run["host"]: run["arguments"] for run in jobs["suite"]["strategy"]["matrix"]["include"]}
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/hosts.md")]
    tables = [set(re.findall(r"^\| (\d+\.\d+\.\d+) \|", page, re.MULTILINE)) for page in pages]
    assert set(matrix) == set(setup_host.SOURCES)
    assert tables[0] == tables[1] >= set(matrix)
    assert matrix[host.MINIMUM] == "-q -m hosts"


def test_two_wishes_are_refused(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    monkeypatch.setenv("MMDIFF_HOST", "0.18.2")
    with pytest.raises(SetupError, match=r"(?s)MMDIFF_HOST asks for ComfyUI 0.18.2, COMFYUI_PATH.*Unset one"):
        setup_host.prepare()


def test_both_finders_agree(comfyui, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(comfyui))
    assert host.find_comfyui() == comfyui
    monkeypatch.setenv("COMFYUI_PATH", "own")
    monkeypatch.setattr(host, "ROOT", comfyui.parent)
    with pytest.raises(host.NoComfyUI, match=r"(?s)\.host.*setup_host.py"):
        host.find_comfyui()


@pytest.mark.parametrize(
    "file", ["tools/setup_host.py", "tools/setup_steps.py", "tools/test.py", "tools/demo.py", "mmdiff_model/host.py"]
)
def test_an_old_python_can_read_what_says_that_it_is_too_old(file):
    ast.parse((ROOT / file).read_text(), feature_version=(3, 8))


def test_an_old_python_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 8, 18))
    with pytest.raises(SetupError, match=r"Python 3\.\d+ or newer is needed"):
        setup_host.prepare()
