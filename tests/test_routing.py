"""Routing by masks: its contracts, measured on latents and at the first cross-attention of a real UNet."""

from dataclasses import replace

import comfy.utils
import pytest
import torch

from helpers import (
    ONE_STEP,
    SIGMAS,
    a_conditioning,
    distance,
    encode,
    guider_for,
    left_half,
    noise_for,
    random_subject,
    record,
    run,
    sample,
    step_of,
)
from mmdiff_model.sampling import apply_subjects, last_routing
from mmdiff_model.sampling.attention import MultimodalCrossAttention
from mmdiff_model.sampling.routing import AUTO, MASKS, OFF, Masks, Part
from mmdiff_model.schedule import Schedule

pytestmark = pytest.mark.hosts

FLOOR = 2e-5  # float32, after a few steps of a UNet with values near 20
ONES, ZEROS = torch.ones(64, 64), torch.zeros(64, 64)
LEFT = left_half()
ODD_SIZES = [(17, 23), (9, 16), (13, 8)]


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1)


@pytest.fixture(scope="module")
def bert(checkpoint):
    return random_subject(checkpoint, 2, photos=2)


@pytest.fixture(scope="module")
def text(tiny, checkpoint, anna, bert):
    """Conditionings of one subject and of two."""
    return {1: encode(tiny, checkpoint, [anna]), 2: encode(tiny, checkpoint, [anna, bert])}


@pytest.fixture(scope="module")
def with_subjects(tiny, checkpoint):
    def apply(*subjects, routing=OFF, fuse_scale=0.8, schedule=None):
        return apply_subjects(tiny.model, checkpoint, subjects, fuse_scale, schedule, routing)

    return apply


def test_one_all_one_mask_is_off(with_subjects, text, anna):
    off = sample(with_subjects(anna), text[1])
    masks = sample(with_subjects(replace(anna, region=ONES), routing=MASKS), text[1])
    assert distance(masks, off) <= FLOOR


def test_all_one_masks_of_two_subjects_are_off(with_subjects, text, anna, bert):
    off = sample(with_subjects(anna, bert), text[2])
    both = (replace(anna, region=ONES), replace(bert, region=ONES))
    assert distance(sample(with_subjects(*both, routing=MASKS), text[2]), off) <= FLOOR
    halves = (replace(anna, region=LEFT), replace(bert, region=1 - LEFT))
    assert distance(sample(with_subjects(*halves, routing=MASKS), text[2]), off) > 0.05


@pytest.mark.parametrize("count", [1, 2])
def test_all_zero_masks_are_strength_zero(with_subjects, text, anna, bert, count):
    subjects = (anna, bert)[:count]
    without = sample(with_subjects(*(replace(subject, strength=0.0) for subject in subjects)), text[count])
    zeros = with_subjects(*(replace(subject, region=ZEROS) for subject in subjects), routing=MASKS)
    assert torch.equal(sample(zeros, text[count]), without)
    assert torch.equal(sample(with_subjects(*subjects, fuse_scale=0.0), text[count]), without)
    assert distance(sample(with_subjects(*subjects), text[count]), without) > 0.05


def test_soft_mask_interpolates_one_subject(with_subjects, text, anna):
    """The image term is linear in the mask, for a constant mask and for a ramp."""
    without = record(with_subjects(anna, fuse_scale=0.0), text[1]).first()
    full = record(with_subjects(anna), text[1]).first() - without
    columns = full.shape[2]
    ramp = torch.linspace(0, 1, columns)
    for mask, weight in ((ONES * 0.3, torch.full((columns,), 0.3)), (ramp.expand(4, -1), ramp)):
        term = record(with_subjects(replace(anna, region=mask), routing=MASKS), text[1]).first() - without
        assert distance(term, full * weight[:, None]) < 1e-4


@pytest.mark.parametrize("weights", [(1.0, 0.25), (0.5, 0.5), (0.0, 0.7), (1.0, 1.0)])
def test_soft_masks_weigh_the_softmax(weights):
    """Each token counts as often as its subject's weight says, and the largest weight scales the image term."""
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 24, 64, generator=random)
    tokens, values = torch.randn(2, 1, 12, 64, generator=random)
    masks = Masks([torch.full((4, 6), weight) for weight in weights], (8, 12))
    options = {"n_heads": 4, "attn_precision": None, "activations_shape": [1, 64, 4, 6]}
    step = step_of([a_conditioning((0, 1), tokens=24)], (4, 8), (8, 12), masks)
    patch = MultimodalCrossAttention(("input", 4, 0), (tokens, values), None)
    term = patch(q, k, v, {**options, "mmdiff": step}) - patch(q, k, v, {**options, "mmdiff": None})
    counts = torch.tensor([weights[0]] * 4 + [weights[1]] * 8)
    heads = []
    for query, key, value in zip(*(x[0].split(16, dim=1) for x in (q, tokens, values)), strict=True):
        scores = (query @ key.T / 4).exp() * counts
        heads.append(scores / scores.sum(dim=1, keepdim=True) @ value)
    assert torch.allclose(term[0], max(weights) * torch.cat(heads, dim=1), atol=1e-5)


