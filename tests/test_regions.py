"""Masks of MM-Diff Subject Region, grown and feathered: ComfyUI's own Grow Mask is the oracle."""

import mm_diff_pack.nodes.subjects as subject_nodes
import pytest
import torch
from comfy_extras.nodes_mask import GrowMask
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import random_subject
from mmdiff_model.regions import expand_region, feather_region

SIZES = [(37, 53), (64, 64), (1, 9), (9, 1), (1, 1)]
FAR = 1024


def soft_mask(height: int, width: int) -> torch.Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(height)) ** 4


def one_pixel(height: int, width: int) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[height // 2, width // 2] = 1
    return mask


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1)


def run(subject, **inputs):
    settings = {"strength": 1.0, "name": "", "start_percent": 0.0, "end_percent": 1.0} | inputs
    return subject_nodes.MMDiffSubjectRegion.execute(subject, **settings).args[0]


@pytest.mark.parametrize("pixels", [-FAR, -5, -1, 1, 5, FAR])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("make", [soft_mask, one_pixel])
def test_expand_is_grow_mask(make, size, pixels):
    mask = make(*size)
    # more steps than the mask has pixels change nothing more, and take the oracle minutes
    [expected] = GrowMask.execute(mask[None], max(-130, min(130, pixels)), True).args[0]
    assert torch.equal(expand_region(mask, pixels), expected)


def test_expand_moves_the_border_outwards_and_back():
    mask = torch.zeros(20, 30)
    mask[:, :10] = 1
    assert expand_region(mask, 4)[5].sum() == 14
    assert expand_region(mask, -4)[5].sum() == 6
    assert torch.equal(expand_region(expand_region(mask, 4), -4), mask)


def test_feather_is_a_ramp_across_the_border():
    mask = torch.zeros(20, 30)
    mask[:, :10] = 1
    row = feather_region(mask, 2)[7]
    assert row[:8].tolist() == pytest.approx([1] * 8)
    assert row[8:12].tolist() == pytest.approx([0.8, 0.6, 0.4, 0.2])
    assert not row[12:].any()
    assert torch.allclose(feather_region(mask, 2), row.expand(20, -1), atol=1e-6), "the picture's edge faded"


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 60))
@settings(deadline=None, max_examples=40)
def test_two_feathered_halves_still_make_a_whole(height, width, pixels):
    mask = (soft_mask(height, width) > 0.1).float()
    soft, rest = feather_region(mask, pixels), feather_region(1 - mask, pixels)
    assert soft.shape == (height, width)
    assert soft.min() >= 0 and soft.max() <= 1
    assert torch.allclose(soft + rest, torch.ones_like(mask), atol=1e-5)
    if not pixels:
        assert torch.equal(soft, mask)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_feather_further_than_the_mask_is_wide(size):
    soft = feather_region(one_pixel(*size), FAR)
    assert soft.shape == size and torch.isfinite(soft).all()
    assert 0 < soft.sum() <= soft.numel()


def test_a_pixel_keeps_its_weight():
    assert feather_region(one_pixel(41, 41), 8).sum().item() == pytest.approx(1, abs=1e-5)


def test_without_them_the_region_is_the_mask(anna):
    mask = soft_mask(24, 32)
    assert torch.equal(run(anna, mask=mask[None]).region, mask)
    assert run(anna).region is None
    schema = subject_nodes.MMDiffSubjectRegion.GET_SCHEMA()
    assert {given.id: (given.default, given.optional) for given in schema.inputs[-2:]} == {
        "expand": (0, True),
        "feather": (0, True),
    }


def test_expand_comes_before_feather(anna):
    mask = one_pixel(33, 33)
    expected = feather_region(expand_region(mask, 6), 3)
    assert torch.equal(run(anna, mask=mask[None], expand=6, feather=3).region, expected)


def test_the_region_that_a_subject_has_is_changed(anna):
    painted = run(anna, mask=one_pixel(33, 33)[None])
    grown = run(painted, expand=2)
    assert grown.region.sum() == 13
    assert painted.region.sum() == 1, "the node changed the subject that it was given"


def test_an_empty_mask_stays_empty(anna):
    empty = torch.zeros(1, 16, 24)
    for inputs in ({"expand": 5}, {"expand": -5}, {"feather": 5}, {"expand": 5, "feather": 5}):
        assert not run(anna, mask=empty, **inputs).region.any()


@pytest.mark.parametrize("name", ["expand", "feather"])
def test_no_mask_to_change(anna, name):
    with pytest.raises(ValueError, match=rf"{name}: this subject has no mask to change.*set {name} to 0"):
        run(anna, **{name: 3})


def test_shrinking_to_nothing_is_refused(anna):
    with pytest.raises(ValueError, match=r"expand: -4 leaves nothing of the mask \(9 x 7 px\)"):
        run(anna, mask=one_pixel(7, 9)[None], expand=-4)
