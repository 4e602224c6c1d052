"""A real ComfyUI on the CPU in float32, the pack as ComfyUI imports it, and tiny real models."""

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACK = "mm_diff_pack"

# comfy reads the command line when it is first imported
sys.argv = [sys.argv[0], "--cpu", "--fp32-text-enc", "--fp32-unet"]
sys.path.append(str(ROOT))

from mmdiff_model.host import find_comfyui  # noqa: E402

sys.path[:0] = [str(find_comfyui()), str(ROOT / "tools")]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

if os.environ.get("MMDIFF_DYNAMIC_VRAM"):
    import dynamic_vram  # noqa: F401

import folder_paths  # noqa: E402
import torch  # noqa: E402

torch.set_grad_enabled(False)
torch.set_num_threads(1)  # threads of tiny tensors only wait for each other


def import_pack():
    """The repository as a package, under a name of its own: ComfyUI imports custom nodes in the same way."""
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK] = module
    spec.loader.exec_module(module)
    # tests say `from mmdiff_model.text import ...` and get the modules that the nodes use
    for name in [name for name in sys.modules if name.startswith(f"{PACK}.mmdiff_model")]:
        sys.modules[name.removeprefix(f"{PACK}.")] = sys.modules[name]
    return module


pack = import_pack()


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory) -> Path:
    """A models folder of the test run's own, known to ComfyUI's folder_paths."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("mmdiff", "mmdiff_subjects", "insightface", "embeddings"):
        (folder / name).mkdir()
        folder_paths.add_model_folder_path(name, str(folder / name), is_default=True)
    return folder


@pytest.fixture(scope="session")
def tiny(models_folder) -> SimpleNamespace:
    """The tiny SDXL: model, clip, vae, clip_vision."""
    from tiny_pack.models import make_clip, make_clip_vision, make_model, make_vae

    return SimpleNamespace(
        model=make_model(20),
        clip=make_clip(20, str(models_folder / "embeddings")),
        vae=make_vae(20),
        clip_vision=make_clip_vision(20),
    )


@pytest.fixture(scope="session")
def official_folder(models_folder) -> Path:
    """The tiny checkpoint in the official format, in models/mmdiff/portrait."""
    from tiny_pack.checkpoint import write_official_checkpoint

    return write_official_checkpoint(models_folder / "mmdiff" / "portrait")


@pytest.fixture(scope="session")
def checkpoint(official_folder):
    from mmdiff_model.checkpoint import load_checkpoint

    return load_checkpoint(official_folder)


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory) -> Path:
    """Untrained weights of the small world's whole family, saved as trained ones are."""
    sys.path.append(str(ROOT))
    from small_world.family import models
    from small_world.phases.phase import write_weights

    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    base = models.build_base()
    modules = {
        models.CODEC: models.build_codec(),
        models.VISION_ENCODER: models.build_vision(),
        models.TEXT_ENCODERS: models.build_text(),
        models.UNET_MODEL: base.diffusion_model,
    }
    for name, module in modules.items():
        write_weights(folder, name, module.state_dict())
    return folder
