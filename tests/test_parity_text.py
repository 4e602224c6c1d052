"""Fused token embeddings, prompt embeddings and pooled text equal the released code's, in both prompts."""

import pytest
import torch

from mmdiff_model.checkpoint import load_checkpoint
from mmdiff_model.schedule import Schedule
from mmdiff_model.text import encode_text
from reference import CASES, NEVER, TEXT, assert_close, load, zero_out
from tiny_pack.checkpoint import mlp_lora, text_lora, write_official_checkpoint
from tiny_pack.models import make_clip

pytestmark = pytest.mark.hosts

FUSED_CASES = [case for case in CASES if load(case).has_trigger]
GUIDED_CASES = [case for case in FUSED_CASES if load(case).has_negative]
PLAIN, FUSED = "pure", "augmented"
SAME_LAYOUTS = ["old diffusers", "kohya", "te1 only"]


@pytest.fixture(scope="module")
def subjects(tiny, checkpoint):
    """A reference's subjects."""
    return lambda reference: reference.subjects(checkpoint, tiny.clip_vision)


def encode(clip, checkpoint, subjects, reference, stage=FUSED, clean_negative=False):
    """(positive, negative), each [embeddings, options], in the phase that a stage of the reference belongs to."""
    schedule = Schedule(start_merge_step=NEVER if stage == PLAIN else reference.start_merge_step)
    negative_prompt = reference.config["negative"] or ""
    text = encode_text(clip, checkpoint, subjects, reference.prompt, negative_prompt, schedule, clean_negative)
    negative = zero_out(text.negative) if reference.config["negative"] is None else text.negative
    phase = -1 if stage == FUSED and reference.has_trigger else 0
    return text.positive[phase], negative[phase]


def assert_prompt(reference, encoded, key):
    """Embeddings (the rows that are stored, where any are) and pooled text of one prompt."""
    embeddings, options = encoded
    assert_close(options["pooled_output"], reference.values[f"{key}pooled"], TEXT)
    expected = reference.values.get(f"{key}prompt_embeds")
    if expected is not None:
        assert_close(embeddings[:, reference.rows], expected, TEXT)


@pytest.mark.parametrize("stage", [PLAIN, FUSED])
@pytest.mark.parametrize("case", CASES)
def test_prompts(case, stage, tiny, official_folder, subjects):
    reference = load(case)
    checkpoint = reference.checkpoint(official_folder)
    positive, negative = encode(tiny.clip, checkpoint, subjects(reference), reference, stage)
    assert_prompt(reference, positive, f"{stage}.")
    if reference.has_negative:
        assert_prompt(reference, negative, f"{stage}.negative_")


@pytest.mark.parametrize("case", FUSED_CASES)
def test_fused_token_embeddings(case, tiny, official_folder, subjects):
    """What the fusion MLPs make of each class word, and of the negative prompt's tokens at the same positions."""
    reference, fused = load(case), []
    checkpoint = reference.checkpoint(official_folder)
    for module in (checkpoint.adapter.model.text_fusion_1, checkpoint.adapter.model.text_fusion_2):
        module.register_forward_hook(lambda module, inputs, output: fused.append(output))
    encode(tiny.clip, checkpoint, subjects(reference), reference)
    *_, prompt_1, prompt_2, negative_1, negative_2 = fused
    found = {"prompt_1": prompt_1, "prompt_2": prompt_2}
    if reference.config["negative"] is not None and reference.has_negative:
        found |= {"negative_1": negative_1, "negative_2": negative_2}
    for name, vectors in found.items():
        assert_close(vectors, reference.values[f"fuse.{name}.out"], TEXT)


@pytest.mark.parametrize("case", GUIDED_CASES)
def test_clean_negative_is_the_plain_one(case, tiny, official_folder, subjects):
    reference = load(case)
    checkpoint = reference.checkpoint(official_folder)
    _, negative = encode(tiny.clip, checkpoint, subjects(reference), reference, clean_negative=True)
    assert_prompt(reference, negative, "pure.negative_")


@pytest.mark.parametrize("layout", SAME_LAYOUTS)
def test_layout_of_the_text_lora_does_not_matter(layout, tiny, tmp_path, subjects):
    """Nor does the second text encoder's LoRA, which the released code reads and never applies."""
    reference = load("A")
    checkpoint = load_checkpoint(write_official_checkpoint(tmp_path, text_layout=layout))
    positive, negative = encode(tiny.clip, checkpoint, subjects(reference), reference)
    assert_prompt(reference, positive, "augmented.")
    assert_prompt(reference, negative, "augmented.negative_")


@pytest.mark.parametrize("layout", ["te2 only", "empty"])
def test_without_lora_the_plain_text_is_the_base_encoders(layout, tiny, tmp_path, subjects):
    reference = load("A")
    checkpoint = load_checkpoint(write_official_checkpoint(tmp_path, text_layout=layout))
    (plain, options), _ = encode(tiny.clip, checkpoint, subjects(reference), reference, PLAIN)
    tokens = tiny.clip.tokenize("a man in front of the White House")
    (expected, expected_options), *_ = tiny.clip.encode_from_tokens_scheduled(tokens)
    assert torch.equal(plain, expected)
    assert torch.equal(options["pooled_output"], expected_options["pooled_output"])


@pytest.mark.parametrize(
    ("layout", "lora", "scale"),
    [("kohya half alpha", text_lora, 0.5), ("mlp", lambda seed: text_lora(seed) | mlp_lora(seed), 1.0)],
)
def test_lora_is_what_it_adds_to_the_weights(layout, lora, scale, tiny, tmp_path, subjects):
    """alpha scales by alpha / rank, and MLPs may have LoRAs: as in encoders whose weights were changed by hand."""
    reference = load("A")
    written = load_checkpoint(write_official_checkpoint(tmp_path / layout, text_layout=layout))
    changed, state = make_clip(20), lora(20)
    for key in (key for key in state if key.startswith("text_encoder.") and ".down." in key):
        module = key.removeprefix("text_encoder.").partition(".lora_linear_layer")[0]
        up, down = state[key.replace(".down.", ".up.")], state[key]
        changed.cond_stage_model.clip_l.transformer.get_submodule(module).weight += scale * up @ down
    bare = load_checkpoint(write_official_checkpoint(tmp_path / "bare", text_layout="empty"))
    people = subjects(reference)
    by_patches = encode(tiny.clip, written, people, reference)
    by_hand = encode(changed, bare, people, reference)
    without = encode(tiny.clip, bare, people, reference)
    for (actual, _), (expected, _), (plain, _) in zip(by_patches, by_hand, without, strict=True):
        assert_close(actual, expected, TEXT)
        assert (actual - plain).abs().max() > 0.1
