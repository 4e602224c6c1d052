"""What would be wrong without a word is right, or is said."""

from dataclasses import replace

import pytest
import torch
from comfy.cli_args import args

import nodes as core
from helpers import ONE_STEP, distance, encode, left_half, random_subject, sample
from mmdiff_model.files import write_whole
from mmdiff_model.sampling import apply_subjects
from mmdiff_model.sampling.routing import MASKS
from mmdiff_model.schedule import Schedule
from mmdiff_model.subject import encode_subject
from mmdiff_model.subject_file import load_subject, save_subject
from mmdiff_model.text import encode_text
from reference import load
from tiny_pack.models import make_clip_vision


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1, name="anna", region=left_half())


@pytest.mark.parametrize("schedule", [Schedule(0.5, 0.5), Schedule(0.0, 0.0), Schedule(0.0, 1.0, 5000)], ids=str)
def test_a_subject_that_never_acts_is_named(tiny, checkpoint, anna, schedule, caplog):
    anna = replace(anna, region=None)
    text = encode_text(tiny.clip, checkpoint, [anna], "a man<|subj|> dancing", "", schedule)
    sample(apply_subjects(tiny.model, checkpoint, [anna], 0.8, schedule), text, sigmas=ONE_STEP)
    assert "subject 1 ('anna') acts in no part of sampling" in caplog.text


def test_an_empty_region_is_named(tiny, checkpoint, anna, caplog):
    nowhere = replace(anna, region=torch.zeros(64, 64))
    model = apply_subjects(tiny.model, checkpoint, [nowhere], 0.8, routing=MASKS)
    sample(model, encode(tiny, checkpoint, [nowhere], "a man<|subj|>"), sigmas=ONE_STEP)
    assert "the region of subject 1 ('anna') is empty" in caplog.text


def test_a_plain_prompt_beside_one_with_triggers_is_named(tiny, checkpoint, anna, caplog):
    anna = replace(anna, region=None)
    text = encode(tiny, checkpoint, [anna], "a man<|subj|>")
    beach = tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize("a beach"))
    model = apply_subjects(tiny.model, checkpoint, [anna], 0.8)
    sample(model, replace(text, positive=text.positive + beach), sigmas=ONE_STEP)
    assert "a prompt without triggers stands beside prompts with them" in caplog.text


def test_a_negative_with_an_area_keeps_the_phases_apart(tiny, checkpoint, anna):
    schedule, anna = Schedule(0.3, 1.0), replace(anna, region=None)
    text = encode_text(tiny.clip, checkpoint, [anna], "a man<|subj|> dancing", "", schedule)
    negative = tiny.clip.encode_from_tokens_scheduled(tiny.clip.tokenize("blurry"))
    whole = core.ConditioningSetArea().append(negative, 128, 128, 0, 0, 1.0)[0]
    model = apply_subjects(tiny.model, checkpoint, [anna], 0.8, schedule)
    for sigmas in ((4.1, 0.0), (0.5, 0.0)):
        pictures = [
            sample(model, replace(text, negative=given), sigmas=sigmas) for given in (negative + whole, negative)
        ]
        assert distance(*pictures) < 5e-5


def test_a_tiny_mask_serves_an_area_at_the_edge(tiny, checkpoint, anna):
    anna = replace(anna, region=torch.ones(1, 1))
    text = encode(tiny, checkpoint, [anna], "a man<|subj|>")
    area = core.ConditioningSetArea().append(text.positive, 32, 32, 96, 96, 1.0)[0]
    model = apply_subjects(tiny.model, checkpoint, [anna], 0.8, routing=MASKS)
    assert sample(model, replace(text, positive=text.positive + area), sigmas=ONE_STEP).isfinite().all()


def test_who_is_second_does_not_replace_the_first(tmp_path):
    path = tmp_path / "anna.safetensors"

    def write(partial):
        path.write_text("first")
        partial.write_text("second")

    with pytest.raises(FileExistsError, match="another writer"):
        write_whole(path, write, overwrite=False)
    assert path.read_text() == "first" and [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_what_could_not_be_read_again_is_not_saved(anna, tmp_path):
    path = tmp_path / "anna.safetensors"
    with pytest.raises(ValueError, match="subject: it cannot be saved, its strength is '5.0'"):
        save_subject(replace(anna, strength=5.0), path)
    assert not list(tmp_path.iterdir())
    save_subject(anna, path)
    assert load_subject(path).strength == anna.strength


@pytest.mark.parametrize("option", ["fp8_e4m3fn_text_enc", "fp8_e5m2_text_enc"])
def test_a_clip_vision_in_8_bits_is_named(tiny, checkpoint, option, monkeypatch, caplog):
    """ComfyUI gives CLIP vision the text encoders' precision, which moves a subject's CLS and tokens."""
    photos, faces = load("A").inputs()
    monkeypatch.setattr(args, option, True)
    exact = encode_subject(checkpoint, tiny.clip_vision, photos, faces)
    assert "8 bits" not in caplog.text
    rounded = encode_subject(checkpoint, make_clip_vision(20), photos, faces)
    assert caplog.text.count("clip_vision is stored in 8 bits, which costs likeness") == 1
    for part in ("cls", "tokens"):
        likeness = torch.cosine_similarity(getattr(exact, part).flatten(), getattr(rounded, part).flatten(), dim=0)
        assert 0.9 < likeness < 0.99999
