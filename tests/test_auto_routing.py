"""Routing `auto`: regions read from the class words' attention while sampling, and what it leaves for previews."""

from dataclasses import replace

import mm_diff_pack.nodes.routing_preview as preview
import pytest
import torch
from PIL import ImageColor

from helpers import (
    ONE_STEP,
    a_conditioning,
    distance,
    encode,
    left_half,
    noise_for,
    random_subject,
    sample,
    step_of,
)
from mmdiff_model.drawing import colour
from mmdiff_model.sampling import apply_subjects, last_routing
from mmdiff_model.sampling.attention import Attention
from mmdiff_model.sampling.routing import AUTO, MASKS, OFF, Auto, Part
from mmdiff_model.sampling.routing.auto import reading_blocks, separate, word_attention
from mmdiff_model.schedule import Schedule

pytestmark = pytest.mark.hosts

LONG = (14.0, 8.0, 4.1, 2.0, 1.2, 0.7, 0.3, 0.0)


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1)


@pytest.fixture(scope="module")
def bert(checkpoint):
    return random_subject(checkpoint, 2)


@pytest.fixture(scope="module")
def text(tiny, checkpoint, anna, bert):
    return encode(tiny, checkpoint, [anna, bert])


@pytest.fixture(scope="module")
def with_subjects(tiny, checkpoint):
    def apply(*subjects, routing=AUTO, schedule=None):
        return apply_subjects(tiny.model, checkpoint, subjects, 0.8, schedule, routing)

    return apply


def bump(row: int, column: int, width: float = 2.0, size: int = 16) -> torch.Tensor:
    """A round peak of height one, (size * size,)."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return torch.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * width**2)).flatten()


def at(weights: torch.Tensor, subject: int, row: int, column: int) -> float:
    return float(weights[0, subject].view(16, 16)[row, column])


def test_two_peaks_divide_the_picture():
    """Each subject keeps its own peak and loses the other's; where nobody is, both may go."""
    weights = separate(torch.stack([bump(8, 3), bump(8, 12)])[None])
    assert at(weights, 0, 8, 3) == at(weights, 1, 8, 12) == 1
    assert at(weights, 0, 8, 12) < 0.01
    assert at(weights, 1, 8, 3) < 0.01
    assert min(at(weights, 0, 0, 8), at(weights, 1, 0, 8)) > 0.99
    assert weights.min() >= 0
    assert weights.max() <= 1


@pytest.mark.parametrize(
    "maps",
    [
        torch.ones(2, 256),
        torch.stack([bump(8, 8), bump(8, 8)]),
        torch.stack([bump(8, 8), 5 * bump(8, 8)]),
        torch.stack([bump(8, 3), torch.full((256,), 0.4)]),
    ],
    ids=["flat", "same place", "same place, other height", "one of two flat"],
)
def test_subjects_that_cannot_be_told_apart_share(maps):
    assert torch.allclose(separate(maps[None]), torch.ones(1, *maps.shape), atol=1e-5)


def test_separation_knows_no_order_and_no_scale():
    maps = torch.stack([bump(8, 3), bump(8, 12), bump(2, 8)])[None]
    weights = separate(maps)
    assert torch.allclose(separate(maps.flip(1)), weights.flip(1), atol=1e-5)
    assert torch.allclose(separate(maps * torch.tensor([1.0, 7.0, 0.1])[None, :, None]), weights, atol=1e-5)


def test_overlap_falls_back_towards_off():
    """The nearer two subjects stand, the less either of them loses at the other's peak."""
    losses = []
    for gap in (10, 6, 4, 2, 0):
        weights = separate(torch.stack([bump(8, 3), bump(8, 3 + gap)])[None])
        losses.append(1 - at(weights, 0, 8, 3 + gap))
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > 0.99
    assert losses[-1] < 1e-5


def test_maps_are_the_attention_to_each_subjects_words():
    """Words of one subject are averaged; a subject's map does not depend on the order of the words."""
    q, k = torch.randn(2, 12, 64), torch.randn(2, 9, 64)
    maps = word_attention(q, k, 4, (1, 0, 1), torch.tensor([5, 2, 7]))
    heads = [
        torch.softmax(a @ b.transpose(1, 2) / 4, dim=-1) for a, b in zip(q.split(16, 2), k.split(16, 2), strict=True)
    ]
    attention = torch.stack(heads).mean(dim=0)
    assert torch.allclose(maps[:, 0], attention[..., 2], atol=1e-6)
    assert torch.allclose(maps[:, 1], attention[..., [5, 7]].mean(dim=-1), atol=1e-6)


