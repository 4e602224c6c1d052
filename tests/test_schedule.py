"""Delayed conditioning: phases, percents, steps, and their borders."""

import pytest
import torch

from helpers import random_subject
from mmdiff_model.schedule import FROM_STEP, UNTIL_STEP, Schedule, resolve_steps, step_boundary
from mmdiff_model.text import encode_text

pytestmark = pytest.mark.hosts

SIGMAS = torch.tensor([14.6, 7.0, 3.0, 1.0, 0.0])


@pytest.fixture(scope="module")
def subjects(checkpoint):
    return [random_subject(checkpoint, 1), random_subject(checkpoint, 2, start_percent=0.5)]


def test_all_of_sampling_needs_no_range(subjects):
    (phase,) = Schedule().phases(subjects[:1])
    assert phase.subjects == {0}
    assert phase.conditioning_options() == {}


def test_phases_follow_each_subjects_range(subjects):
    phases = Schedule(0.2, 0.9).phases(subjects)
    assert [(p.start, p.end, p.subjects) for p in phases] == [
        (0.0, 0.2, frozenset()),
        (0.2, 0.5, {0}),
        (0.5, 0.9, {0, 1}),
        (0.9, 1.0, frozenset()),
    ]


def test_a_range_of_no_length_leaves_the_prompt_plain(subjects):
    (phase,) = Schedule(0.5, 0.5).phases(subjects[:1])
    assert phase.subjects == frozenset()


@pytest.mark.parametrize("start", [0.1, 0.25, 0.5, 0.777])
def test_a_sigma_on_the_border_is_in_one_phase(start, subjects, tiny):
    sampling = tiny.model.get_model_object("model_sampling")
    schedule = Schedule(start)
    border = sampling.percent_to_sigma(start)
    active = []
    for phase in schedule.phases(subjects[:1]):
        options = phase.conditioning_options()
        first, last = (sampling.percent_to_sigma(options[key]) for key in ("start_percent", "end_percent"))
        active.append(last <= border <= first)
    assert active == [False, True]
    first, last = schedule.sigma_range(subjects[0], sampling, SIGMAS)
    assert last < border <= first


def test_steps_are_resolved_from_the_runs_sigmas(subjects):
    plain, fused = Schedule(start_merge_step=2).phases(subjects[:1])
    conds = {"positive": [plain.conditioning_options(), fused.conditioning_options()]}
    assert conds["positive"] == [{UNTIL_STEP: 2}, {FROM_STEP: 2}]
    resolve_steps(conds, SIGMAS)
    for step, sigma in enumerate(SIGMAS[:-1]):
        assert (sigma >= conds["positive"][0]["timestep_end"]) == (step < 2)
        assert (sigma <= conds["positive"][1]["timestep_start"]) == (step >= 2)


def test_more_steps_than_the_run_has_is_never():
    assert step_boundary(SIGMAS, 4) < 0
    assert step_boundary(SIGMAS, 3) == 2.0


def test_conditionings_cover_sampling_once(tiny, checkpoint, subjects):
    text = encode_text(tiny.clip, checkpoint, subjects[:1], "a man<|subj|>", "", Schedule(0.3, 0.8))
    ranges = [(options["start_percent"], options["end_percent"]) for _, options in text.positive]
    assert len(text.positive) == len(text.negative) == 3
    assert all(end < start for (_, end), (start, _) in zip(ranges, ranges[1:], strict=False))
    plain, fused, after = (cond for cond, _ in text.positive)
    assert torch.equal(plain, after) and not torch.equal(plain, fused)
