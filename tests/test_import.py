"""What importing the pack costs on top of ComfyUI, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import folder_paths
import pytest

from mmdiff_model.host import MINIMUM

ROOT = Path(__file__).resolve().parent.parent
IMPORT_MILLISECONDS = 50
STARTS = 6

IMPORT = """
import json, sys, time
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, {comfyui!r})
import comfy.options
comfy.options.enable_args_parsing()
import nodes
from comfy_api.latest import io, ui
import importlib.util
before = set(sys.modules)
spec = importlib.util.spec_from_file_location("mm_diff", {init!r}, submodule_search_locations=[{root!r}])
module = importlib.util.module_from_spec(spec)
sys.modules["mm_diff"] = module
start = time.process_time()
spec.loader.exec_module(module)
seconds = time.process_time() - start
print(json.dumps([1000 * seconds, sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})]))
"""


def test_import_is_quick_and_leaves_heavy_packages_for_later(tmp_path):
    """Measured as at every start but the first, which compiles to bytecode; the best of some, for other programs slow a
    process down."""
    script = IMPORT.format(comfyui=folder_paths.base_path, init=str(ROOT / "__init__.py"), root=str(ROOT))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    command = [sys.executable, "-c", script]
    for _ in range(1 + STARTS):
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        milliseconds, imported = json.loads(run.stdout.splitlines()[-1])
        if milliseconds < IMPORT_MILLISECONDS:
            break
    assert milliseconds < IMPORT_MILLISECONDS
    assert "mm_diff" in imported
    assert not {"insightface", "onnxruntime", "kornia", "transformers"} & set(imported)


OLD_HOST = """
import importlib.util, sys
sys.path.insert(0, {host!r})
spec = importlib.util.spec_from_file_location("mm_diff", {init!r}, submodule_search_locations=[{root!r}])
module = importlib.util.module_from_spec(spec)
sys.modules["mm_diff"] = module
spec.loader.exec_module(module)
print(module.NODE_CLASS_MAPPINGS, hasattr(module, "comfy_entrypoint"))
"""


@pytest.mark.parametrize(("version", "found"), [("0.3.40", "this is 0.3.40"), (None, "this one is older")])
def test_a_host_that_is_too_old_loads_the_pack_and_hears_what_it_needs(tmp_path, version, found):
    """A process without ComfyUI, for an old one has neither V3 nodes nor most of what the pack imports."""
    if version:
        (tmp_path / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    script = OLD_HOST.format(host=str(tmp_path), init=str(ROOT / "__init__.py"), root=str(ROOT))
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "{} False\n"
    assert f"MM-Diff needs ComfyUI {MINIMUM} or newer, {found}" in run.stderr and "Update ComfyUI" in run.stderr