def test_a_prompt_that_tells_nothing_is_off():
    """Where every pixel attends alike, the weights are one."""
    auto = Auto([("input", 4, 0)])
    positions = torch.tensor([2, 5])
    part = Part(slice(0, 1), (0, 1), (0, 1), positions, 9, place=(32, 32, 0, 0), pictures=(0,), whole=True)
    options = {"n_heads": 4, "activations_shape": [1, 64, 16, 16]}
    q, k = torch.randn(1, 1, 64).expand(1, 256, 64), torch.randn(1, 9, 64)
    assert auto.read(Attention(("input", 4, 0), q, k, k, (), options), part)
    assert torch.allclose(auto.weights(part, (8, 8)), torch.ones(1, 2, 64), atol=1e-5)


def test_class_words_that_point_apart_route_like_masks():
    """One call of a reading attention is enough: where anna's word is attended to, bert's tokens are not seen."""
    random = torch.Generator().manual_seed(0)
    block, width, (height, columns) = ("input", 7, 1), 64, (8, 16)
    anna, bert = torch.randn(2, width, generator=random)
    q = torch.stack([anna] * 8 + [bert] * 8).expand(height, -1, -1).reshape(1, -1, width)
    k, v = torch.randn(2, 1, 77, width, generator=random)
    k[:, 4], k[:, 9] = 2 * anna, 2 * bert
    prompt = a_conditioning((0, 1), ((0, 4), (1, 9)))
    options = {"n_heads": 4, "attn_precision": None, "activations_shape": [1, width, height, columns]}
    tokens, others = torch.randn(2, 1, 8, width, generator=random)

    def attend(values):
        step = step_of([prompt], (4, 4), (16, 32), Auto([block]))
        return step.attend(Attention(block, q, k, v, (tokens, values), options)).view(height, columns, width)

    first = torch.randn(1, 8, width, generator=random)
    changed = torch.cat((first[:, :4], others[:, 4:]), dim=1)
    before, after = attend(first), attend(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert (before[:, 9:] - after[:, 9:]).abs().amax(dim=-1).min() > 0.1


def test_read_at_the_deepest_level_outside_the_middle():
    widths = {
        ("input", 4, 0): 64,
        ("input", 7, 0): 128,
        ("input", 7, 1): 128,
        ("middle", 0, 0): 128,
        ("output", 0, 1): 128,
    }
    assert set(reading_blocks(widths)) == {("input", 7, 1), ("output", 0, 1)}


@pytest.mark.parametrize("start", [0.0, 0.3])
def test_it_works_from_the_first_step_it_acts_on(with_subjects, text, anna, bert, start):
    """One step is enough for regions, at the start of sampling and at a later start."""
    schedule = Schedule(start, 1.0)
    sigma = (
        float(with_subjects(anna).get_model_object("model_sampling").percent_to_sigma(start)) * 0.99 if start else 4.1
    )
    auto = with_subjects(anna, bert, schedule=schedule)
    routed = sample(auto, text, sigmas=(sigma, 0.0))
    assert (
        distance(routed, sample(with_subjects(anna, bert, routing=OFF, schedule=schedule), text, sigmas=(sigma, 0.0)))
        > 1e-3
    )
    assert last_routing(auto).shape == (1, 2, 4, 4)


def test_nothing_is_read_before_it_acts(with_subjects, text, anna, bert):
    waiting = with_subjects(anna, bert, schedule=Schedule(0.9, 1.0))
    sample(waiting, text, sigmas=(14.0, 4.1))
    assert last_routing(waiting) is None


def test_regions_are_stable_from_step_to_step(with_subjects, text, anna, bert):
    """Regions after 1, 2, ... steps of one trajectory move by little, and less and less."""
    auto = with_subjects(anna, bert)
    history = []
    for steps in range(1, len(LONG)):
        sample(auto, text, 1.0, sigmas=LONG[: steps + 1])
        history.append(last_routing(auto))
    moves = [float((b - a).abs().max()) for a, b in zip(history, history[1:], strict=False)]
    assert max(moves) < 0.1
    assert sum(moves[3:]) < sum(moves[:3])


def test_one_subject_has_no_rival(tiny, checkpoint, with_subjects, anna):
    text = encode(tiny, checkpoint, [anna])
    auto = with_subjects(anna)
    assert torch.equal(sample(auto, text), sample(with_subjects(anna, routing=OFF), text))
    assert last_routing(auto) is None


def test_each_sample_of_a_batch_has_its_own_regions(with_subjects, text, anna, bert):
    auto = with_subjects(anna, bert)
    noise = torch.cat([noise_for(seed=5), noise_for(seed=6)])
    sample(auto, text, noise=noise)
    together = last_routing(auto)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    for one, weights in zip(noise, together, strict=True):
        sample(auto, text, noise=one[None])
        assert torch.allclose(last_routing(auto)[0], weights, atol=1e-3)


def test_a_run_leaves_nothing_for_the_next(tiny, checkpoint, with_subjects, text, anna, bert):
    """The same run gives the same bits after runs of other sizes, seeds and prompts."""
    auto = with_subjects(anna, bert)
    first = sample(auto, text)
    weights = last_routing(auto)
    sample(
        auto,
        encode(tiny, checkpoint, [anna, bert], "a woman<|subj|> beside a tall man<|subj|>"),
        noise=noise_for((9, 13), 2, 1),
    )
    assert last_routing(auto).shape != weights.shape
    assert torch.equal(sample(auto, text), first)
    assert torch.equal(last_routing(auto), weights)


def test_regions_stay_with_their_prompts(tiny, checkpoint, with_subjects, text, anna, bert):
    """A second prompt beside the first one is read apart: each keeps the regions that it has alone."""
    other = encode(tiny, checkpoint, [anna, bert], "in the park a woman<|subj:2|> waves at a man<|subj:1|>")
    auto = with_subjects(anna, bert)
    alone = [
        sample(auto, replace(text, positive=positive), 1.0, sigmas=ONE_STEP)
        for positive in (text.positive, other.positive)
    ]
    both = sample(auto, replace(text, positive=text.positive + other.positive), 1.0, sigmas=ONE_STEP)
    assert distance(both, sum(alone) / 2) < 2e-5


def test_masks_are_recorded_as_given(with_subjects, text, anna, bert):
    masks = with_subjects(replace(anna, region=left_half()), bert, routing=MASKS)
    assert last_routing(masks) is None
    sample(masks, text, sigmas=ONE_STEP)
    assert torch.equal(last_routing(masks), torch.stack([left_half(), 1 - left_half()])[None])


def test_preview_shows_each_subject_over_the_picture(with_subjects, text, anna, bert, folder_for_previews):
    masks = with_subjects(replace(anna, region=left_half()), bert, routing=MASKS)
    sample(masks, text, sigmas=ONE_STEP, noise=noise_for(batch=2))
    pictures = torch.full((2, 128, 128, 3), 0.5)
    maps = preview.MMDiffRoutingPreview.execute(masks, pictures, 1.0).args[0]
    assert maps.shape == (4, 128, 128, 3)
    plain = pictures[0, 0, 0]
    for index, (coloured, empty) in enumerate([(20, 100), (100, 20)]):
        assert torch.allclose(maps[index][64, empty], plain, atol=1e-3)
        assert torch.allclose(
            maps[index][64, coloured], torch.tensor(ImageColor.getrgb(colour(index + 1))) / 255 * 0.65, atol=1e-3
        )


def test_preview_without_a_record_says_why(tiny, with_subjects, text, anna, bert, folder_for_previews):
    """It never stops a graph: the pictures pass, with a line beside them."""
    off, auto, pictures = with_subjects(anna, bert, routing=OFF), with_subjects(anna, bert), torch.rand(3, 8, 8, 3)
    sample(off, text, sigmas=ONE_STEP)
    for model, why in ((tiny.model, "carries no subjects"), (off, "routing is 'off'"), (auto, "read no regions")):
        shown = preview.MMDiffRoutingPreview.execute(model, pictures, 0.5)
        assert torch.equal(shown.args[0], pictures)
        assert why in shown.ui["text"][0]
        assert len(shown.ui["images"]) == 3


def test_preview_of_more_pictures_than_were_sampled(with_subjects, text, anna, bert, folder_for_previews):
    auto = with_subjects(anna, bert)
    sample(auto, text, sigmas=ONE_STEP, noise=noise_for(batch=2))
    assert len(preview.MMDiffRoutingPreview.execute(auto, torch.rand(3, 8, 8, 3), 0.5).args[0]) == 6


def test_a_subject_that_ends_early_keeps_its_place(tiny, checkpoint, with_subjects, anna, bert):
    """The record has every subject of the model; the one that ended, where it was last."""
    carl = random_subject(checkpoint, 3)
    text = encode(tiny, checkpoint, [anna, bert, carl], "a man<|subj|>, a woman<|subj|> and a dog<|subj|> dancing")
    auto = with_subjects(replace(anna, end_percent=0.5), bert, carl)
    sample(auto, text, sigmas=LONG)
    record = last_routing(auto)
    assert record.shape[:2] == (1, 3)
    assert (record.amax(dim=(0, 2, 3)) > 0.5).all()


@pytest.fixture
def folder_for_previews(tmp_path, monkeypatch):
    """Previews are written to a folder of the test's own."""
    import folder_paths

    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
