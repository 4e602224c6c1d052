"""Run by test_dynamic_vram.py under DynamicVRAM, beside the parity tests: demo models, and copies for training."""

import copy
import gc
import os
import sys

import pytest
import torch
from comfy.model_patcher import ModelPatcherDynamic

from conftest import ROOT, pack
from demo_latents import DEMO_LATENTS, paint_demo
from dynamic_vram import DynamicOnCpu

sys.path.append(str(ROOT))

from mmdiff_model.training.copies import DYNAMIC, copy_base  # noqa: E402
from small_world.drawn.records import write_records  # noqa: E402
from small_world.drawn.scenes import make_scene  # noqa: E402

PATCHED = "diffusion_model.time_embed.0.weight"


def test_demo_models_paint_the_same():
    models, latents = paint_demo()
    assert isinstance(models[0], ModelPatcherDynamic) and isinstance(models[1].patcher, ModelPatcherDynamic)
    torch.testing.assert_close(latents, torch.load(os.environ[DEMO_LATENTS]), atol=1e-4, rtol=0)


@pytest.fixture
def loaded():
    """The demo's models as a run leaves them: loaded by the host, with a LoRA on the UNet."""
    models, _ = paint_demo()
    model = models[0].clone()
    model.add_patches({PATCHED: (torch.ones_like(model.model.state_dict()[PATCHED]),)}, 0.5)
    return model, *models[1:4]


def test_copies_for_training_hold_nothing_of_the_host(loaded):
    model, clip, vae, vision = loaded
    before = model.model.state_dict()[PATCHED].clone()
    with torch.inference_mode(False):
        base = copy_base(model, clip, vae, vision, torch.float32)
    assert torch.equal(model.model.state_dict()[PATCHED], before)
    torch.testing.assert_close(base.model.model.state_dict()[PATCHED], before + 0.5)
    pairs = (base.model, model), (base.clip.patcher, clip.patcher), (base.clip_vision.patcher, vision.patcher)
    for own, hosts in pairs:
        assert not own.is_dynamic() and hosts.is_dynamic()
        assert not [name for module in own.model.modules() for name in DYNAMIC if name in vars(module)]
        theirs = {weight.data_ptr() for weight in hosts.model.parameters()}
        assert not theirs & {weight.data_ptr() for weight in own.model.parameters()}
        assert hosts.model.dynamic_pins and hosts.model.dynamic_patchers
    del base, own
    gc.collect()


def test_host_memory_is_never_copied(loaded, monkeypatch):
    """A copy of a pinned buffer frees it a second time."""
    buffers = sys.modules["comfy_aimdo.host_buffer"].HostBuffer
    monkeypatch.setattr(buffers, "__deepcopy__", lambda *_: pytest.fail("a HostBuffer was copied"), raising=False)
    model, clip, vae, vision = loaded
    with torch.inference_mode(False):
        copy_base(model, clip, vae, vision, torch.float32)
    with pytest.raises(pytest.fail.Exception):
        copy.deepcopy(model.model.dynamic_pins)


def test_train_node(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr("folder_paths.output_directory", str(tmp_path))
    write_records(tmp_path / "records", [make_scene(6, number) for number in range(2)])
    train = sys.modules[f"{pack.__name__}.nodes.train"].MMDiffTrain
    names = "model", "clip", "vae", "clip_vision"
    widgets = {
        **{"data": str(tmp_path / "records"), "variant": "subject", "name": "dynamic", "steps": 2, "batch_size": 1},
        **{"accumulation": 1, "learning_rate": 1e-3, "size": 128, "lora_rank": 4, "constraint_weight": 0.1},
        **{"gradient_checkpointing": True, "seed": 0},
    }
    with torch.enable_grad():
        checkpoint, plot = train.execute(**dict(zip(names, loaded, strict=True)), **widgets).result
    assert isinstance(checkpoint.adapter, DynamicOnCpu) and plot.shape[-1] == 3
    assert (tmp_path / "mmdiff_training" / "dynamic" / "mmdiff.safetensors").is_file()