def test_permuting_subjects_permutes_nothing_else(tiny, checkpoint, with_subjects, anna, bert):
    a, b = replace(anna, region=LEFT), replace(bert, region=1 - LEFT)
    there = with_subjects(a, b, routing=MASKS)
    back = with_subjects(b, a, routing=MASKS)
    first = sample(there, encode(tiny, checkpoint, [a, b], "a man<|subj:1|> and a woman<|subj:2|> dancing"))
    second = sample(back, encode(tiny, checkpoint, [b, a], "a man<|subj:2|> and a woman<|subj:1|> dancing"))
    assert distance(second, first) <= FLOOR
    assert torch.equal(last_routing(back), last_routing(there).flip(1))


@pytest.mark.parametrize("size", [(16, 16), *ODD_SIZES])
def test_another_bert_changes_nothing_in_annas_region(checkpoint, with_subjects, text, anna, bert, size):
    """Bit for bit, at the first attention: later ones see bert through the UNet's convolutions."""
    a, b = replace(anna, region=LEFT), replace(bert, region=1 - LEFT)
    other = replace(random_subject(checkpoint, 3, photos=2, strength=2.0), cls=bert.cls, region=1 - LEFT)
    before, after = (
        record(with_subjects(a, second, routing=MASKS), text[2], noise=noise_for(size)).first() for second in (b, other)
    )
    border = before.shape[2] // 2
    assert torch.equal(before[:, :, :border], after[:, :, :border])
    assert not torch.equal(before[:, :, border + 1 :], after[:, :, border + 1 :])


@pytest.mark.parametrize("size", ODD_SIZES)
@pytest.mark.parametrize("routing", [OFF, MASKS, AUTO])
def test_every_size_that_sdxl_takes(with_subjects, text, anna, bert, size, routing):
    subjects = (replace(anna, region=ONES), replace(bert, region=ONES))
    latents = sample(with_subjects(*subjects, routing=routing), text[2], noise=noise_for(size), sigmas=ONE_STEP)
    assert latents.shape[2:] == size
    assert latents.isfinite().all()
    if routing == MASKS:
        off = sample(with_subjects(anna, bert), text[2], noise=noise_for(size), sigmas=ONE_STEP)
        assert distance(latents, off) <= FLOOR


@pytest.mark.parametrize("size", [(1, 1), (7, 1024), (333, 111)])
def test_a_mask_of_any_size(with_subjects, text, anna, bert, size):
    off = sample(with_subjects(anna, bert), text[2], sigmas=ONE_STEP)
    regions = (replace(anna, region=torch.ones(size)), replace(bert, region=ONES))
    assert distance(sample(with_subjects(*regions, routing=MASKS), text[2], sigmas=ONE_STEP), off) <= FLOOR


def test_the_size_of_a_mask_does_not_matter(with_subjects, text, anna, bert):
    """The same halves drawn small, large and in two different sizes."""
    drawn = [(LEFT, 1 - LEFT), (left_half(2, 2), 1 - left_half(2, 2)), (left_half(512, 768), 1 - left_half(8, 16))]
    latents = [
        sample(with_subjects(replace(anna, region=a), replace(bert, region=b), routing=MASKS), text[2])
        for a, b in drawn
    ]
    assert distance(latents[1], latents[0]) <= FLOOR
    assert distance(latents[2], latents[0]) <= FLOOR


def test_a_subject_without_region_gets_what_the_others_leave(with_subjects, text, anna, bert):
    given = sample(with_subjects(replace(anna, region=LEFT), replace(bert, region=1 - LEFT), routing=MASKS), text[2])
    rest = sample(with_subjects(replace(anna, region=LEFT), bert, routing=MASKS), text[2])
    assert torch.equal(rest, given)


def test_masks_need_a_region(with_subjects, anna, bert):
    with pytest.raises(ValueError, match="routing: 'masks' needs the region"):
        with_subjects(anna, bert, routing=MASKS)


