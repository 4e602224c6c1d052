"""The small world: its pictures and captions, its models inside ComfyUI, and training that resumes bit for bit."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import comfy.latent_formats
import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT

sys.path.append(str(ROOT))

from mmdiff_model.checkpoint import load_checkpoint  # noqa: E402
from mmdiff_model.subject import encode_subject  # noqa: E402
from mmdiff_model.training.loop import Micro  # noqa: E402
from mmdiff_model.training.plan import Plan  # noqa: E402
from small_world import ADAPTER_FILE, WEIGHTS  # noqa: E402
from small_world.drawn.captions import write_caption  # noqa: E402
from small_world.drawn.drawing import reference  # noqa: E402
from small_world.drawn.looks import (  # noqa: E402
    GLASSES,
    HATS,
    HELD_OUT_HUES,
    PATTERNS,
    STYLES,
    WORDS,
    is_held_out,
    sample_colour,
    sample_look,
)
from small_world.drawn.poses import ACTIONS, REFERENCE_ACTIONS  # noqa: E402
from small_world.drawn.records import write_records  # noqa: E402
from small_world.drawn.scenes import make_scene, references, start_scene  # noqa: E402
from small_world.family import models, pixels, vocabulary  # noqa: E402
from small_world.phases import adapter, base_data, gradients, look_codes, phase, shards  # noqa: E402
from small_world.phases import base as base_phase  # noqa: E402
from small_world.phases import codec as codec_phase  # noqa: E402

CPU = torch.device("cpu")


def combination(look) -> tuple[str, ...]:
    return look.word, look.style, look.hat, look.glasses, look.pattern


def test_the_demo_nodes_rooms_need_no_more_than_they_say():
    """The pack is imported under a name of the host's choice, where `mmdiff_model` is no package of its own."""
    needed = {room: imported(ROOT / "small_world" / room) for room in ("drawn", "family")}
    assert needed["drawn"] - sys.stdlib_module_names == {"numpy", "PIL"}
    assert "mmdiff_model" not in needed["family"]
    demo = (ROOT / "nodes" / "demo.py").read_text(encoding="utf-8")
    assert set(re.findall(r"from \.\.small_world\.(\w+)", demo)) == {"drawn", "family"}


