"""tools/fuzz.py: three thousand inputs that nobody planned for, all right or refused; and mistakes that it sees."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from conftest import ROOT
from fuzzing.masks import Masks
from fuzzing.outcome import Wrong
from fuzzing.prompts import Prompts
from fuzzing.subjects import Subjects
from mmdiff_model.host import find_comfyui


def test_nothing_is_wrong_and_nothing_is_raised_raw(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "tools" / "fuzz.py"),
        "--cases",
        "3000",
        "--json",
        str(tmp_path / "found.json"),
    ]
    environment = {**os.environ, "COMFYUI_PATH": str(find_comfyui())}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    figures = json.loads((tmp_path / "found.json").read_text())
    assert not figures["findings"], run.stdout[-3000:] + run.stderr[-2000:]
    assert figures["cases"] >= 3000 and figures["outside"] == 0
    assert run.stdout.splitlines()[-1].startswith(f"fuzz: {figures['cases']} cases in ")
    assert set(figures["outcomes"]) == {"right", "refused"}
    for kind, counts in figures["by_kind"].items():
        assert counts["right"] > 5 and counts["refused"] > 5, kind
        assert figures["memory_mb_by_kind"][kind] < 256, kind


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Prompts:
    return Prompts(tmp_path_factory.mktemp("prompts"))


PROMPT = "a (old man:1.2)<|subj|> beside embedding:friend and a dog<|subj:2|>"


@pytest.mark.parametrize("mistake", ["place", "subject"])
def test_another_fused_token_or_subject_is_seen(mistake, prompts, monkeypatch):
    from mmdiff_model import text

    case = (PROMPT, "blurry, embedding:sd15 bad", 1.0)
    assert prompts(case) == "right"
    found = text.find_class_words

    def mistaken(clip, prompt, subjects):
        words = found(clip, prompt, subjects)
        moved = {"position": 2} if mistake == "place" else {"subject": 1}
        return {key: [replace(places[0], **moved), *places[1:]] for key, places in words.items()}

    monkeypatch.setattr(text, "find_class_words", mistaken)
    with pytest.raises(Wrong, match="fused"):
        prompts(case)


def test_a_border_that_is_not_moved_or_not_faded_is_seen(monkeypatch, tmp_path):
    from mm_diff_pack.nodes import subjects

    masks = Masks(tmp_path)
    case = ("border", (((6, 4), torch.float32, [0.0, 0.0, 1.0, 0.5, 0.0]), (-1, 2)))
    assert masks(case) == "right"
    for name in ("expand_region", "feather_region"):
        with monkeypatch.context() as patch, pytest.raises(Wrong, match="another mask"):
            patch.setattr(subjects, name, lambda region, pixels: region)
            masks(case)


def test_a_field_that_is_not_saved_is_seen(monkeypatch, tmp_path):
    from fuzzing import subjects

    target = Subjects(tmp_path)
    case = ("header", ("strength", 1.5, True))
    assert target(case) == "right"
    save = subjects.save_subject
    monkeypatch.setattr(subjects, "save_subject", lambda subject, path: save(replace(subject, strength=1.0), path))
    with pytest.raises(Wrong, match="another strength"):
        target(case)


def test_a_vision_weight_that_is_lost_or_another_is_seen(monkeypatch, tmp_path):
    from fuzzing import checkpoints

    target = checkpoints.Checkpoints(tmp_path)
    case = ("new.safetensors", ("bytes", [("nothing", 0.0, 0)]))
    assert target(case) == "right"
    load, lost = checkpoints.load_checkpoint, "vision_model.encoder.layers.2.mlp.fc1.bias"
    for changed, problem in (({}, "loaded without"), ({lost: torch.ones(4)}, "loaded other numbers")):

        def mistaken(path, changed=changed):
            whole = load(path)
            rest = {key: tensor for key, tensor in whole.vision.items() if key != lost}
            return replace(whole, vision=rest | changed)

        with monkeypatch.context() as patch, pytest.raises(Wrong, match=problem):
            patch.setattr(checkpoints, "load_checkpoint", mistaken)
            target(case)
