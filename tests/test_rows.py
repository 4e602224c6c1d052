"""Whose a row is: layouts of other packs, each against the same rows sampled one at a time."""

from dataclasses import replace
from types import SimpleNamespace

import comfy.hooks
import comfy_extras.nodes_context_windows as context_windows
import comfy_extras.nodes_perpneg as perpneg
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

import neighbour_packs as packs
import nodes as core
from helpers import ONE_STEP, a_conditioning, distance, encode, left_half, noise_for, random_subject, record, sample
from mmdiff_model.sampling import apply_subjects, last_routing
from mmdiff_model.sampling.attention import Attention
from mmdiff_model.sampling.conditionings import match_subject
from mmdiff_model.sampling.record import why_no_routing
from mmdiff_model.sampling.routing import AUTO, MASKS, MODES, OFF, Masks, Routing
from mmdiff_model.sampling.rows import Call, Row, rows_by_text
from mmdiff_model.sampling.step import Step
from mmdiff_model.subject import identify
from mmdiff_model.subject_file import load_subject, save_subject

pytestmark = pytest.mark.hosts

FLOOR = 5e-5
HALVES = (slice(0, 8), slice(8, 16))
THIRDS = (slice(0, 8), slice(4, 12), slice(8, 16))
TWO_STEPS = (4.1, 1.2, 0.0)


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1, name="anna", region=left_half())


@pytest.fixture(scope="module")
def bert(checkpoint):
    return random_subject(checkpoint, 2, name="bert", photos=2, region=1 - left_half())


@pytest.fixture(scope="module")
def text(tiny, checkpoint, anna, bert):
    return encode(tiny, checkpoint, [anna, bert])


@pytest.fixture(scope="module")
def ours(tiny, checkpoint, anna, bert):
    """The two on a model, with a routing."""

    def apply(routing=OFF, model=None, scale=0.8):
        return apply_subjects(model or tiny.model, checkpoint, [anna, bert], scale, routing=routing)

    return apply


