"""Setting up: whose ComfyUI is used, and what a failure says."""

import io
import tarfile
import venv

import pytest

import setup_host
from setup_host import SetupError


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
    monkeypatch.setattr(setup_host, "ROOT", comfyui / "custom_nodes" / "ComfyUI-MM-Diff")
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
    python = setup_host.venv_python(comfyui / "venv")
    assert f"{python} -m pip install torch" in str(failure.value)
    assert "scikit-image" in str(failure.value) and "COMFYUI_PATH=own" in str(failure.value)
    assert sorted(comfyui.rglob("*")) == files_before


def test_a_failed_step_says_which_and_what_to_try():
    command = [setup_host.sys.executable, "-c", "print('no space left'); raise SystemExit(3)"]
    with pytest.raises(SetupError, match=r"(?s)^\[2/4\] failed.*no space left\nFree some$"):
        setup_host.run_step("[2/4]", command, "Free some")


def test_extract_takes_one_folder(tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name in ("top/vendor/ComfyUI/comfy/a.py", "top/vendor/other.py", "top/setup.py"):
            archive.addfile(tarfile.TarInfo(name))
    packed.seek(0)
    with tarfile.open(fileobj=packed) as archive:
        setup_host.extract(archive, "vendor/ComfyUI", tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "comfy" / "a.py"]


def test_link_replaces_an_older_link(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
        setup_host.link_folder(folder, tmp_path / "link")
        setup_host.link_folder(folder, tmp_path / "link")
    assert (tmp_path / "link").resolve() == new
    assert old.is_dir()
