"""What importing the pack costs on top of ComfyUI, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import folder_paths

ROOT = Path(__file__).resolve().parent.parent
IMPORT_MILLISECONDS = 50

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
    """Measured as at every start but the first, which compiles to bytecode."""
    script = IMPORT.format(comfyui=folder_paths.base_path, init=str(ROOT / "__init__.py"), root=str(ROOT))
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    for _ in range(2):
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    milliseconds, imported = json.loads(run.stdout.splitlines()[-1])
    assert milliseconds < IMPORT_MILLISECONDS
    assert "mm_diff" in imported
    assert not {"insightface", "onnxruntime", "kornia", "transformers"} & set(imported)
