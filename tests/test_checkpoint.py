"""Checkpoints in every layout and dtype, and every kind of damaged file."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mm_diff_pack.nodes.checkpoints import MMDiffLoader
from mm_diff_pack.nodes.sockets import connected_subjects
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from helpers import random_subject
from mmdiff_model.checkpoint import (
    ADAPTER_GROUPS,
    OFFICIAL_FILES,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from mmdiff_model.checkpoint_files import read_safetensors
from mmdiff_model.digest import fingerprint
from mmdiff_model.subject_file import SubjectFileError, load_subject
from mmdiff_model.vision import check_clip_vision
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


def changed(single: Path, target: Path, change, keep_metadata: bool = False) -> Path:
    """The single file with its tensors changed."""
    tensors = load_file(single)
    change(tensors)
    with safe_open(single, framework="pt") as file:
        save_file(tensors, target, file.metadata() if keep_metadata else None)
    return target


def cut(key: str, value):
    """Changes the first tensor whose name holds `key`; None takes it away."""

    def change(tensors: dict) -> None:
        name = next(name for name in tensors if key in name)
        tensors[name] = None if value is None else value(tensors[name]).contiguous()
        if value is None:
            del tensors[name]

    return change


def drop_all(key: str):
    def change(tensors: dict) -> None:
        for name in [name for name in tensors if key in name]:
            del tensors[name]

    return change


def rename(old: str, new: str):
    def change(tensors: dict) -> None:
        for name in [name for name in tensors if old in name]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return change


FAR = "text_encoder.text_model.encoder.layers.9000."
DAMAGES = {
    "it has no vision weights": drop_all("vision."),
    "layers.3.mlp.fc1.bias' is missing": cut("vision_model.encoder.layers.3.mlp.fc1.bias", None),
    "up_blocks.0.attentions.1.transformer_blocks.1' is missing": drop_all(
        "up_blocks.0.attentions.1.transformer_blocks.1."
    ),
    "mid_block.attentions.0.transformer_blocks.0' is missing": drop_all("mid_block"),
    "down_blocks.2.attentions.0.transformer_blocks.0.attn1.* is missing": drop_all(
        "down_blocks.2.attentions.0.transformer_blocks.0.attn1"
    ),
    "holds NaN or infinite": cut("unet_lora.", lambda tensor: tensor * float("nan")),
    "holds NaN or infinite values": cut("cls_head.proj_1.bias", lambda tensor: tensor * float("inf")),
    "is of torch.int8": cut("text_lora.", lambda tensor: tensor.to(torch.int8)),
    "fc1.weight' has shape": cut("text_fusion_1.fc1.weight", lambda tensor: tensor[:, :-1]),
    "down.weight' has shape": cut("text_lora.", lambda tensor: tensor[:, :-1]),
    "is not an attention of an SDXL UNet": rename("mid_block.attentions.0", "middle.attentions.0"),
    "is no tensor of MM-Diff": lambda tensors: tensors.update(optimizer=torch.zeros(1)),
    "text_encoder.text_model.encoder.layers.3.* is missing": rename("text_encoder.text_model.encoder.layers.3.", FAR),
}


@pytest.mark.parametrize("named", DAMAGES)
def test_a_file_that_is_not_whole(named, single, tmp_path):
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(changed(single, tmp_path / "damaged.safetensors", DAMAGES[named]))


@pytest.mark.parametrize("number", ["1000000000000", "9" * 5000, "-1"])
def test_a_layer_of_a_number_without_end(number, folder):
    """A list of that length would take the memory of the server."""
    state = torch.load(folder / OFFICIAL_FILES[1])
    state = {key.replace("layers.3.", f"layers.{number}."): tensor for key, tensor in state.items()}
    torch.save(state, folder / OFFICIAL_FILES[1])
    with pytest.raises(CheckpointError, match="not a key of a text encoder LoRA"):
        load_checkpoint(folder)


ODD_VALUES = {
    "sparse": torch.ones(3).to_sparse(),
    "expanded": torch.zeros(1).expand(1_000_000, 1_000_000),
    "meta": torch.ones(3, device="meta"),
    "quantised": torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8),
    "text": "text",
    "nothing": None,
}


@pytest.mark.parametrize("name", OFFICIAL_FILES)
@pytest.mark.parametrize("odd", ODD_VALUES)
def test_values_that_are_no_dense_tensors(name, odd, folder):
    state = torch.load(folder / name)
    inner = state["mm_fuse_one"] if name == OFFICIAL_FILES[2] else state
    inner[next(iter(inner))] = ODD_VALUES[odd]
    torch.save(state, folder / name)
    with pytest.raises(CheckpointError, match=f"'{name}'"):
        load_checkpoint(folder)


def test_keys_that_are_no_names(folder):
    state = torch.load(folder / OFFICIAL_FILES[0])
    state[7] = torch.zeros(2)
    torch.save(state, folder / OFFICIAL_FILES[0])
    with pytest.raises(CheckpointError, match="holds 7 where the name of a tensor should be"):
        load_checkpoint(folder)


def test_a_file_that_unpacks_to_more_than_it_is(folder):
    """PyTorch stores; an archive that is compressed could hold any size."""
    path = folder / OFFICIAL_FILES[0]
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match="truncated or not a PyTorch file"):
        load_checkpoint(folder)


def test_a_tensor_that_is_marked_as_a_folder(folder):
    """Found by fuzzing: one bit of the archive's directory, and PyTorch loads other numbers without a word."""
    path = folder / OFFICIAL_FILES[0]
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        entry = whole.index(b"PK\x01\x02", whole.index(b"/data/1", archive.start_dir))
    path.write_bytes(whole[: entry + 38] + b"\x10" + whole[entry + 39 :])
    with pytest.raises(CheckpointError, match="truncated or not a PyTorch file"):
        load_checkpoint(folder)


