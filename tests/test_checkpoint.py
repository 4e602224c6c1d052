"""Checkpoints in every layout and dtype, and every kind of damaged file."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mmdiff_model.checkpoint import OFFICIAL_FILES, CheckpointError, load_checkpoint, save_checkpoint
from tiny_pack.checkpoint import write_official_checkpoint

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def folder(tmp_path, official_folder) -> Path:
    """A copy of the official files, to be damaged."""
    copy = tmp_path / "portrait"
    copy.mkdir()
    for name in OFFICIAL_FILES:
        (copy / name).write_bytes((official_folder / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def single(tmp_path_factory, checkpoint) -> Path:
    path = tmp_path_factory.mktemp("single") / "portrait.safetensors"
    save_checkpoint(checkpoint, path)
    return path


def test_sizes_and_variant_come_from_the_tensors(checkpoint):
    assert checkpoint.variant == "portrait"
    assert checkpoint.sizes.text_dims == (192, 320)
    assert (checkpoint.sizes.context_dim, checkpoint.sizes.num_tokens, checkpoint.sizes.depth) == (512, 4, 4)


def test_one_file_holds_the_same_as_the_folder(checkpoint, single):
    again = load_checkpoint(single)
    assert again.hash == checkpoint.hash
    before, after = checkpoint.tensors(), again.tensors()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_metadata_names_variant_and_sizes(single, checkpoint):
    with safe_open(single, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["variant"] == "portrait"
    assert json.loads(metadata["sizes"])["patch_dim"] == 128
    assert metadata["hash"] == checkpoint.hash


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, tmp_path, checkpoint, tiny):
    half = load_checkpoint(write_official_checkpoint(tmp_path, dtype=dtype))
    assert half.adapter.model.cls_head.fc.weight.dtype == dtype
    assert (half.hash == checkpoint.hash) == (dtype == torch.float16)
    cls = torch.randn(1, 96)
    close = torch.allclose(half.adapter.model.cls_head(cls)[0], checkpoint.adapter.model.cls_head(cls)[0], atol=0.05)
    assert close and half.adapter.model.cls_head(cls)[0].dtype == torch.float32


def test_a_subject_checkpoint_is_known_by_its_keys(single, tmp_path):
    tensors = {key.replace("face_tokens.", "cls_tokens."): tensor for key, tensor in load_file(single).items()}
    tensors["cls_tokens.proj.0.weight"] = tensors["cls_tokens.proj.0.weight"][:, :96].contiguous()
    save_file(tensors, tmp_path / "face.safetensors")
    loaded = load_checkpoint(tmp_path / "face.safetensors")
    assert loaded.variant == "subject"
    assert loaded.sizes.identity_dim == loaded.sizes.cls_dim == 96


@pytest.mark.parametrize("name", OFFICIAL_FILES)
def test_missing_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"lacks {name}.*keep its three official files together"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", OFFICIAL_FILES)
@pytest.mark.parametrize("left", [0.9, 0.01])
def test_truncated_official_file(name, left, folder):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * left)])
    with pytest.raises(CheckpointError, match=name):
        load_checkpoint(folder)


def test_truncated_safetensors(single, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(single.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="'cut.safetensors' is truncated"):
        load_checkpoint(tmp_path / "cut.safetensors")


def test_foreign_safetensors(tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, tmp_path / "style.safetensors")
    with pytest.raises(CheckpointError, match="'style.safetensors' has no MM-Diff subject tokens"):
        load_checkpoint(tmp_path / "style.safetensors")


def test_later_format(single, tmp_path):
    save_file(load_file(single), tmp_path / "later.safetensors", {"format_version": "7"})
    with pytest.raises(CheckpointError, match="format version 7.*Update the pack"):
        load_checkpoint(tmp_path / "later.safetensors")


class Payload:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def test_a_pickle_with_code_is_not_run(folder, tmp_path):
    target = tmp_path / "executed"
    torch.save({"image_encoder": Payload(target)}, folder / "custom_weights.bin")
    with pytest.raises(CheckpointError, match="other than plain tensors and was not opened"):
        load_checkpoint(folder)
    assert not target.exists()
    with (folder / "custom_weights.bin").open("rb") as file:
        assert file.read(2) == b"PK"
    pickle.loads(pickle.dumps(Payload(target)))  # the payload does act where a pickle is trusted
    assert target.exists()


def damage_shape(state: dict) -> None:
    state["mm_fuse_one"]["fc1.weight"] = state["mm_fuse_one"]["fc1.weight"][:, :100]


def damage_group(state: dict) -> None:
    del state["face_embeds_proj"]


def damage_key(state: dict) -> None:
    del state["obj_embeds_proj"]["proj_2.bias"]


def add_group(state: dict) -> None:
    state["optimizer"] = {}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_shape, "fc1.weight"),
        (damage_group, "face_embeds_proj"),
        (damage_key, "proj_2"),
        (add_group, "optimizer"),
    ],
)
def test_wrong_custom_weights(damage, named, folder):
    state = torch.load(folder / "custom_weights.bin")
    damage(state)
    torch.save(state, folder / "custom_weights.bin")
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(folder)


def drop_text_layer(state: dict) -> str:
    key = next(key for key in state if ".layers.3.self_attn.out_proj" in key)
    del state[key]
    return key


def drop_unet_lora(state: dict) -> str:
    del state["5.to_k_lora_image.up.weight"]
    return "to_k_lora_image"


@pytest.mark.parametrize(
    ("name", "damage"), [(OFFICIAL_FILES[1], drop_text_layer), (OFFICIAL_FILES[0], drop_unet_lora)]
)
def test_incomplete_lora(name, damage, folder):
    state = torch.load(folder / name)
    named = damage(state)
    torch.save(state, folder / name)
    with pytest.raises(CheckpointError, match=named.replace(".", r"\.")):
        load_checkpoint(folder)


DISK_FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path[:0] = [{tests!r}]
import conftest
from pathlib import Path
from mmdiff_model.checkpoint import load_checkpoint, save_checkpoint
checkpoint = load_checkpoint({folder!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    save_checkpoint(checkpoint, Path({target!r}) / "new.safetensors")
except OSError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_full_disk_leaves_nothing_behind(folder, tmp_path):
    target = tmp_path / "full"
    code = DISK_FULL.format(tests=str(ROOT / "tests"), folder=str(folder), target=str(target))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "refused: could not write" in run.stdout, run.stderr[-2000:]
    assert list(target.iterdir()) == []