def imported(folder: Path) -> set[str]:
    """The packages that a folder's files import."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in folder.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {module.partition(".")[0] for module in modules}


def test_scenes_are_the_same_for_the_same_seed():
    first, again, other = make_scene(3, 7), make_scene(3, 7), make_scene(4, 7)
    assert first.caption == again.caption and np.array_equal(first.picture, again.picture)
    assert np.array_equal(references(first, 0), references(again, 0))
    assert not np.array_equal(first.picture, other.picture)


@pytest.mark.parametrize("held_out", [False, True])
def test_evaluation_never_meets_training(held_out):
    looks = [sample_look(Random(number), held_out) for number in range(500)]
    assert {is_held_out(combination(look)) for look in looks} == {held_out}
    hues = [hue_of(sample_colour(Random(number), held_out)) for number in range(500)]
    inside = [any(low - 0.004 <= hue <= high + 0.004 for low, high in HELD_OUT_HUES) for hue in hues if hue is not None]
    assert np.mean(inside) == 1 if held_out else np.mean(inside) < 0.15  # 8-bit rounding lets a few touch a band


def hue_of(colour) -> float | None:
    high, low = max(colour), min(colour)
    if high - low < 40:
        return None
    return Image.new("RGB", (1, 1), colour).convert("HSV").getpixel((0, 0))[0] / 255


def test_every_class_word_keeps_most_of_its_combinations_for_training():
    for word in WORDS:
        every = [
            (word, style, hat, glasses, pattern)
            for style in STYLES[word]
            for hat in HATS
            for glasses in GLASSES
            for pattern in PATTERNS
        ]
        assert 0.08 < np.mean([is_held_out(one) for one in every]) < 0.26


def test_captions_say_nothing_of_looks():
    said = {word for index in range(300) for word in make_scene(9, index).caption.split()}
    attributes = " ".join(value for values in (*STYLES.values(), HATS, GLASSES, PATTERNS) for value in values)
    assert not said & set(attributes.split())
    assert said >= set(WORDS)


def test_spans_are_the_class_words():
    for index in range(50):
        scene = make_scene(11, index)
        assert [scene.caption[start:end] for start, end in scene.spans] == [look.word for look in scene.looks]


def test_two_actions_are_each_told_with_their_own_word():
    words, actions = ("cat", "dog"), ("waving", "running")
    told = [write_caption(Random(seed), words, actions, "in a park", False)[0] for seed in range(40)]
    assert any("cat waving and a" in caption and "dog running in a park" in caption for caption in told)
    assert any(action not in caption for caption in told for action in ACTIONS)


def test_masks_hold_the_characters_and_do_not_overlap():
    for index in range(30):
        scene = make_scene(5, index, characters=2)
        visible = scene.masks >= 128
        assert visible.sum(axis=(1, 2)).min() > 1000
        assert not (visible[0] & visible[1]).any()


def test_references_show_the_character_on_white_without_its_place():
    scene = make_scene(6, 0, characters=1)
    picture = references(scene, 0)[0]
    edge = np.concatenate([picture[:, 0], picture[:, -1]])
    assert np.mean((edge > 250).all(axis=1)) > 0.5
    top = np.abs(picture.reshape(-1, 3).astype(int) - scene.looks[0].top).sum(axis=1)
    assert (top < 12).sum() > 60


def test_records_are_the_annotation_tools(tmp_path):
    scenes = [make_scene(8, index) for index in range(4)]
    names = write_records(tmp_path, scenes)
    assert (tmp_path / "image_ids_train.txt").read_text().split("\n") == names == [f"{k:09d}" for k in range(4)]
    for name, scene in zip(names, scenes, strict=True):
        stem = tmp_path / name[:5] / name
        record = json.loads(stem.with_suffix(".json").read_text())
        numbers = np.load(stem.with_suffix(".npy"))
        assert Image.open(stem.with_suffix(".jpg")).size == numbers.shape[::-1] == (128, 128)
        assert record["caption"] == scene.caption and record["image_id"] == name
        for segment in record["segments"]:
            assert record["caption"][segment["start"] : segment["end"]] == segment["word"]
            rows, columns = np.nonzero(numbers == segment["id"])
            left, top, right, bottom = segment["box"]
            assert left <= columns.min() and columns.max() < right and top <= rows.min() and rows.max() < bottom


def test_all_weights_leave_room_for_an_adapter(small_weights):
    assert sum(path.stat().st_size for path in small_weights.glob("*.safetensors")) < 10.5e6


def test_text_is_encoded_as_by_comfyui(small_weights):
    clip = models.load_clip(small_weights)
    text = models.build_text()
    text.load_state_dict(training_state(small_weights, models.TEXT_ENCODERS))
    caption = "a man waving and a cute dog sitting in the snow at night"
    context, pooled = base_phase.encode_ids(text, vocabulary.tokenize([caption]))
    expected, expected_pooled = clip.encode_from_tokens(clip.tokenize(caption), return_pooled=True)
    torch.testing.assert_close(context, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(pooled, expected_pooled, atol=2e-5, rtol=0)


def test_words_of_the_world_have_rows_of_their_own_and_others_share_one():
    rows = vocabulary.rows_of_tokens()
    tokens = vocabulary.tokenize(["man dog balloon", "cute zebra"])["l"]
    known, unknown = rows[tokens[0, 1:4]], rows[tokens[1, 1:3]]
    assert len(set(known.tolist())) == 3 and 0 not in known
    assert unknown.tolist() == [0, 0]


def test_pictures_are_encoded_as_by_comfyui(small_weights):
    vision = models.load_vision(small_weights)
    pictures = references(make_scene(1, 3, characters=2), 0)
    patches, cls = gradients.encode_pixels(vision.model, pixels.normalise(pictures))
    output = vision.encode_image(torch.from_numpy(pictures).float() / 255)
    torch.testing.assert_close(patches, output["penultimate_hidden_states"], atol=2e-5, rtol=0)
    torch.testing.assert_close(cls, output["image_embeds"], atol=2e-5, rtol=0)


def test_noise_is_predicted_as_by_comfyui(small_weights):
    base = models.load_model(small_weights).model
    torch.manual_seed(1)
    latents, noise = torch.randn(2, 2, 4, 16, 16)
    context, pooled, steps = torch.randn(2, 77, models.CONTEXT), torch.randn(2, 96), torch.tensor([30, 800])
    with torch.no_grad():
        for name, parameter in base.diffusion_model.named_parameters():
            if name.startswith("out.2"):
                parameter.normal_(std=0.1)  # zero before training
    predicted = base_phase.predict_noise(base, latents, noise, steps, context, pooled)
    sigma = base.model_sampling.sigma(steps.float())
    noisy = latents + sigma.view(-1, 1, 1, 1) * noise
    sizes = base.encode_adm(pooled_output=pooled, height=128, width=128, device=CPU)
    denoised = base.apply_model(noisy, sigma, c_crossattn=context, y=sizes)
    torch.testing.assert_close(noisy - sigma.view(-1, 1, 1, 1) * predicted, denoised, atol=1e-4, rtol=1e-4)


def training_state(weights: Path, name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.float() for key, tensor in models.load_file(weights / f"{name}.safetensors").items()}


def test_scaled_latents_are_sdxls_and_decode_to_the_same_picture():
    torch.manual_seed(2)
    codec = models.build_codec()
    pixels = codec_phase.test_pictures(CPU, held_out=False)[:8]
    before = codec.decode(codec.encode(pixels))
    codec_phase.scale_latents(codec, pixels)
    latents = comfy.latent_formats.SDXL().process_in(codec.encode(pixels))
    assert latents.shape == (8, 4, 16, 16)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(codec.decode(codec.encode(pixels)), before, atol=1e-4, rtol=0)


def test_codec_goes_through_the_hosts_vae(small_weights):
    vae = models.load_vae(small_weights)
    assert vae.encode(torch.rand(1, 128, 128, 3)).shape == (1, 4, 16, 16)
    assert vae.decode(torch.randn(1, 4, 16, 16)).shape == (1, 128, 128, 3)


def small_base(folder: Path, stage: base_phase.Stage) -> tuple[phase.Trainer, phase.Loss]:
    """A trainer of the base on four scenes' captions with random latents."""
    torch.manual_seed(0)
    base = models.build_base()
    parts = {"text": models.build_text(), "unet": base.diffusion_model}
    modules = base_phase.modules_of(stage, parts, look_codes.LookCodes())
    trainer = phase.Trainer(stage.name, stage.plan, folder, modules)
    latents = np.random.default_rng(0).standard_normal((4, 4, 16, 16), dtype=np.float32)
    scenes = [make_scene(base_data.SEED, index) for index in range(4)]
    tokens = {key: ids.numpy() for key, ids in vocabulary.tokenize([scene.caption for scene in scenes]).items()}
    masks = np.stack([base_data.masks_of_latents(scene) for scene in scenes])
    data = {"latents": latents, "masks": masks, **tokens, **base_data.read_looks(tokens["l"])}
    return trainer, partial(base_phase.base_loss, stage, base, modules, data, CPU)


