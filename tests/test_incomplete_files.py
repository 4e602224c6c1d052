"""Checkpoint files that once loaded and painted something else: each is right now, or refused by name."""

import logging
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mm_diff_pack.nodes.sockets import connected_subjects
from torch import Tensor

from helpers import random_subject
from mmdiff_model.checkpoint import OFFICIAL_FILES, CheckpointError, load_checkpoint
from mmdiff_model.completeness import check_text_lora, check_vision
from mmdiff_model.digest import whole_fingerprint
from mmdiff_model.lora import text_patches, unet_patches
from mmdiff_model.subject import encode_subject
from mmdiff_model.text import with_text_lora
from tiny_pack.checkpoint import write_official_checkpoint

UNET, TEXT, CUSTOM = OFFICIAL_FILES
QKVO = ("q", "k", "v", "out")


@pytest.fixture
def changed(tmp_path, official_folder):
    """Writes the official folder with one file's state changed, and gives the folder."""

    def write(name: str, change, text_layout: str = "diffusers") -> Path:
        folder = write_official_checkpoint(tmp_path / "portrait", text_layout=text_layout)
        state = torch.load(folder / name)
        change(state)
        torch.save(state, folder / name)
        return folder

    return write


def drop(*parts: str):
    """Takes away whatever has all of these parts in its name."""

    def change(state: dict) -> None:
        for key in [key for key in state if all(part in key for part in parts)]:
            del state[key]

    return change


def of_vision(change):
    return lambda state: change(state["image_encoder"])


def test_a_tuned_vision_layer_that_is_missing(changed, tiny):
    """The last one is known where CLIP is connected, or by its width; one between others at once."""
    short = load_checkpoint(changed(CUSTOM, of_vision(drop("layers.3."))))
    with pytest.raises(ValueError, match=r"^mmdiff: the checkpoint 'portrait' is incomplete, .*layers\.3' of 4"):
        encode_subject(short, tiny.clip_vision, [torch.rand(64, 64, 3)])

    def gap(state: dict) -> None:
        for key in [key for key in state if "layers.2." in key]:
            state[key.replace("layers.2.", "layers.0.")] = state.pop(key)

    with pytest.raises(CheckpointError, match=r"encoder\.layers\.2' of 4 layers is missing"):
        load_checkpoint(changed(CUSTOM, of_vision(gap)))


def test_depths_of_the_real_encoders(checkpoint):
    """CLIP ViT-L/14 has 24 layers, SDXL's text encoders 12 and 32: what is short of them is refused when it loads."""
    real = replace(checkpoint.sizes, patch_dim=1024, text_dims=(768, 1280))
    tuned = {f"vision_model.encoder.layers.{number}.mlp.fc1.bias": torch.zeros(1) for number in (21, 22, 23)}
    check_vision(tuned, real, True)
    del tuned["vision_model.encoder.layers.23.mlp.fc1.bias"]
    with pytest.raises(ValueError, match=r"encoder\.layers\.23' of 24 layers is missing"):
        check_vision(tuned, real, True)

    def lora(layers: int, width: int, encoder: str) -> dict[str, Tensor]:
        modules = [f"{encoder}.text_model.encoder.layers.{n}.self_attn.{p}_proj" for n in range(layers) for p in QKVO]
        sides = ("down", torch.zeros(1, width)), ("up", torch.zeros(width, 1))
        return {f"{module}.lora_linear_layer.{side}.weight": tensor for module in modules for side, tensor in sides}

    one, two = lora(12, 768, "text_encoder"), lora(32, 1280, "text_encoder_2")
    check_text_lora(one | two, real)
    with pytest.raises(ValueError, match="its 'text_encoder' LoRA has 11 layers, not 12"):
        check_text_lora(lora(11, 768, "text_encoder") | two, real)
    with pytest.raises(ValueError, match="its 'text_encoder_2' LoRA has 31 layers, not 32"):
        check_text_lora(one | lora(31, 1280, "text_encoder_2"), real)


def test_a_text_lora_without_its_last_layer(changed, tiny):
    short = load_checkpoint(changed(TEXT, drop("text_encoder.", "layers.3.")))
    with pytest.raises(ValueError, match=r"^clip: 'text_encoder\..*layers\.3\..*' of these text encoders has no LoRA"):
        with_text_lora(tiny.clip, short)
    short = load_checkpoint(changed(TEXT, drop("text_encoder_2.", "layers.3.")), text_encoder_2_lora=True)
    with pytest.raises(ValueError, match=r"'text_encoder_2\..*layers\.3\..*' of these text encoders has no LoRA"):
        text_patches(tiny.clip.patcher, short.text_lora, True)
    text_patches(tiny.clip.patcher, short.text_lora, False)


@pytest.mark.parametrize(
    "layout, parts, named",
    [
        ("mlp", ("text_encoder.", "layers.3.mlp.fc1"), r"layers\.3\.mlp\.fc1' is missing"),
        ("kohya", ("lora_te1", "layers_2_self_attn_v_proj.alpha"), r"layers\.2\.self_attn\.v_proj\.alpha' is missing"),
    ],
)
def test_a_part_that_other_layers_have(changed, layout, parts, named):
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(changed(TEXT, drop(*parts), layout))


