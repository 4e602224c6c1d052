"""Ranges of sampling: other nodes' ranges on delayed text, and schedules that several samplers run in parts."""

from dataclasses import replace

import comfy.samplers
import comfy_extras.nodes_custom_sampler as custom_sampler
import pytest
import torch

import nodes as core
from helpers import distance, random_subject, sample
from mmdiff_model.sampling import apply_subjects
from mmdiff_model.sampling.record import find_sampling
from mmdiff_model.schedule import Schedule, steps_before
from mmdiff_model.text import TextEncoding, encode_text

STEPS = 6
LATENT = {"samples": torch.zeros(1, 4, 16, 16)}


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1)


@pytest.fixture(scope="module")
def encoded(tiny, checkpoint, anna):
    """The prompt pair and the model for a schedule."""

    def encode(schedule: Schedule):
        text = encode_text(tiny.clip, checkpoint, [anna], "a man<|subj|> dancing", "blurry", schedule)
        return apply_subjects(tiny.model, checkpoint, [anna], schedule=schedule), text

    return encode


def limited(text: TextEncoding, start: float, end: float) -> TextEncoding:
    """As ConditioningSetTimestepRange does it, on both sides."""
    node = core.ConditioningSetTimestepRange()
    return TextEncoding(*(node.set_range(side, start, end)[0] for side in (text.positive, text.negative)))


def at(tiny, *percents: float) -> list[float]:
    sampling = tiny.model.get_model_object("model_sampling")
    return [*(sampling.percent_to_sigma(percent) for percent in percents), 0.0]


@pytest.mark.parametrize("start, end", [(0.0, 1.0), (0.0, 0.9), (0.1, 0.8)])
@pytest.mark.parametrize("schedule", [Schedule(0.5), Schedule(0.3, 0.6), Schedule(start_merge_step=1)])
def test_a_range_on_delayed_text(tiny, encoded, schedule, start, end):
    """Plain and fused stay apart: within the range, sampling is what it is without one."""
    model, text = encoded(schedule)
    sigmas = at(tiny, 0.2, 0.4, 0.7)
    assert torch.equal(sample(model, limited(text, start, end), sigmas=sigmas), sample(model, text, sigmas=sigmas))


def test_a_range_cuts_the_phases(tiny, encoded):
    """Two ranges of one delayed prompt, combined, are the prompt; after a range that ends early nothing acts."""
    model, text = encoded(Schedule(0.5))
    sigmas = at(tiny, 0.2, 0.4, 0.7)
    early, late = limited(text, 0.0, 0.3), limited(text, 0.3, 1.0)
    both = TextEncoding(early.positive + late.positive, early.negative + late.negative)
    whole = sample(model, text, sigmas=sigmas)
    assert torch.equal(sample(model, both, sigmas=sigmas), whole)
    assert not torch.equal(sample(model, early, sigmas=sigmas), whole)


@pytest.mark.parametrize("schedule", [Schedule(0.3), Schedule(0.2, 0.8)])
@pytest.mark.parametrize("restricted", [("positive",), ("negative",), ("positive", "negative")], ids="+".join)
def test_an_area_has_its_other_side_in_each_phase(tiny, encoded, schedule, restricted):
    """While the subject acts, a delayed prompt in an area is what it is without a delay."""
    latents = []
    for model, text in (encoded(schedule), encoded(Schedule())):
        sides = {
            name: core.ConditioningSetArea().append(getattr(text, name), 64, 128, 0, 0, 1.0)[0] for name in restricted
        }
        latents.append(sample(model, replace(text, **sides), sigmas=at(tiny, 0.5)))
    assert distance(*latents) <= 1e-5


@pytest.mark.parametrize("step", [1, 2, 3])
def test_an_unsampling_counts_its_own_steps(tiny, encoded, step):
    """The sigmas of FlipSigmas rise: text and image term begin with the same step there."""
    model, text = encoded(Schedule(start_merge_step=step))
    sigmas = at(tiny, 0.1, 0.3, 0.5, 0.7, 0.9)[-2::-1]
    plain = TextEncoding(text.positive[:1], text.negative[:1])
    before = sigmas[: step + 1]
    assert torch.equal(sample(model, text, sigmas=before), sample(model, plain, sigmas=before))
    sample(model, text, sigmas=sigmas)
    assert find_sampling(model).record.steps(0) == list(range(step + 1, len(sigmas)))