def test_hires_fix_second_pass(with_subjects, text, anna, bert):
    """Latents upscaled by half and sampled again from denoise 0.5: the masks follow the new size."""
    a, b = replace(anna, region=LEFT), replace(bert, region=1 - LEFT)
    other = replace(bert, tokens=-bert.tokens, region=1 - LEFT)
    low = sample(with_subjects(a, b, routing=MASKS), text[2])
    high = comfy.utils.common_upscale(low, 25, 25, "bislerp", "disabled")
    second = {"latent": high, "noise": noise_for((25, 25)), "sigmas": SIGMAS[1:]}
    before, after = (record(with_subjects(a, who, routing=MASKS), text[2], **second).first() for who in (b, other))
    border = before.shape[2] // 2
    assert torch.equal(before[:, :, :border], after[:, :, :border])
    assert not torch.equal(before[:, :, border + 1 :], after[:, :, border + 1 :])
    everywhere = with_subjects(replace(anna, region=ONES), replace(bert, region=ONES), routing=MASKS)
    assert (
        distance(sample(everywhere, text[2], **second), sample(with_subjects(anna, bert), text[2], **second)) <= FLOOR
    )


@pytest.mark.parametrize("routing", [OFF, MASKS, AUTO])
@pytest.mark.parametrize("cfg", [1.0, 5.0])
def test_each_sample_of_a_batch_is_as_alone(with_subjects, text, anna, bert, routing, cfg):
    model = with_subjects(replace(anna, region=LEFT), bert, routing=routing)
    noise = torch.cat([noise_for(seed=seed) for seed in (5, 6)])
    together = sample(model, text[2], cfg, noise=noise)
    alone = torch.cat([sample(model, text[2], cfg, noise=one[None]) for one in noise])
    assert distance(together, alone) <= 10 * FLOOR


@pytest.mark.parametrize("routing", [OFF, MASKS, AUTO])
def test_unconditional_rows_are_bit_exact(with_subjects, text, anna, bert, routing):
    """No row of the negative prompt knows of the subjects, at any attention of a step that starts equal."""
    subjects = (replace(anna, region=LEFT), replace(bert, region=1 - LEFT))
    without = record(with_subjects(*subjects, fuse_scale=0.0), text[2], noise=noise_for(batch=2))
    given = record(with_subjects(*subjects, routing=routing), text[2], noise=noise_for(batch=2))
    rows = [
        [out.chunk(2)[layout.index(1)] for out, layout in zip(r.outputs, r.layouts, strict=True)]
        for r in (without, given)
    ]
    assert len(rows[0]) == 17
    assert all(torch.equal(a, b) for a, b in zip(*rows, strict=True))
    assert not torch.equal(given.first(0), without.first(0))


def test_class_words_are_kept_out_of_other_regions(with_subjects, text, anna, bert):
    """In bert's region the text attention does not see the embedding at anna's class word, and the other way round."""
    model = with_subjects(replace(anna, region=LEFT), replace(bert, region=1 - LEFT), routing=MASKS)
    off = with_subjects(anna, bert)
    embeddings, options = text[2].positive[0]
    for subject, position in options["mmdiff_class_words"]:
        changed = embeddings.clone()
        changed[:, position] *= -3
        moved = replace(text[2], positive=[[changed, options]])
        before, after = record(model, text[2]).first(), record(model, moved).first()
        border = before.shape[2] // 2
        own, others = (
            (slice(0, border), slice(border, None)) if subject == 0 else (slice(border, None), slice(0, border))
        )
        assert torch.equal(before[:, :, others], after[:, :, others])
        assert not torch.equal(before[:, :, own], after[:, :, own])
        assert not torch.equal(record(off, text[2]).first()[:, :, others], record(off, moved).first()[:, :, others])


def with_area(conditioning, area):
    return [[embeddings, {**options, "area": area, "strength": 1.0}] for embeddings, options in conditioning]


def test_conditioning_area_cuts_the_mask(with_subjects, text, anna):
    """A prompt on the left half sees the left half of the mask, in the latent's place."""
    area = (16, 8, 0, 0)
    left = replace(text[1], positive=with_area(text[1].positive, area), negative=with_area(text[1].negative, area))
    off = sample(with_subjects(anna), left)
    inside = sample(with_subjects(replace(anna, region=LEFT), routing=MASKS), left)
    outside = sample(with_subjects(replace(anna, region=1 - LEFT), routing=MASKS), left)
    assert distance(inside, off) <= FLOOR
    assert torch.equal(outside, sample(with_subjects(anna, fuse_scale=0.0), left))


