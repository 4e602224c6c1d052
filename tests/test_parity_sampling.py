"""Cross-attention, both noise predictions of every step and final latents equal the released code's."""

from functools import cache

import pytest
from mm_diff_pack.nodes.apply import MMDiffApply

from reference import ATTENTION, CASES, COND, LATENTS, NOISE, UNCOND, assert_close, load, sample, zero_out

pytestmark = pytest.mark.hosts

ATTENTION_CASES = ["A", "C", "G"]


@pytest.fixture(scope="module")
def sampled(tiny, official_folder):
    """A case's name -> its reference and our run, through MMDiffApply and Euler; each runs once."""

    @cache
    def run_case(name: str):
        reference = load(name)
        config, checkpoint = reference.config, reference.checkpoint(official_folder)
        subjects = reference.subjects(checkpoint, tiny.clip_vision)
        model, positive, negative = MMDiffApply.execute(
            tiny.model,
            tiny.clip,
            checkpoint,
            {f"subject_{i + 1}": subject for i, subject in enumerate(subjects)},
            reference.prompt,
            config["negative"] or "",
            fuse_scale=config["fuse_scale"],
            start_percent=0.0,
            end_percent=1.0,
            start_merge_step=reference.start_merge_step,
        ).result
        if config["negative"] is None:
            negative = zero_out(negative)
        return reference, sample(model, positive, negative, reference)

    return run_case


@pytest.mark.parametrize("case", ATTENTION_CASES)
def test_cross_attention(sampled, case):
    """Three of the first step's cross-attentions, after to_out: the first, the last of the middle, one going up."""
    reference, run = sampled(case)
    for block in ("input.4.0", "middle.0.1", "output.1.0"):
        assert_close(run.attentions[block], reference.values[f"attention.{block}"], ATTENTION)


@pytest.mark.parametrize("case", CASES)
def test_noise_of_every_step(sampled, case):
    reference, run = sampled(case)
    assert len(run.noises) == reference.config["steps"]
    for step, noises in enumerate(run.noises):
        assert noises.keys() == ({COND, UNCOND} if reference.has_negative else {COND})
        for row, noise in noises.items():
            assert_close(noise, reference.values[f"step{step}.noise_{row}"], NOISE)


@pytest.mark.parametrize("case", CASES)
def test_latents(sampled, case):
    reference, run = sampled(case)
    assert_close(run.latents, reference.values["final_latents"], LATENTS)
