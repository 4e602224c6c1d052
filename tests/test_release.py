"""What is installed and published: pip's package, the requirements, the registry's archive and its addresses."""

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import folder_paths
import pytest

import check_release
import setup_host
from conftest import PACK, ROOT
from live import LiveServer
from mmdiff_model.host import MINIMUM
from schema_snapshot import snapshot
from workflow_api import to_api

PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
ARCHIVE_BYTES = 20e6
DEMO = "workflows/MM-Diff Demo 1, two characters (nothing to download).json"
PACK_FOLDERS = "nodes", "mmdiff_model", "small_world", "web", "locales", "workflows", "subgraphs"
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml"}


def git(*arguments: str) -> list[str]:
    command = ["git", "-c", "core.quotePath=false", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def archive_files() -> list[str]:
    """What `comfy node pack` packs: the tracked files but those that .comfyignore names."""
    ignored = set(git("ls-files", "--cached", "--ignored", "--exclude-from=.comfyignore"))
    return [file for file in git("ls-files") if file not in ignored and (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The archive's files alone, below a path with spaces and Chinese."""
    folder = tmp_path_factory.mktemp("a b \u4e2d\u6587") / "ComfyUI-MM-Diff"
    for file in archive_files():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, folder / file)
    return folder


def dependencies(key: str) -> set[str]:
    found = re.search(rf"^{key} = (\[.*?\])", PROJECT, re.MULTILINE | re.DOTALL)
    return {re.split(r"[<>=!~]", name)[0] for name in ast.literal_eval(found[1])}


def imported() -> set[str]:
    """The packages that the pack's own code imports, beside Python's and ComfyUI's."""
    names = set()
    for folder in ("nodes", "mmdiff_model", "small_world"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module.partition(".")[0])
    hosts = {path.stem for path in Path(folder_paths.base_path).iterdir()}
    return {PACKAGES.get(name, name) for name in names - hosts - set(sys.stdlib_module_names) - {"mmdiff_model"}}


def test_requirements_are_what_is_imported():
    extras = dependencies("faces") | dependencies("training")
    listed = (ROOT / "requirements.txt").read_text().split()
    assert set(listed) == dependencies("dependencies")
    assert imported() - extras == set(listed)
    assert dependencies("faces") <= imported()


def test_requirements_ask_for_nothing_that_the_host_has_not():
    host = (Path(folder_paths.base_path) / "requirements.txt").read_text().lower()
    names = {re.split(r"[<>=!~ ]", line)[0] for line in host.splitlines()}
    assert not [name for name in dependencies("dependencies") if name not in names]
    assert not re.findall(r"[<>=!~]", (ROOT / "requirements.txt").read_text()), "a bound may change the host's packages"


def test_installing_the_requirements_changes_nothing():
    report = ["--dry-run", "--quiet", "--report", "-", "-r", "requirements.txt"]
    run = subprocess.run([sys.executable, "-m", "pip", "install", *report], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["install"] == []


def test_pip_installs_the_pack_as_one_package(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--quiet", "--target"]
    run = subprocess.run([*command, tmp_path, "."], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    [distribution] = importlib.metadata.distributions(path=[str(tmp_path)])
    assert {file.parts[0] for file in distribution.files if ".dist-info" not in str(file)} == {"mm_diff"}
    script = f"""
import sys
sys.argv = ["main.py", "--cpu"]
sys.path[:0] = [{str(tmp_path)!r}, {folder_paths.base_path!r}]
import comfy.options
comfy.options.enable_args_parsing()
import asyncio, mm_diff
from mm_diff.nodes.demo import MMDiffDemoModels
nodes = asyncio.run(asyncio.run(mm_diff.comfy_entrypoint()).get_node_list())
print(sorted(node.GET_SCHEMA().node_id for node in nodes), len(MMDiffDemoModels.execute().args))
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == f"{sorted(snapshot(sys.modules[PACK]))} 5"


def test_versions_agree():
    needed = re.search(r'^requires-python = ">=(.*)"', PROJECT, re.MULTILINE)[1]
    assert needed == ".".join(map(str, setup_host.MINIMUM_PYTHON))
    assert f'target-version = "py{needed.replace(".", "")}"' in PROJECT
    assert f'python-version = "{needed}"' in (ROOT / "ty.toml").read_text()
    assert f"Python {needed} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_registry_asks_for_the_oldest_comfyui_that_the_pack_loads_in():
    assert re.findall(r'^requires-comfyui = "(.*)"', PROJECT, re.MULTILINE) == [f">={MINIMUM}"]


def test_the_archive_is_small_and_holds_no_development_files():
    files = archive_files()
    assert {"__init__.py", "requirements.txt", "pyproject.toml", "LICENSE", "README.md", "tools/demo.py"} <= set(files)
    assert not [file for file in files if re.match(r"tests/|\.|tools/tiny_|tools/test\.py", file)]
    assert sum((ROOT / file).stat().st_size for file in files) < ARCHIVE_BYTES
    assert set(
        git("ls-files", "web", "locales", "workflows", "subgraphs", "nodes", "mmdiff_model", "small_world")
    ) <= set(files)


def test_every_ignored_path_is_there():
    patterns = [line for line in (ROOT / ".comfyignore").read_text().splitlines() if line and not line.startswith("#")]
    assert not [pattern for pattern in patterns if not (ROOT / pattern).exists()]


@pytest.mark.hosts
@pytest.mark.live
def test_the_archive_alone_paints_the_demo(unpacked):
    with LiveServer(Path(folder_paths.base_path), packs={"ComfyUI-MM-Diff": unpacked}) as server:
        workflow = json.loads((unpacked / DEMO).read_text(encoding="utf-8"))
        outputs = server.run(to_api(workflow, server.object_info()))
        assert all(len(picture) > 1000 for picture in server.images(outputs))
        assert server.images(outputs)


def test_unknown_addresses_stand_in_one_file_and_stop_a_release():
    words = re.compile(r"\b(OWNER|PUBLISHER)\b")
    texts = {
        file: (ROOT / file).read_text(encoding="utf-8")
        for file in git("ls-files")
        if Path(file).suffix in (".md", ".py", ".toml", ".json", ".yml", ".yaml", ".txt", ".svg")
    }
    own = {"pyproject.toml", "tools/check_release.py", "tests/test_release.py"}
    assert not [file for file, text in texts.items() if words.search(text) and file not in own]
    assert not [file for file, text in texts.items() if "github.com/mm-diff" in text and file not in own]
    unfilled = [line for line in PROJECT.splitlines() if re.search(r'"[^"]*\b(OWNER|PUBLISHER)\b', line)]
    assert len(check_release.lacking(PROJECT, CHANGELOG)) == len(unfilled)
    filled = re.sub(r"\bOWNER\b|\bPUBLISHER\b", "someone", PROJECT)
    assert check_release.lacking(filled, CHANGELOG) == []
    [sentence] = check_release.lacking(filled.replace('version = "0.1.0"', 'version = "9.9.9"'), CHANGELOG)
    assert "CHANGELOG.md has no section '## 9.9.9'" in sentence
    assert "PublisherId: 'PUBLISHER' is not filled in" in "".join(
        check_release.lacking(re.sub('^PublisherId = ".*"', 'PublisherId = "PUBLISHER"', filled, flags=re.M), CHANGELOG)
    )
