"""The small world's evaluation: scores of known contents, what its reader sees, the bundled weights' figures."""

import math
import sys
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from conftest import ROOT

sys.path.append(str(ROOT))

from small_world import WEIGHTS  # noqa: E402
from small_world.drawn.looks import sample_look  # noqa: E402
from small_world.drawn.scenes import Content  # noqa: E402
from small_world.measured import evaluation, scores  # noqa: E402
from small_world.measured.cases import draw_cases, draw_truths  # noqa: E402
from small_world.measured.painters import paint_chance  # noqa: E402
from small_world.measured.reader import load_reader  # noqa: E402

SEED, SINGLES, PAIRS = 1, 16, 16
BUNDLE_BYTES = 12e6


@pytest.fixture(scope="module")
def reader():
    return load_reader(WEIGHTS)


def content(*looks, actions=None) -> Content:
    return Content(tuple(looks), actions or ("waving",) * len(looks), "in a park", False)


def pair():
    """Two characters that differ in hat, glasses and pattern."""
    cat = sample_look(Random(1), held_out=True, word="cat")
    robot = sample_look(Random(2), held_out=True, word="robot")
    one = replace(cat, hat="none", glasses="none", pattern="plain", top=(200, 30, 30), bottom=(30, 30, 200))
    other = replace(robot, hat="cap", glasses="sunglasses", pattern="dots", top=(30, 160, 60), bottom=(240, 220, 60))
    return one, other


def test_what_was_asked_for_scores_one():
    one, other = pair()
    single = scores.score_single(content(one), content(one))
    assert single["attributes"] == single["text"] == single["product"] == single["word"] == 1
    both = scores.score_pair(content(one, other), content(other, one))
    assert (both["binding"], both["swaps"], both["blends"], both["text"], both["words"]) == (1, 0, 0, 1, 1)


@pytest.mark.parametrize("known", [[], [0.5]])
def test_of_fewer_than_two_cases_the_interval_is_the_value(known):
    found = scores.figure(np.array([*known, math.nan]))
    assert found.n == len(known) and found.lower == pytest.approx(found.value, nan_ok=True)


def test_each_attribute_counts_alone():
    one, other = pair()
    count = sum(scores.has(name, other) for name in scores.ATTRIBUTES)
    seen = scores.score_single(content(other), content(replace(other, glasses="none")))
    assert seen["attributes"] == pytest.approx(1 - 1 / count) and seen["glasses"] == 0 and seen["hat"] == 1
    assert math.isnan(scores.score_single(content(one), content(one))["hat_colour"])
    wrong = scores.score_single(content(one), content(one, actions=("jumping",)))
    assert (wrong["text"], wrong["place"], wrong["action"], wrong["product"]) == (0, 1, 0, 0)


def test_swapped_and_blended_looks_are_told_apart():
    one, other = pair()
    shared = ("hat", "glasses", "pattern", "top", "bottom", "hat_colour", "skin", "accent")
    swapped = [
        replace(own, **{name: getattr(source, name) for name in shared}) for own, source in ((one, other), (other, one))
    ]
    found = scores.score_pair(content(one, other), content(*swapped))
    assert found["binding"] == 0 and found["swaps"] == 1
    same = scores.score_pair(content(one, other), content(one, swapped[1]))
    assert 0 < same["binding"] < 1 and same["swaps"] == pytest.approx(1 - same["binding"])
    lost = scores.score_pair(content(one, other), content(one, replace(one)))
    assert (lost["binding"], lost["blends"], lost["words"]) == (0, 1, 0)


def test_colours_are_compared_as_eyes_do():
    assert scores.distance((255, 255, 255), (0, 0, 0)) == pytest.approx(100, abs=0.1)
    assert scores.distance((255, 0, 0), (0, 255, 0)) == pytest.approx(170.6, abs=0.5)  # CIE 1976, sRGB red to green
    assert scores.distance((90, 120, 200), (90, 120, 200)) == 0


def test_intervals_hold_the_mean():
    found = scores.figure(np.array([1.0, 0.0, 1.0, 1.0, math.nan]))
    assert found.value == 0.75 and found.n == 4
    assert found.lower <= 0.75 <= found.upper < 1.01
    assert scores.figure(np.ones(9)).lower == 1


def test_cases_depend_on_the_seed_alone():
    first, again, other = (draw_cases(seed, 2, 3) for seed in (4, 4, 5))
    assert [case.prompt for case in first] == [case.prompt for case in again] != [case.prompt for case in other]
    assert all(np.array_equal(a.references, b.references) for a, b in zip(first, again, strict=True))
    assert all(case.prompt.count("<|subj|>") == 2 and len(case.references) == 2 for case in first)


def test_the_reader_sees_drawings_as_they_were_meant(reader):
    trial = evaluation.draw_trial(3, 40, 40, reader)
    drawn, chance = trial.figures("drawn", draw_truths), trial.figures("chance", paint_chance)
    for score in ("single.attributes", "single.text", "pair.binding", "pair.text"):
        assert drawn[score].value > 0.93, score
    assert chance["single.attributes"].value < 0.6 and chance["pair.binding"].value < 0.5


def test_bundled_weights_are_small():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.safetensors")) <= BUNDLE_BYTES


@pytest.fixture(scope="module")
def figures(reader) -> dict[str, dict[str, float]]:
    """MM-Diff's figures and the base's on a small fixed set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    trial = evaluation.draw_trial(SEED, SINGLES, PAIRS, reader)
    painters = evaluation.bundled(WEIGHTS)
    found = {name: trial.figures(name, painters[name]) for name in (evaluation.OURS, evaluation.BASE)}
    torch.set_num_threads(threads)
    return {name: {score: one.value for score, one in rows.items()} for name, rows in found.items()}


# 16 single characters and 16 pairs of seed 1
RECORDED = {"single.attributes": 0.78, "single.text": 1.0, "single.product": 0.78, "pair.binding": 0.87}
MARGIN = 0.07  # one picture of 16: other processors round differently


@pytest.mark.parametrize("score", RECORDED)
def test_bundled_weights_are_as_good_as_recorded(figures, score):
    assert figures[evaluation.OURS][score] >= RECORDED[score] - MARGIN


def test_references_are_what_makes_the_difference(figures):
    ours, base = figures[evaluation.OURS], figures[evaluation.BASE]
    assert ours["single.attributes"] > base["single.attributes"] + 0.4
    assert ours["pair.binding"] > base["pair.binding"] + 0.4
    assert ours["single.top"] > base["single.top"] + 0.25