@pytest.mark.parametrize("routing", MODES)
@pytest.mark.parametrize("tiles, at_once", [(HALVES, 2), (THIRDS, 2), (THIRDS, 3), (THIRDS, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_tiles(ours, text, caplog, routing, tiles, at_once, batch):
    """Tile-major batches, even and not. A tile does not know its place: it is routed as `off` is, said once."""
    noise = noise_for(batch=batch)
    tiled, singly = (
        sample(packs.in_tiles(ours(routing), at_once, tiles, alone), text, noise=noise, sigmas=TWO_STEPS)
        for alone in (False, True)
    )
    assert distance(tiled, singly) <= FLOOR
    off = sample(packs.in_tiles(ours(OFF), at_once, tiles), text, noise=noise, sigmas=TWO_STEPS)
    assert distance(tiled, off) <= FLOOR
    if routing != OFF:
        assert caplog.text.count("They are routed 'off'") == 2


@pytest.mark.parametrize("routing", MODES)
@pytest.mark.parametrize("how", ["host", "theirs"])
def test_context_windows(ours, text, routing, how):
    """Each window of pictures is as it is alone, its maps its own."""
    noise = torch.cat([noise_for(seed=seed) for seed in range(5, 9)])
    if how == "host":
        node = context_windows.ContextWindowsManualNode
        model = node.execute(ours(routing), 2, 0, "standard_static", 1, False, "flat", 0, freenoise=False).args[0]
    else:
        model = packs.in_windows(ours(routing), [[0, 1], [2, 3]])
    together = sample(model, text, noise=noise, sigmas=TWO_STEPS)
    alone = torch.cat([sample(ours(routing), text, noise=pair, sigmas=TWO_STEPS) for pair in noise.split(2)])
    assert distance(together, alone) <= FLOOR
    if routing == AUTO:
        assert last_routing(model).shape[:2] == (4, 2)


@pytest.mark.parametrize("routing", MODES)
@pytest.mark.parametrize(
    "neighbour", [packs.rows_singly, packs.past_apply_model, packs.without_precision], ids=lambda pack: pack.__name__
)
def test_packs_that_change_no_number(ours, text, routing, neighbour):
    plain = sample(ours(routing), text, sigmas=TWO_STEPS)
    assert distance(sample(neighbour(ours(routing)), text, sigmas=TWO_STEPS), plain) <= FLOOR


@pytest.mark.parametrize("routing", MODES)
def test_rows_singly_of_several_prompts(tiny, checkpoint, anna, bert, ours, text, routing):
    """Each row is routed by its own prompt, though one call's options stand for all of them."""
    prompts = ["a man<|subj:anna|> dancing", "a big dog<|subj:bert|>", "two: a woman<|subj:bert|>, a man<|subj:anna|>"]
    several = [encode(tiny, checkpoint, [anna, bert], prompt).positive[0] for prompt in prompts]
    text = replace(text, positive=[*several, *text.positive])
    plain = sample(ours(routing), text, sigmas=TWO_STEPS)
    assert distance(sample(packs.rows_singly(ours(routing)), text, sigmas=TWO_STEPS), plain) <= FLOOR


@pytest.mark.parametrize("routing", MODES)
def test_pictures_singly(ours, text, caplog, routing):
    """Both sides of one picture, then of the next: which picture a row is of is not known, so `auto` is `off`."""
    noise = noise_for(batch=2)
    plain = sample(ours(OFF if routing == AUTO else routing), text, noise=noise, sigmas=TWO_STEPS)
    singly = sample(packs.pictures_singly(ours(routing)), text, noise=noise, sigmas=TWO_STEPS)
    assert distance(singly, plain) <= FLOOR
    assert ("which of the batch's whole pictures they are" in caplog.text) == (routing == AUTO)


@pytest.mark.parametrize("routing", MODES)
def test_one_prompt_in_two_areas(ours, text, caplog, routing):
    """Rows by themselves do not tell which of the areas they see: no mask is better than the other area's."""
    area = {"strength": 1.0, "area": (16, 8, 0, 0)}
    halves = [
        [embeddings, {**entry, **area, "area": (16, 8, 0, x)}] for embeddings, entry in text.positive for x in (0, 8)
    ]
    text = replace(text, positive=halves)
    singly = sample(packs.rows_singly(ours(routing)), text, 1.0, sigmas=TWO_STEPS)
    assert distance(singly, sample(ours(OFF), text, 1.0, sigmas=TWO_STEPS)) <= FLOOR
    assert ("They are routed 'off'" in caplog.text) == (routing != OFF)


@pytest.mark.parametrize("routing", MODES)
def test_tiles_in_context_windows(ours, text, routing):
    """Two tiles of a window of two pictures are as many rows as the whole batch, and other ones."""
    noise = torch.cat([noise_for(seed=seed) for seed in range(5, 9)])
    together, singly = (
        sample(packs.in_windows(packs.in_tiles(ours(routing), 2, HALVES, alone), [[0, 1], [2, 3]]), text, noise=noise)
        for alone in (False, True)
    )
    assert distance(together, singly) <= FLOOR


def test_nothing_routed_is_no_decision(ours, text):
    """A run whose every call was routed `off` leaves no map for the preview."""
    model = packs.in_tiles(ours(MASKS), 2, HALVES)
    sample(model, text, sigmas=ONE_STEP)
    assert last_routing(model) is None
    assert "was routed 'off'" in why_no_routing(model)


def test_a_prompt_that_the_run_does_not_know_is_pointed_out(ours, text, caplog):
    """Perp-Neg (deprecated) samples an empty prompt of its own."""
    model = perpneg.PerpNeg.execute(ours(), text.negative, 1.0).args[0]
    sample(model, text, sigmas=TWO_STEPS)
    assert caplog.text.count("a prompt that is not among the sampler's. It gets no subject.") == 1


@pytest.mark.parametrize("neighbour", [lambda model: model, packs.past_apply_model], ids=["plain", "past_apply_model"])
def test_a_replace_patch_of_a_hook_stays(tiny, ours, text, neighbour):
    """ComfyUI puts the model's replace patches over those of a conditioning's hooks; ours goes on top of theirs."""

    def half(q, k, v, extra_options):
        return 0.5 * optimized_attention(q, k, v, extra_options["n_heads"])

    on_model = tiny.model.clone()
    on_model.set_model_attn2_replace(half, *packs.BLOCK)
    expected = sample(ours(model=on_model), text, 1.0, sigmas=ONE_STEP)
    group = comfy.hooks.HookGroup()
    patches = {"patches_replace": {"attn2": {packs.BLOCK: half}}}
    group.add(comfy.hooks.TransformerOptionsHook(patches, hook_scope=comfy.hooks.EnumHookScope.HookedOnly))
    hooked = replace(text, positive=comfy.hooks.set_hooks_for_conditioning(text.positive, group))
    assert distance(sample(neighbour(ours()), hooked, 1.0, sigmas=ONE_STEP), expected) <= FLOOR
    assert distance(sample(ours(), text, 1.0, sigmas=ONE_STEP), expected) > 0.01


def test_a_call_without_the_samplers_options_gets_no_subject(ours, text, caplog):
    given, without = (
        sample(packs.past_every_option(model), text, sigmas=TWO_STEPS) for model in (ours(), ours(scale=0.0))
    )
    assert torch.equal(given, without)
    assert caplog.text.count("runs the model without the sampler's conditionings") == 2


@pytest.mark.parametrize("routing", [OFF, MASKS])
def test_what_a_previous_patch_keeps_stays_its_own(tiny, ours, text, routing):
    """What another pack's patch gave and keeps (a cache) has no term of ours in it."""
    kept = []

    def previous(q, k, v, extra_options):
        out = optimized_attention(q, k, v, extra_options["n_heads"])
        kept.append((out, out.clone()))
        return out

    model = tiny.model.clone()
    model.set_model_attn2_replace(previous, *packs.BLOCK)
    sample(ours(routing, model), text, sigmas=ONE_STEP)
    assert kept and all(torch.equal(out, before) for out, before in kept)


@pytest.mark.parametrize("routing", MODES)
@pytest.mark.parametrize(
    "neighbour",
    [lambda model: model, packs.rows_singly, lambda model: packs.in_tiles(model, 2, HALVES)],
    ids=["plain", "rows_singly", "in_tiles"],
)
def test_a_text_for_each_picture(tiny, checkpoint, anna, bert, ours, text, caplog, routing, neighbour):
    """A prompt schedule's conditioning, one text for each picture of the batch: each is as it is alone.

    A row by itself does not tell which picture of several it is, so `auto` is `off` there, and says so.
    """
    other = encode(tiny, checkpoint, [anna, bert], "a man<|subj|> and a woman<|subj|> asleep")
    noise = noise_for(batch=2)

    def pictures(embeddings, noise, routing=routing):
        positive = [[embeddings, text.positive[0][1]]]
        return sample(neighbour(ours(routing)), replace(text, positive=positive), noise=noise, sigmas=TWO_STEPS)

    texts, found = [text.positive[0][0], other.positive[0][0]], routing
    together = pictures(torch.cat(texts), noise)
    if routing == AUTO and neighbour is packs.rows_singly:
        assert "which of the batch's whole pictures they are" in caplog.text
        found = OFF
    alone = torch.cat([pictures(own, one, found) for own, one in zip(texts, noise.split(1), strict=True)])
    assert distance(together, alone) <= FLOOR
    assert distance(pictures(texts[0], noise), alone) > 100 * FLOOR


@pytest.mark.parametrize("routing", MODES)
def test_keys_and_values_of_their_own(tiny, checkpoint, anna, bert, ours, text, routing):
    """A conditioning with each token twice is the plain one, class words included."""
    model, clip = packs.keys_and_values_apart(tiny.model, tiny.clip)
    doubled = encode(SimpleNamespace(clip=clip), checkpoint, [anna, bert])
    assert doubled.positive[0][0].shape[1] == 154
    assert distance(sample(ours(routing, model), doubled), sample(ours(routing), text)) <= FLOOR


@pytest.mark.parametrize("key", [None, *packs.LAYOUT_KEYS])
@pytest.mark.parametrize("prompts", [1, 2])
@pytest.mark.parametrize("positive", [1, 2])
def test_attention_couples(ours, text, key, prompts, positive):
    """More parts than two, published or not: the image term reaches each prompt's rows once, and no other row."""
    other = text.negative[0][0].flip(1)
    masks = torch.softmax(torch.arange(prompts + 1.0), 0)[:, None, None].expand(-1, 64, 64)
    couple = packs.AttentionCouple([other * (i + 1) for i in range(prompts)], masks, key)
    text = replace(text, positive=[*text.positive, *text.positive][:positive])

    def of(model, index):
        return record(model, text).first(index)

    for index in (0, 1):
        term = of(ours(), index) - of(ours(scale=0.0), index)
        coupled = of(couple.on_model(ours()), index) - of(couple.on_model(ours(scale=0.0)), index)
        assert (coupled - term).abs().max() <= 1e-4


def test_a_couple_keeps_the_base_prompts_class_words_apart(ours, text):
    """With all of the picture in the base prompt's mask, the couple changes nothing, masks included."""
    masks = torch.stack([torch.ones(64, 64), torch.zeros(64, 64)])
    couple = packs.AttentionCouple([text.negative[0][0].flip(1)], masks, packs.LAYOUT_KEYS[0])
    for routing in (MASKS, AUTO):
        plain = record(ours(routing), text).first()
        assert distance(record(couple.on_model(ours(routing)), text).first(), plain) <= FLOOR


@pytest.mark.parametrize("key", [None, *packs.LAYOUT_KEYS])
def test_an_attention_couples_own_prompts_are_pointed_out(ours, text, caplog, key):
    """Their triggers are not read: without masks every subject is in each of them."""
    masks = torch.softmax(torch.arange(2.0), 0)[:, None, None].expand(-1, 64, 64)
    couple = packs.AttentionCouple([text.negative[0][0].flip(1)], masks, key)
    for routing in (MASKS, OFF):
        sample(couple.on_model(ours(routing)), text, sigmas=TWO_STEPS)
        assert caplog.text.count("whose triggers are not read") == (routing == OFF)


@pytest.mark.parametrize("side", ["positive", "negative"])
def test_auto_says_that_it_reads_no_areas(ours, text, caplog, side):
    area = {"area": (16, 8, 0, 0), "strength": 1.0}
    half = [[embeddings, {**entry, **area}] for embeddings, entry in getattr(text, side)]
    sample(ours(AUTO), replace(text, **{side: half}), sigmas=TWO_STEPS)
    assert caplog.text.count("reads whole pictures. Choose 'masks' for areas") == 1
    assert "another node" not in caplog.text


def test_a_prompt_gets_the_subjects_that_it_calls(tiny, checkpoint, anna, bert, ours):
    """Two prompts of ours side by side: each is what it is with its subject alone on the model."""
    texts = {
        who.name: encode(tiny, checkpoint, [anna, bert], f"a man<|subj:{who.name}|> dancing") for who in (anna, bert)
    }
    alone = [
        sample(apply_subjects(tiny.model, checkpoint, [who], 0.8), texts[who.name], 1.0, sigmas=ONE_STEP)
        for who in (anna, bert)
    ]
    both = replace(texts["anna"], positive=texts["anna"].positive + texts["bert"].positive)
    for order in ([anna, bert], [bert, anna]):
        model = apply_subjects(tiny.model, checkpoint, order, 0.8)
        assert distance(sample(model, both, 1.0, sigmas=ONE_STEP), sum(alone) / 2) <= FLOOR
    assert distance(alone[0], alone[1]) > 0.01


def test_a_prompt_without_triggers_gets_all(tiny, checkpoint, ours, text):
    plain = [[embeddings, {"pooled_output": entry["pooled_output"]}] for embeddings, entry in text.positive]
    assert distance(sample(ours(), replace(text, positive=plain)), sample(ours(), text)) <= FLOOR


def test_a_subject_is_itself_in_any_list_and_file(checkpoint, anna, bert, tmp_path):
    save_subject(anna, tmp_path / "anna.safetensors")
    again = load_subject(tmp_path / "anna.safetensors")
    moved = replace(anna, region=1 - anna.region, strength=0.5)
    carried = [identify(who) for who in (bert, moved)]
    assert [match_subject(0, identify(who), carried) for who in (anna, again, moved, bert)] == [1, 1, 1, 0]
    assert match_subject(0, identify(random_subject(checkpoint, 7)), carried) is None
    twins = [identify(anna), identify(moved)]
    assert [match_subject(0, who, twins) for who in twins] == [0, 1]
    assert match_subject(1, identify(anna), [identify(anna)] * 2) == 1


def test_what_is_missing_is_said_once(tiny, checkpoint, anna, bert, text, caplog):
    only_anna = apply_subjects(tiny.model, checkpoint, [anna])
    sample(only_anna, text, sigmas=TWO_STEPS)
    assert caplog.text.count("calls subject 2 ('bert') of its text node, which the model does not carry") == 1
    caplog.clear()
    sample(apply_subjects(tiny.model, checkpoint, [anna, bert]), encode(tiny, checkpoint, [anna]), sigmas=TWO_STEPS)
    assert caplog.text.count("no positive prompt calls subject 2 ('bert')") == 1


@pytest.mark.parametrize(
    "join", [core.ConditioningConcat().concat, lambda a, b: core.ConditioningAverage().addWeighted(a, b, 0.5)]
)
def test_joined_prompts_that_lose_their_triggers_are_pointed_out(tiny, ours, text, caplog, join):
    """ComfyUI keeps what is said of conditioning_to alone."""
    plain = [[embeddings.flip(1), {"pooled_output": entry["pooled_output"]}] for embeddings, entry in text.positive]
    (lost,) = join(plain, text.positive)
    routed, off = (sample(ours(routing), replace(text, positive=lost)) for routing in (AUTO, OFF))
    assert torch.equal(routed, off)
    assert "connect that one to conditioning_to" in caplog.text
    (kept,) = join(text.positive, plain)
    routed, off = (sample(ours(routing), replace(text, positive=kept)) for routing in (AUTO, OFF))
    assert distance(routed, off) > 5e-4
    assert ("put another text behind a prompt with triggers" in caplog.text) == (kept[0][0].shape[1] > 77)


def test_an_attention_of_the_bases_own_is_passed_on(ours, text, tiny):
    """Newer hosts give it to their attention as `preferred_attention`, where a module brings one."""
    seen, own = [], object()

    def attention(function, *args, **kwargs):
        seen.append(kwargs.pop("preferred_attention", None))
        return function(*args, **kwargs)

    module = tiny.model.model.diffusion_model.input_blocks[4][1].transformer_blocks[0].attn2
    model = ours()
    model.model_options["transformer_options"]["optimized_attention_override"] = attention
    module.comfy_attention = own
    try:
        sample(model, text, sigmas=ONE_STEP)
    finally:
        del module.comfy_attention
    assert seen.count(own) == 1


@pytest.mark.parametrize("seed", range(12))
def test_random_layouts(seed):
    """Rows of random prompts in random order: found by their text, and each attended to as it is alone."""
    random = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (1,), generator=random))

    lengths = tuple(4 * (1 + below(2)) for _ in range(1 + below(3)))
    count, size, width = 2 + below(4), (2 + below(4), 3 + below(4)), 32
    known = []
    for number in range(count):
        called = tuple(i for i in range(len(lengths)) if below(2))
        words = tuple((who, below(24)) for who in called)
        conditioning = a_conditioning(called, words, 24, number)
        known.append(replace(conditioning, text=torch.randn(1, 24, width, generator=random)))
    order = [below(count) for _ in range(1 + below(9))]
    repeated = torch.cat([known[number].text.repeat(1, 2, 1) for number in order])
    noisy = repeated + 0.1 * torch.randn(repeated.shape, generator=random)
    rows = rows_by_text(noisy, known, [conditioning.text for conditioning in known])
    assert [row.conditioning for row in rows] == [known[number] for number in order]

    q = torch.randn(len(order), size[0] * size[1], width, generator=random)
    k, v = torch.randn(2, len(order), 48, width, generator=random)
    image = tuple(torch.randn(2, 1, sum(lengths), width, generator=random))
    options = {"n_heads": 4, "activations_shape": [len(order), width, *size]}
    regions = [torch.rand(8, 8, generator=random) for _ in lengths]

    def attend(chosen: slice, routing) -> torch.Tensor:
        call = Call(rows[chosen], (0,), size)
        step = Step(call, frozenset(range(len(lengths))), lengths, size, routing, tuple(known))
        return step.prepare(q.device).attend(
            Attention(("input", 4, 0), q[chosen], k[chosen], v[chosen], image, options)
        )

    for routing in (Routing(), Masks(regions, size)):
        alone = torch.cat([attend(slice(i, i + 1), routing) for i in range(len(order))])
        assert distance(attend(slice(None), routing), alone) < 1e-5


def test_a_row_of_unknown_text_is_unknown():
    known = [replace(a_conditioning((i,), number=i), text=torch.randn(1, 77, 8)) for i in range(2)]
    strange = torch.cat([known[1].text, torch.randn(1, 77, 8), (known[0].text + known[1].text) / 2])
    rows = rows_by_text(strange, known, [conditioning.text for conditioning in known])
    assert rows == (Row(known[1]), Row(None), Row(None))


def test_a_row_may_carry_any_text_of_a_conditioning():
    known = [replace(a_conditioning((i,), number=i), text=torch.randn(1 + 2 * i, 77, 8)) for i in range(2)]
    order = torch.cat([known[1].text[2:], known[0].text, known[1].text[:2]])
    rows = rows_by_text(order, known, [conditioning.text for conditioning in known])
    assert [row.conditioning for row in rows] == [known[1], known[0], known[1], known[1]]


def test_a_row_of_a_zeroed_text_is_known():
    """ConditioningZeroOut is a usual negative."""
    known = [replace(a_conditioning((i,), number=i), text=torch.randn(1, 77, 8) * i) for i in range(2)]
    texts = [conditioning.text for conditioning in known]
    assert [row.conditioning for row in rows_by_text(torch.cat(texts), known, texts)] == known