def test_an_attention_that_the_base_model_has(checkpoint, tiny):
    """A UNet LoRA may be whole for a shallower UNet."""
    short = {key: tensor for key, tensor in checkpoint.unet_lora.items() if not key.startswith("mid_block.")}
    with pytest.raises(ValueError, match=r"'mid_block\..*' of this base model has no LoRA in the checkpoint"):
        unet_patches(tiny.model, short)


def test_what_may_be_left_out_is_said(changed, caplog):
    with caplog.at_level(logging.WARNING):
        load_checkpoint(changed(CUSTOM, of_vision(drop("visual_projection"))))
    assert "the checkpoint 'portrait' has no 'visual_projection.weight'" in caplog.text
    caplog.clear()
    load_checkpoint(changed(TEXT, drop("text_encoder.")))
    assert "the checkpoint 'portrait' has no LoRA of the first text encoder" in caplog.text


def test_every_tensor_keeps_its_own_dtype(changed):
    """That of one tensor once became that of all."""

    def mix(state: dict) -> None:
        state["obj_embeds_proj"]["fc.weight"] = state["obj_embeds_proj"]["fc.weight"].half()
        state["mm_fuse_one"]["fc2.bias"][0] = 0.1

    adapter = load_checkpoint(changed(CUSTOM, mix)).adapter.model
    assert adapter.cls_head.fc.weight.dtype == torch.float16
    assert adapter.text_fusion_1.fc2.bias.dtype == torch.float32
    assert adapter.text_fusion_1.fc2.bias[0] == torch.tensor(0.1)


@pytest.mark.parametrize(("value", "dtype"), [(1e300, torch.float64), (3e38, torch.float32), (-7e4, torch.bfloat16)])
def test_a_number_beyond_what_models_compute_with(changed, value, dtype):
    def put(state: dict) -> None:
        key = next(iter(state))
        state[key] = torch.full_like(state[key], value, dtype=dtype)

    with pytest.raises(CheckpointError, match="lora.* holds numbers beyond 65504, which would paint black"):
        load_checkpoint(changed(UNET, put))


def test_the_digest_sees_beyond_half_precision():
    """Within its range digests stay what they were, for subjects carry them."""
    assert whole_fingerprint({"a": torch.tensor([0.1, 65504.0])}) == "f8e1ac03fabcf9ee"
    assert whole_fingerprint({"a": torch.tensor([0.1, 65504.0]).half()}) == "f8e1ac03fabcf9ee"
    assert whole_fingerprint({"a": torch.tensor([1, 5])}) == whole_fingerprint({"a": torch.tensor([1.0, 5.0])})
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        beyond = {whole_fingerprint({"a": torch.tensor([0.1, value], dtype=dtype)}) for value in (1e5, 3e5, -3e5)}
        assert len(beyond) == 3


def test_one_official_file_in_place_of_the_folder(changed):
    with pytest.raises(CheckpointError, match=f"'{UNET}' is one of a checkpoint's three files. Choose the folder"):
        load_checkpoint(changed(UNET, lambda state: None) / UNET)


def test_a_file_without_checksums_is_said_to_be_one(changed, caplog):
    folder = changed(UNET, lambda state: None)
    torch.save(torch.load(folder / UNET), folder / UNET, _use_new_zipfile_serialization=False)
    load_checkpoint(folder)
    assert f"'{UNET}' is in PyTorch's old format, which has no checksums" in caplog.text


@pytest.mark.parametrize("rename", [str, str.upper])
def test_an_archive_with_two_files_of_one_name(changed, rename):
    """PyTorch reads one of them, and Python checks the other."""
    folder = changed(UNET, lambda state: None)
    with zipfile.ZipFile(folder / UNET, "a") as archive, warnings.catch_warnings(action="ignore"):
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        archive.writestr(rename(name), bytes(archive.getinfo(name).file_size))
    with pytest.raises(CheckpointError, match=f"'{UNET}' is truncated or not a PyTorch file"):
        load_checkpoint(folder)


def test_an_archive_behind_another(changed, official_folder):
    """As a download that was begun again leaves it: PyTorch read the first, and Python checked the second."""
    folder = changed(UNET, lambda state: state["0.to_q_lora.up.weight"].add_(1))
    (folder / UNET).write_bytes((folder / UNET).read_bytes() + (official_folder / UNET).read_bytes())
    with pytest.raises(CheckpointError, match=f"'{UNET}' is truncated or not a PyTorch file"):
        load_checkpoint(folder)


def test_a_subject_of_a_checkpoint_of_absurd_weights(checkpoint):
    anna = random_subject(checkpoint, 1)
    for change in ({"cls": anna.cls * 1e19}, {"tokens": anna.tokens * 1e7}, {"tokens": anna.tokens * float("nan")}):
        with pytest.raises(ValueError, match=r"^subjects.subject_1: this subject holds numbers .* beyond 10000"):
            connected_subjects({"subject_1": replace(anna, **change)}, checkpoint)
