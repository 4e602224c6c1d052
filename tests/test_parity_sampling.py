"""Prompt embeddings, both noise predictions of every step and final latents equal the released code's."""

import pytest
import torch
from mm_diff_pack.nodes.apply import MMDiffApply

from mmdiff_model.checkpoint import load_checkpoint
from mmdiff_model.prompt import TRIGGER
from reference import CASES, LATENTS, NOISE, TEXT, assert_close, load, sample

TRIGGERED = "a man<|subj|> in front of the White House"
NEVER = 1000


@pytest.fixture(scope="module", params=CASES)
def run(request, tiny, official_folder):
    """One case through MMDiffApply: the reference, the conditionings, latents and predictions."""
    reference = load(request.param)
    config = reference.config
    checkpoint = load_checkpoint(official_folder, text_encoder_2_lora=config.get("te2_lora", False))
    subjects = reference.subjects(checkpoint, tiny.clip_vision)
    has_trigger = TRIGGER.search(config["prompt"])
    applied = MMDiffApply.execute(
        tiny.model,
        tiny.clip,
        checkpoint,
        {f"subject_{i + 1}": subject for i, subject in enumerate(subjects)},
        config["prompt"] if has_trigger else TRIGGERED,
        config["negative"] or "",
        fuse_scale=config["fuse_scale"],
        start_percent=0.0,
        end_percent=1.0,
        # the released code runs a prompt without a trigger as if the subject never started
        start_merge_step=config["start_merge_step"] if has_trigger else NEVER,
    )
    model, positive, negative = applied.result
    if config["negative"] is None:
        negative = [
            [torch.zeros_like(c), {**o, "pooled_output": torch.zeros_like(o["pooled_output"])}] for c, o in negative
        ]
    latents, predictions = sample(model, positive, negative, reference)
    return reference, positive, negative, latents, predictions


def test_text(run):
    reference, positive, negative, _, _ = run
    stages = {"pure": 0, "augmented": -1 if TRIGGER.search(reference.config["prompt"]) else 0}
    for key, expected in reference.values.items():
        stage, _, part = key.partition(".")
        if stage not in stages or (stage == "pure" and len(positive) == 1):
            continue
        cond, options = (negative if part.startswith("negative") else positive)[stages[stage]]
        actual = options["pooled_output"] if "pooled" in part else cond[:, reference.rows]
        assert_close(actual, expected, TEXT)


def test_noise_of_every_step(run):
    reference, _, _, _, predictions = run
    checked = 0
    for step, noises in enumerate(predictions):
        for name, noise in zip(("cond", "uncond"), noises, strict=False):
            expected = reference.values.get(f"step{step}.noise_{name}")
            if expected is not None:
                assert_close(noise, expected, NOISE)
                checked += 1
    assert checked >= 2


def test_latents(run):
    reference, _, _, latents, _ = run
    assert_close(latents, reference.values["final_latents"], LATENTS)