@pytest.mark.parametrize("restricted", ["positive", "negative"])
def test_an_area_on_one_side_leaves_the_other_side_as_it_is(with_subjects, text, anna, restricted):
    """ComfyUI gives the other side a twin of the restricted conditioning; the twin is of its own side."""
    area = (16, 8, 0, 0)
    half = replace(text[1], **{restricted: with_area(getattr(text[1], restricted), area)})
    predictions = [
        sample(with_subjects(anna, fuse_scale=scale), half, cfg, sigmas=ONE_STEP)
        for scale in (0.0, 0.8)
        for cfg in (0.0, 1.0 + 1e-6)
    ]
    negative_without, positive_without, negative, positive = predictions
    assert torch.equal(negative, negative_without)
    columns = slice(0, 8) if restricted == "positive" else slice(None)
    assert distance(positive[..., columns], positive_without[..., columns]) > 0.05


def test_strength_belongs_to_a_subject(with_subjects, text, anna, bert):
    """A strength of zero leaves the other subject's image term as it is alone; the term is linear in the strength."""
    without = record(with_subjects(anna, bert, fuse_scale=0.0), text[2]).first()
    alone = record(with_subjects(anna), text[2]).first() - without
    silent = record(with_subjects(anna, replace(bert, strength=0.0)), text[2]).first() - without
    assert torch.equal(silent, alone)
    double = record(with_subjects(replace(anna, strength=2.0)), text[2]).first() - without
    assert distance(double, 2 * alone) < 1e-4


@pytest.mark.parametrize("side", [8, 16, 64, 1024])
def test_a_mask_of_any_size_is_cut_where_it_is(side):
    """An area sees its part of a mask to the latent, though the mask has larger pixels."""
    mask = torch.zeros(side, side)
    mask[:, : side // 2] = 1
    for x in range(0, 97, 4):
        part = Part(slice(0, 1), (0,), place=(128, 32, 0, x))
        weights = Masks([mask], (128, 128)).weights(part, (64, 16)).view(64, 16)
        border = [max(0.0, min(1.0, (64 - x - 2 * column) / 2)) for column in range(16)]
        assert torch.allclose(weights, torch.tensor(border).expand(64, -1), atol=1e-6)


@pytest.mark.parametrize("silent", [0, 1])
def test_strength_zero_keeps_the_text_apart(with_subjects, text, anna, bert, silent):
    """A strength of zero switches the image term off and nothing else: it is the limit of small strengths."""
    both = [replace(anna, region=LEFT), replace(bert, region=1 - LEFT)]
    zero, small = (
        [replace(who, strength=strength if i == silent else 1.0) for i, who in enumerate(both)]
        for strength in (0.0, 1e-6)
    )
    zero, small, off = (
        record(with_subjects(*subjects, routing=routing), text[2]).first()
        for subjects, routing in ((zero, MASKS), (small, MASKS), (zero, OFF))
    )
    assert distance(zero, small) <= FLOOR
    assert distance(zero, off) > 0.01


def test_range_belongs_to_a_subject(with_subjects, text, anna, bert):
    """Until bert starts, each step is bit for bit that of anna alone; then he acts."""
    sigmas = [14.0, 4.0, 1.2, 0.5, 0.0]
    late = with_subjects(anna, replace(bert, start_percent=0.5))
    paths = []
    for model in (late, with_subjects(anna), with_subjects(anna, bert)):
        path = []
        run(
            guider_for(model, text[2]),
            sigmas=sigmas,
            callback=lambda step, x0, x, total, path=path: path.append(x0.clone()),
        )
        paths.append(path)
    boundary = late.get_model_object("model_sampling").percent_to_sigma(0.5)
    waiting = sum(sigma > boundary for sigma in sigmas)
    assert 0 < waiting < len(sigmas) - 1
    equal = [torch.equal(a, b) for a, b in zip(paths[0], paths[1], strict=True)]
    assert equal == [True] * waiting + [False] * (len(equal) - waiting)
    assert not torch.equal(paths[0][0], paths[2][0])


def test_schedule_bounds_every_subject(with_subjects, text, anna):
    """A range of the whole schedule is that range on the subject."""
    by_schedule = sample(with_subjects(anna, schedule=Schedule(0.2, 0.9)), text[1])
    by_subject = sample(with_subjects(replace(anna, start_percent=0.2, end_percent=0.9)), text[1])
    assert torch.equal(by_schedule, by_subject)


def test_regions_without_routing_are_pointed_out(with_subjects, anna, caplog):
    with_subjects(replace(anna, region=LEFT), routing=OFF)
    assert "subjects have regions, but routing is 'off' and ignores them" in caplog.text