@torch.enable_grad()
@pytest.mark.parametrize("stage", base_phase.STAGES, ids=lambda stage: stage.name)
def test_training_reaches_every_parameter_but_dead_ends(tmp_path, stage):
    trainer, loss = small_base(tmp_path, replace(stage, plan=Plan(6, 1e-3, warmup=2, batch_size=4)))
    for _ in range(6):  # what lies behind zeros, SDXL's and the codes', moves step by step
        trainer.update(lambda step: Micro(*loss(step)))
    still = {name for name, weight in trainer.weights.items() if not weight.grad.any()}
    assert all(
        name.startswith("text.clip_l") and (".layers.2." in name or "final" in name or "projection" in name)
        for name in still
    ), sorted(still)[:5]


def test_a_look_is_told_at_its_class_word_alone():
    stories = [start_scene(base_data.SEED, index)[1] for index in range(8)]
    tokens = vocabulary.tokenize([story.caption for story in stories])["l"]
    data = {key: torch.from_numpy(array) for key, array in base_data.read_looks(tokens.numpy()).items()}
    added = look_codes.add_at(data["positions"], data["looks"], tokens.shape[1])
    ids = look_codes.word_tokens(WORDS)
    for row, story, codes in zip(tokens.tolist(), stories, added, strict=True):
        told = {row[place]: codes[place] for place in range(len(row)) if codes[place].any()}
        assert told.keys() == {ids[look.word] for look in story.looks}
        for look in story.looks:
            assert torch.equal(told[ids[look.word]], torch.from_numpy(look_codes.look_vector(look)))


def test_shards_are_made_once(tmp_path):
    made = []

    def make(number: int) -> shards.Arrays:
        made.append(number)
        return {"value": np.full(2, number)}

    shards.load_shards(tmp_path, 2, make)
    joined = shards.load_shards(tmp_path, 3, make)
    assert made == [0, 1, 2] and joined["value"].tolist() == [0, 0, 1, 1, 2, 2]


@torch.enable_grad()
def test_the_adapters_phase_trains_and_goes_on(small_weights, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "BATCH", 2)
    for steps in (15, 16):
        assert adapter.train_variant(small_weights, tmp_path / "mmdiff", "mmdiff", steps, {})
    assert load_checkpoint(tmp_path / "mmdiff" / ADAPTER_FILE).variant == "subject"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to catch")
def test_a_terminated_phase_saves_and_leaves_in_order(tmp_path):
    command = [sys.executable, "-m", "small_world", "train", "--folder", str(tmp_path), "--threads", "1"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert any("codec: from step 0" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    state = torch.load(tmp_path / "codec.state", weights_only=True)
    assert state["step"] < codec_phase.PLAN.steps and state["module"]


def test_a_photo_of_another_character_is_named():
    vision, adapter = models.load_vision(WEIGHTS), load_checkpoint(WEIGHTS / ADAPTER_FILE)
    named = []
    for seed in range(10):
        random = Random(f"outlier {seed}")
        mine, other = (sample_look(random, held_out=True) for _ in range(2))
        poses = random.sample(REFERENCE_ACTIONS, 3)
        looks = zip((mine, mine, other), poses, strict=True)
        pictures = [reference(look, random, pose, 256) for look, pose in looks]
        photos = [torch.from_numpy(picture.copy()).float() / 255 for picture in pictures]
        named.append(encode_subject(adapter, vision, photos).outliers)
    assert named.count((3,)) >= 9
