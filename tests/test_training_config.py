"""Configurations of a training: what is read, and every mistake named by its key; memory estimates."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from conftest import ROOT
from mmdiff_model.training.config import Base, ConfigError, Plan, SmallWorld, load_config
from mmdiff_model.training.memory import estimate
from mmdiff_model.training.trainable import PARTS

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
MINIMAL = {
    "output": "out",
    "variant": "subject",
    "base": {"checkpoint": "sdxl.safetensors", "clip_vision": "vit.safetensors"},
    "data": {"places": ["a", "b.tar"]},
    "plan": {"steps": 10},
}


def write(folder: Path, **changes) -> Path:
    """A configuration with keys changed; a key "a.b" is nested, and None takes it out."""
    values = yaml.safe_load(yaml.safe_dump(MINIMAL))
    for key, value in changes.items():
        *places, last = key.split(".")
        inner = values
        for place in places:
            inner = inner.setdefault(place, {})
        inner[last] = value
        if value is None:
            del inner[last]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_read(path):
    config = load_config(path)
    assert config.parts == PARTS
    assert config.variant in path.name or config.variant == "subject"


def test_what_is_left_out_has_its_default(tmp_path):
    config = load_config(write(tmp_path))
    assert config.base == Base(Path("sdxl.safetensors"), Path("vit.safetensors"))
    assert config.data.places == (Path("a"), Path("b.tar")) and config.data.size == 1024
    assert config.plan == Plan(steps=10) and config.samples is None


def test_the_small_world_is_a_base(tmp_path):
    path = write(tmp_path, base={"small_world": "weights"})
    assert load_config(path).base == SmallWorld(Path("weights"))


MISTAKES = {
    "missing key": ({"plan.steps": None}, "plan.steps: missing"),
    "missing section": ({"base": None}, "base: missing"),
    "misspelt key": ({"plan.stpes": 3}, "plan.stpes: no such key; did you mean plan.steps?"),
    "misspelt section": ({"lossses": {}}, "lossses: no such key; did you mean losses?"),
    "strange key": ({"data.zzz": 3}, "data.zzz: no such key; it may hold places, size, cache"),
    "text for a number": ({"plan.rate": "1e-4"}, "plan.rate: should be a number such as 1.0e-4, but is '1e-4'"),
    "number for a count": ({"plan.steps": 1.5}, "plan.steps: should be a whole number, but is 1.5"),
    "no limit of gradients": ({"plan.clip_norm": 0.0}, "plan.clip_norm: should be more than 0, but is 0.0"),
    "no rate": ({"plan.rate": 0.0}, "plan.rate: should be more than 0, but is 0.0"),
    "no steps": ({"plan.steps": 0}, "plan.steps: should be at least 1, but is 0"),
    "truth for a number": ({"seed": True}, "seed: should be a whole number, but is True"),
    "choice": ({"variant": "pet"}, "variant: should be one of portrait, subject, but is 'pet'"),
    "choice in a list": ({"parts": ["lora", "loar"]}, "parts[1]: should be one of text_fusion,"),
    "empty list": ({"data.places": []}, "data.places: should be a list with at least one entry, but is []"),
    "text for a list": ({"data.places": "a"}, "data.places: should be a list with at least one entry, but is 'a'"),
    "text for a section": ({"plan": "fast"}, "plan: should hold steps, rate,"),
    "size": ({"data.size": 1000}, "data.size: should be a multiple of 64 pixels, but is 1000"),
    "drops": ({"drops": {"text": 0.5, "image": 0.6}}, "drops: text, image and both add up to more than 1"),
    "portrait without faces": ({"variant": "portrait"}, "base.face_analysis: missing"),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_by_its_key(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("text", ["", "a: [", "- a"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        load_config(path)


def test_memory_of_sdxl_by_option(tmp_path):
    config = load_config(write(tmp_path, **{"plan.precision": "bf16", "data.size": 512, "shape": {"lora_rank": 8}}))
    plain = estimate(config)
    unet, text, vision, vae = 2_567_463_684, 123_060_480 + 694_659_841, 303_966_208, 83_653_863
    assert plain.base == pytest.approx(2 * (unet + text + vision + vae), rel=1e-3)
    saving = estimate(replace(config, gradient_checkpointing=True))
    assert saving.base == plain.base and saving.trained == plain.trained
    assert saving.activations < plain.activations / 4
    double = estimate(replace(config, plan=replace(config.plan, batch_size=2)))
    assert double.activations == pytest.approx(2 * plain.activations, rel=0.1)
    assert estimate(replace(config, plan=replace(config.plan, precision="fp32"))).base > 1.9 * plain.base
    assert estimate(replace(config, parts=("lora",))).trained < plain.trained