def test_the_digest_covers_every_tensor(single, checkpoint, tmp_path):
    """Any other number is another checkpoint; a file whose tensors are not those that it was saved with is refused."""
    for number, key in enumerate(
        ("unet_lora.", "text_lora.", "vision.", "text_fusion_1.fc1.weight", "cls_head.fc.bias")
    ):
        change = cut(key, lambda tensor: tensor + 0.25)
        other = load_checkpoint(changed(single, tmp_path / f"{number}.safetensors", change))
        assert other.hash != checkpoint.hash
        with pytest.raises(CheckpointError, match="is damaged: its tensors are not those that were saved"):
            load_checkpoint(changed(single, tmp_path / "kept.safetensors", change, keep_metadata=True))


def test_a_file_of_version_1_and_subjects_made_with_it(single, checkpoint, tmp_path):
    """The old hash begins the new one, so that old subjects fit, whatever the checkpoint is loaded from."""
    tensors = load_file(single)
    old_hash = fingerprint({key: value for key, value in tensors.items() if key.startswith(ADAPTER_GROUPS)})
    metadata = {"format_version": "1", "variant": "portrait", "hash": old_hash}
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    old = load_checkpoint(tmp_path / "old.safetensors")
    assert old.hash == checkpoint.hash == load_checkpoint(single).hash
    anna = replace(random_subject(checkpoint, 1), space=old_hash)
    bert = random_subject(old, 2)
    for against in (old, checkpoint, None):
        assert connected_subjects({"subject_1": anna, "subject_2": bert}, against) == [anna, bert]
    save_file(tensors, tmp_path / "damaged.safetensors", {**metadata, "hash": "0123456789abcdef"})
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(tmp_path / "damaged.safetensors")


def test_the_bundled_checkpoint_is_of_version_1_and_loads():
    loaded = load_checkpoint(ROOT / "small_world" / "weights" / "mmdiff.safetensors")
    assert loaded.hash.startswith("ba8ce6d98fc4857c") and loaded.text_encoder_2_lora


def test_a_checkpoint_that_was_replaced_is_loaded_anew(models_folder, single):
    path = models_folder / "mmdiff" / "replaced.safetensors"
    path.write_bytes(single.read_bytes())
    state = MMDiffLoader.fingerprint_inputs(path.name, False)
    assert state == MMDiffLoader.fingerprint_inputs(path.name, False)
    save_file(load_file(single), path)
    assert MMDiffLoader.fingerprint_inputs(path.name, False) != state
    path.unlink()


def test_vision_weights_of_another_encoder(checkpoint, tiny):
    other = replace(checkpoint, vision={"vision_model.encoder.layers.9.mlp.fc1.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="clip_vision: the checkpoint .* tunes 'vision_model.encoder.layers.9.*lacks"):
        check_clip_vision(tiny.clip_vision, other)


def test_a_file_overwritten_in_place_changes_nothing_that_was_read(single, tmp_path):
    """As `cp` does it: a tensor that is a view of the file would change, or end the process."""
    path = tmp_path / "changing.safetensors"
    path.write_bytes(single.read_bytes())
    tensors, _ = read_safetensors(path)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors.items())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_a_pipe_is_no_file(folder, tmp_path):
    """Opening one waits for a writer that never comes."""
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match=r"'pipe.safetensors' is not a file"):
        load_checkpoint(pipe)
    with pytest.raises(SubjectFileError, match=r"'pipe.safetensors' is not a file"):
        load_subject(pipe)
    (folder / "custom_weights.bin").unlink()
    os.mkfifo(folder / "custom_weights.bin")
    with pytest.raises(CheckpointError, match=r"'custom_weights.bin' is not a file"):
        load_checkpoint(folder)