def test_a_range_without_the_image_half(tiny, encoded):
    """Delayed text on a model without ours keeps ComfyUI's own ranges."""
    _, text = encoded(Schedule(0.5))
    ranges = [(options["start_percent"], options["end_percent"]) for _, options in text.positive]
    assert ranges[0][1] < ranges[1][0] == 0.5


def advanced(model, text, first: int, last: int, noise: str):
    """KSamplerAdvanced for a part of the steps."""
    latents = core.KSamplerAdvanced()
    return latents.sample(
        model, noise, 5, STEPS, 3.0, "euler", "normal", text.positive, text.negative, LATENT, first, last, "enable"
    )[0]["samples"]


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 5, 6, 9])
@pytest.mark.parametrize("cuts", [(3,), (2, 4)])
def test_a_schedule_in_parts_counts_the_whole(encoded, monkeypatch, step, cuts):
    """KSamplerAdvanced one after the other, and SplitSigmas, begin with the subject where one sampler does."""
    model, text = encoded(Schedule(start_merge_step=step))
    whole = advanced(model, text, 0, STEPS, "enable")
    given = LATENT
    for number, (first, last) in enumerate(zip((0, *cuts), (*cuts, STEPS), strict=True)):
        monkeypatch.setitem(globals(), "LATENT", given)
        given = {"samples": advanced(model, text, first, last, "disable" if number else "enable")}
    assert distance(given["samples"], whole) < 1e-5

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", STEPS)
    parts, rest = [], sigmas
    for cut, begun in zip(cuts, (0, *cuts), strict=False):
        part, rest = custom_sampler.SplitSigmas.execute(rest, cut - begun).args
        parts.append(part)
    sampler = comfy.samplers.sampler_object("euler")
    given = {"samples": torch.zeros(1, 4, 16, 16)}
    for number, part in enumerate([*parts, rest]):
        given = custom_sampler.SamplerCustom.execute(
            model, number == 0, 5, 3.0, text.positive, text.negative, sampler, part, given
        ).args[0]
    assert distance(given["samples"], whole) < 1e-5


def test_a_subject_of_a_later_part_is_not_missed(encoded, caplog):
    """A first sampler that ends before the subject begins says nothing; a subject that never begins is pointed out."""
    for step, said in ((4, False), (STEPS + 3, True)):
        caplog.clear()
        model, text = encoded(Schedule(start_merge_step=step))
        advanced(model, text, 0, 3, "enable")
        assert ("acts in no part of sampling" in caplog.text) == said


def test_denoise_counts_the_samplers_own_steps(encoded):
    """With denoise below 1 a sampler runs the end of a longer schedule: its own steps are counted, as released."""
    latent = {"samples": torch.ones(1, 4, 16, 16)}
    latents = []
    for step in (1, 2, 3, 4):
        model, text = encoded(Schedule(start_merge_step=step))
        latents.append(
            core.KSampler().sample(model, 5, 3, 3.0, "euler", "normal", text.positive, text.negative, latent, 0.5)[0]
        )
    samples = [entry["samples"] for entry in latents]
    assert not torch.equal(samples[0], samples[1]) and not torch.equal(samples[1], samples[2])
    assert torch.equal(samples[2], samples[3])


def test_steps_before_a_part():
    sigmas = torch.linspace(10, 0, 11)
    noise, none = torch.ones(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    assert steps_before(sigmas, none) == 0
    assert steps_before(sigmas[4:], none) == 4
    assert steps_before(sigmas[4:], noise) == 0
    assert steps_before(sigmas[4:].clone(), none) == 0
    assert steps_before(sigmas[2:][3:6], none) == 5
    assert steps_before(sigmas[4::2], none) == 0
