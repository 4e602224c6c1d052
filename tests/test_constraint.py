"""Attention-map constraints against maps computed by hand."""

import pytest
import torch
from torch import Tensor

from mmdiff_model.sampling.attention import Attention
from mmdiff_model.training.constraint import (
    BALANCE,
    MASKED,
    AttentionConstraint,
    balance,
    masked,
    subject_maps,
    word_maps,
)

HEADS, WIDTH, SIDE = 2, 8, 4
OPTIONS = {"n_heads": HEADS, "activations_shape": [1, WIDTH, SIDE, SIDE]}
LEFT = torch.tensor([1.0, 0.0]).repeat_interleave(2).expand(SIDE, SIDE)
MASKS = torch.stack((LEFT, 1 - LEFT))[None]
BOTH, FIRST = torch.tensor([[True, True]]), torch.tensor([[True, False]])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_balance_is_the_mean_outside_minus_the_mean_inside():
    maps = torch.tensor([[[0.8, 0.4, 0.1, 0.3]]])
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    assert balance(maps, masks, torch.tensor([[True]])).item() == pytest.approx(0.2 - 0.6)


def test_balance_of_a_soft_mask_weighs_its_pixels():
    maps = torch.tensor([[[0.8, 0.4]]])
    masks = torch.tensor([[[1.0, 0.5]]])
    assert balance(maps, masks, torch.tensor([[True]])).item() == pytest.approx(0.4 - (0.8 + 0.2) / 1.5)


def test_masked_is_the_squared_distance_to_the_mask():
    maps = torch.tensor([[[0.8, 0.4, 0.1, 0.3]]])
    masks = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    expected = (0.04 + 0.36 + 0.01 + 0.09) / 4
    assert masked(maps, masks, torch.tensor([[True]])).item() == pytest.approx(expected)


@pytest.mark.parametrize("formula", [balance, masked])
def test_absent_subjects_do_not_count(formula):
    maps, masks = torch.rand(1, 2, 16, generator=torch.Generator().manual_seed(1)), MASKS.flatten(2)
    assert formula(maps, masks, FIRST) == formula(maps[:, :1], masks[:, :1], FIRST[:, :1])
    assert formula(maps, masks, torch.zeros_like(BOTH)) == 0


def test_word_maps_are_the_words_columns_of_the_attention():
    q, k, positions = random(2, 5, WIDTH), random(2, 7, WIDTH, seed=1), torch.tensor([[3, 1], [0, 6]])
    found = word_maps(q, k, HEADS, positions)
    for row in range(2):
        heads = [
            (q[row, :, part] @ k[row, :, part].T / (WIDTH / HEADS) ** 0.5).softmax(dim=-1)
            for part in (slice(0, 4), slice(4, 8))
        ]
        expected = torch.stack(heads).mean(dim=0)[:, positions[row]].T
        torch.testing.assert_close(found[row], expected)


def test_subject_maps_sum_each_subjects_tokens_and_leave_the_rest_to_the_background():
    q, k = random(1, 5, WIDTH), random(1, 2 * 3 + 2, WIDTH, seed=1)
    subjects, rest = subject_maps(q, k, HEADS, torch.zeros(1, 1, 1, 6), 2)
    heads = [
        (q[0, :, part] @ k[0, :, part].T / (WIDTH / HEADS) ** 0.5).softmax(dim=-1)
        for part in (slice(0, 4), slice(4, 8))
    ]
    attention = torch.stack(heads).mean(dim=0)
    torch.testing.assert_close(subjects[0, 0], attention[:, :3].sum(dim=1))
    torch.testing.assert_close(subjects[0, 1], attention[:, 3:6].sum(dim=1))
    torch.testing.assert_close(rest[0, 0], attention[:, 6:].sum(dim=1))


@pytest.mark.parametrize("kind", [BALANCE, MASKED])
def test_maps_are_made_in_float32_whatever_the_models_precision(kind):
    q, k, image = (random(1, n, WIDTH, seed=n).bfloat16() for n in (SIDE * SIDE, 7, 6))
    attention = Attention(("input", 4, 0), q, k, k, (image, image), OPTIONS)
    totals = []
    for autocast in (False, True):
        constraint = AttentionConstraint(kind, MASKS, torch.tensor([[3, 1]]), text=BOTH, image=BOTH)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            constraint.read(attention, BOTH)
        totals.append(constraint.total())
    for kind, total in totals[0].items():
        assert total.dtype == torch.float32 and torch.equal(total, totals[1][kind])


def test_tokens_of_absent_subjects_get_no_attention():
    bias = torch.tensor([0.0, 0.0, -1e4, -1e4])[None, None, None]
    subjects, _ = subject_maps(random(1, 5, WIDTH), random(1, 4, WIDTH, seed=1), HEADS, bias, 2)
    torch.testing.assert_close(subjects[0, 0], torch.ones(5))
    torch.testing.assert_close(subjects[0, 1], torch.zeros(5))


def read(kind: str, present: Tensor, background: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
    """A constraint's totals over one cross-attention of random values, and the image keys that it saw."""
    constraint = AttentionConstraint(kind, MASKS, torch.tensor([[2, 4]]), text=present, image=present)
    if background is not None:
        constraint.background = {("input", 1, 0): background}
    k_image = random(1, 6, WIDTH, seed=3).requires_grad_()
    q, k_text = random(1, SIDE * SIDE, WIDTH, seed=1), random(1, 77, WIDTH, seed=2)
    constraint.read(Attention(("input", 1, 0), q, k_text, k_text, (k_image, k_image), OPTIONS), present)
    return constraint.total(), k_image


def gradient(value: Tensor, keys: Tensor) -> Tensor:
    return torch.autograd.grad(value, keys)[0]


@torch.enable_grad()
def test_balance_moves_the_image_keys_of_two_subjects_and_never_those_of_one():
    totals, keys = read(BALANCE, BOTH)
    assert gradient(totals["image"], keys).abs().amax() > 1e-3
    totals, keys = read(BALANCE, FIRST)
    assert totals["image"] == 0 and totals["text"] != 0


@torch.enable_grad()
def test_background_tokens_give_the_image_map_of_one_subject_a_gradient():
    totals, keys = read(MASKED, FIRST)
    assert gradient(totals["image"], keys).abs().amax() < 1e-6, "a softmax over its own tokens is one everywhere"
    totals, keys = read(MASKED, FIRST, background=random(1, 2, WIDTH, seed=4))
    assert gradient(totals["image"], keys)[:, :3].abs().amax() > 1e-3


def test_an_attention_that_runs_twice_counts_once():
    constraint = AttentionConstraint(BALANCE, MASKS, torch.tensor([[2, 4]]), text=BOTH, image=BOTH)
    totals = []
    for seed in (1, 2):
        q, k_text, k_image = random(1, 16, WIDTH, seed=seed), random(1, 77, WIDTH), random(1, 6, WIDTH)
        constraint.read(Attention(("input", 1, 0), q, k_text, k_text, (k_image, k_image), OPTIONS), BOTH)
        totals.append(constraint.total())
    assert totals[0] == totals[1]
