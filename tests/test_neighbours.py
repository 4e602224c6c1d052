"""Other packs and core nodes on the same model and conditionings, before and after ours."""

from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.hooks
import comfy.ldm.modules.attention as host_attention
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models
import comfy_extras.nodes_custom_sampler as custom_sampler
import comfy_extras.nodes_model_downscale as downscale
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_torch_compile as torch_compile
import pytest
import torch
import torch._dynamo

import mmdiff_model.sampling.attention as our_attention
import neighbour_packs as packs
import nodes as core
from helpers import ONE_PROMPT, ONE_STEP, distance, encode, left_half, random_subject, record, run, sample
from mmdiff_model.sampling import apply_subjects
from mmdiff_model.sampling.routing import AUTO, MASKS, MODES, OFF
from mmdiff_model.schedule import Schedule
from mmdiff_model.text import encode_text
from tiny_pack.models import make_model

pytestmark = pytest.mark.hosts

FLOOR = 2e-5
PACKS = [
    packs.add_image_prompt,
    packs.add_plain_replace,
    packs.add_block_replace,
    packs.add_context_patch,
    packs.add_output_patch,
]


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1, region=left_half())


@pytest.fixture(scope="module")
def bert(checkpoint):
    return random_subject(checkpoint, 2, region=1 - left_half())


@pytest.fixture(scope="module")
def text(tiny, checkpoint, anna):
    return encode(tiny, checkpoint, [anna])


@pytest.fixture(scope="module")
def ours(checkpoint, anna):
    """Puts anna on a model; scale 0 leaves only the LoRAs, the model as it is without an image term."""

    def apply(model, scale=0.8):
        return apply_subjects(model, checkpoint, [anna], scale)

    return apply


@pytest.fixture(scope="module")
def alone(tiny, ours, text):
    """First attention without subjects, and with anna."""
    return record(ours(tiny.model, 0.0), text).first(), record(ours(tiny.model), text).first()


@pytest.mark.parametrize("neighbour", PACKS)
def test_an_attention_patch_before_and_after_ours(tiny, ours, text, alone, neighbour):
    """Its effect and the image term add up, whichever node comes first."""
    without, with_anna = alone
    before, after = ours(neighbour(tiny.model)), neighbour(ours(tiny.model))
    neighbour_alone = record(neighbour(ours(tiny.model, 0.0)), text).first()
    assert distance(neighbour_alone, without) > 0.01
    both = record(before, text).first()
    assert distance(both - neighbour_alone, with_anna - without) < 1e-4
    assert torch.equal(sample(before, text), sample(after, text))


def test_two_packs_that_share_one_patch_object(tiny, ours, text, alone):
    """The second pack calls `add` on the first one's object; ours stays out of it on either side."""
    without, with_anna = alone
    first, second = packs.add_image_prompt, lambda model: packs.add_image_prompt(model, 0.25)
    results = []
    for chain in ((first, second, ours), (first, ours, second), (ours, first, second)):
        model = tiny.model
        for node in chain:
            model = node(model)
        results.append(record(model, text).first())
    expected = record(packs.add_image_prompt(ours(tiny.model, 0.0), 0.75), text).first() + with_anna - without
    assert all(distance(result, expected) < 1e-5 for result in results)


@pytest.mark.parametrize("routing", [MASKS, AUTO])
def test_routing_beside_a_replace_patch(tiny, checkpoint, anna, bert, routing):
    """A patch that gives the host's own attention changes nothing."""
    text = encode(tiny, checkpoint, [anna, bert])
    neighbour = packs.add_image_prompt(tiny.model, 0.0)
    plain, beside = (
        sample(apply_subjects(model, checkpoint, [anna, bert], routing=routing), text)
        for model in (tiny.model, neighbour)
    )
    assert distance(beside, plain) <= FLOOR


@pytest.mark.parametrize("order", ["before", "after", "conditioning"])
@pytest.mark.parametrize("key", packs.LAYOUT_KEYS)
def test_attention_couple(tiny, checkpoint, ours, text, alone, order, key):
    """The image term reaches every prompt's rows, so their masked sum has it once; the negative rows have none."""
    without, with_anna = alone
    mask = left_half()
    couple = packs.AttentionCouple([text.negative[0][0].flip(1)], torch.stack([mask, 1 - mask]), key)

    def coupled(scale):
        if order == "conditioning":
            return record(ours(tiny.model, scale), replace(text, positive=couple.on_conditioning(text.positive)))
        return record(
            couple.on_model(ours(tiny.model, scale)) if order == "after" else ours(couple.on_model(tiny.model), scale),
            text,
        )

    couple_alone, both = coupled(0.0), coupled(0.8)
    assert distance(couple_alone.first(), without) > 0.01
    assert distance(both.first() - couple_alone.first(), with_anna - without) < 1e-4
    if order != "conditioning":
        assert torch.equal(both.first(index=1), couple_alone.first(index=1))


def small_lora(model, part: str, seed: int = 3) -> dict:
    """A LoRA of rank 4 on every weight of the UNet whose name has `part` in it."""
    random = torch.Generator().manual_seed(seed)
    lora = {}
    for key, weight in model.model.state_dict().items():
        if part in key and weight.ndim == 2:
            name = f"lora_unet_{key.removeprefix('diffusion_model.').removesuffix('.weight').replace('.', '_')}"
            lora[f"{name}.lora_down.weight"] = 0.1 * torch.randn(4, weight.shape[1], generator=random)
            lora[f"{name}.lora_up.weight"] = 0.1 * torch.randn(weight.shape[0], 4, generator=random)
    return lora


@pytest.mark.parametrize("part", ["attn1", "attn2.to_k"])
def test_lora_before_and_after(tiny, ours, text, part):
    def styled(model):
        return comfy.sd.load_lora_for_models(model, None, small_lora(tiny.model, part), 1.0, 0.0)[0]

    before, after = sample(ours(styled(tiny.model)), text), sample(styled(ours(tiny.model)), text)
    assert distance(after, before) <= FLOOR
    assert distance(before, sample(ours(tiny.model), text)) > 0.01
    assert distance(before, sample(ours(styled(tiny.model), 0.0), text)) > 0.01


def test_lora_as_a_conditioning_hook(tiny, ours, text):
    """A LoRA hooked to the positive prompt is, without guidance, that LoRA on the model."""
    lora = small_lora(tiny.model, "attn1")
    hooked = replace(
        text,
        positive=comfy.hooks.set_hooks_for_conditioning(text.positive, comfy.hooks.create_hook_lora(lora, 1.0, 0.0)),
    )
    loaded = comfy.sd.load_lora_for_models(tiny.model, None, lora, 1.0, 0.0)[0]
    by_hook = sample(ours(tiny.model), hooked, 1.0)
    assert distance(by_hook, sample(ours(loaded), text, 1.0)) <= FLOOR
    assert distance(by_hook, sample(ours(tiny.model), text, 1.0)) > 0.01


def test_clip_skip(tiny, checkpoint, anna, ours):
    """The class word is fused at any depth: another subject changes the embeddings from its place on, only there."""
    skipped = core.CLIPSetLastLayer().set_last_layer(tiny.clip, -3)[0]
    text = encode_text(skipped, checkpoint, [anna], ONE_PROMPT, "blurry")
    ((embeddings, options),) = text.positive
    other = encode_text(skipped, checkpoint, [replace(anna, cls=-anna.cls)], ONE_PROMPT, "blurry").positive[0][0]
    ((_, position),) = options["mmdiff_class_words"]
    assert torch.equal(embeddings[:, :position], other[:, :position])
    assert not torch.isclose(embeddings[:, position:], other[:, position:]).all(dim=-1).any()
    assert not torch.equal(embeddings, encode_text(tiny.clip, checkpoint, [anna], ONE_PROMPT, "blurry").positive[0][0])
    assert distance(sample(ours(tiny.model), text), sample(ours(tiny.model, 0.0), text)) > 0.01


def prediction(model, conditioning, text):
    """What the model alone makes of one conditioning in one step."""
    return sample(model, replace(text, positive=conditioning), 1.0, sigmas=ONE_STEP)


def test_conditioning_combine(tiny, ours, text):
    """Two combined prompts are the mean of both, each with the image term."""
    other = [[-text.positive[0][0], text.positive[0][1]]]
    (both,) = core.ConditioningCombine().combine(text.positive, other)
    mean = (prediction(ours(tiny.model), text.positive, text) + prediction(ours(tiny.model), other, text)) / 2
    assert distance(prediction(ours(tiny.model), both, text), mean) <= FLOOR


def test_conditioning_mask_and_area_of_everything(tiny, ours, text):
    plain = sample(ours(tiny.model), text)
    (masked,) = core.ConditioningSetMask().append(text.positive, torch.ones(128, 128), "default", 1.0)
    (bounded,) = core.ConditioningSetMask().append(text.positive, torch.ones(128, 128), "mask bounds", 1.0)
    (area,) = core.ConditioningSetArea().append(text.positive, 128, 128, 0, 0, 1.0)
    for positive in (masked, bounded, area):
        assert distance(sample(ours(tiny.model), replace(text, positive=positive)), plain) <= FLOOR


def test_perpendicular_negative(tiny, ours, text):
    """Three predictions: the positive one with the image term, the negative and the empty one without."""
    empty = [[torch.zeros_like(text.negative[0][0]), text.negative[0][1]]]
    guider = perpneg.PerpNegGuider.execute(ours(tiny.model), text.positive, text.negative, empty, 5.0, 0.7).args[0]
    positive = prediction(ours(tiny.model), text.positive, text)
    negative, neutral = (
        prediction(ours(tiny.model, 0.0), conditioning, text) for conditioning in (text.negative, empty)
    )
    expected = perpneg.perp_neg(None, positive, negative, neutral, 0.7, 5.0)
    assert distance(run(guider, sigmas=ONE_STEP), expected) <= 10 * FLOOR


@pytest.mark.parametrize("style", ["regular", "nested"])
def test_dual_guidance(tiny, ours, text, style):
    """Here the negative prompt has index 0, and both positive prompts carry the image term."""
    second = [[-text.positive[0][0], text.positive[0][1]]]
    execute = custom_sampler.DualCFGGuider.execute
    guider = execute(ours(tiny.model), text.positive, second, text.negative, 3.0, 2.0, style).args[0]
    first, middle = (prediction(ours(tiny.model), conditioning, text) for conditioning in (text.positive, second))
    negative = prediction(ours(tiny.model, 0.0), text.negative, text)
    if style == "regular":
        expected = negative + 2.0 * (middle - negative) + 3.0 * (first - middle)
    else:
        expected = negative + 2.0 * (middle + 3.0 * (first - middle) - negative)
    assert distance(run(guider, sigmas=ONE_STEP), expected) <= 10 * FLOOR


@pytest.mark.parametrize("routing", [OFF, MASKS])
def test_deep_shrink(tiny, checkpoint, anna, bert, routing):
    """The masks follow the shrunken attentions, before and after ours."""
    text = encode(tiny, checkpoint, [anna, bert])

    def shrunk(model):
        return downscale.PatchModelAddDownscale.execute(model, 3, 2.0, 0.0, 1.0, True, "bicubic", "bicubic").args[0]

    def with_both(model, second=bert):
        return apply_subjects(model, checkpoint, [anna, second], routing=routing)

    before, after = with_both(shrunk(tiny.model)), shrunk(with_both(tiny.model))
    assert torch.equal(sample(before, text), sample(after, text))
    attention, other = (
        record(shrunk(with_both(tiny.model, who)), text).first() for who in (bert, replace(bert, tokens=-bert.tokens))
    )
    assert attention.shape[1:3] == (4, 4)
    assert record(with_both(tiny.model), text).first().shape[1:3] == (8, 8)
    assert torch.equal(attention[:, :, :2], other[:, :, :2]) == (routing == MASKS)
    assert not torch.equal(attention[:, :, 2:], other[:, :, 2:])


@pytest.fixture(scope="module")
def control_net(tiny):
    """ComfyUI's ControlNet in the tiny UNet's sizes, with seeded random weights."""
    config = {key: value for key, value in tiny.model.model.model_config.unet_config.items() if key != "out_channels"}
    control = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.manual_cast).eval()
    random = torch.Generator().manual_seed(11)
    for parameter in control.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.05)
    return comfy.controlnet.ControlNet(control, load_device=tiny.model.load_device)


@pytest.mark.parametrize("routing", [OFF, MASKS])
def test_control_net(tiny, checkpoint, anna, bert, control_net, routing):
    """It runs on the same prompts undisturbed: its own output does not depend on the subjects' image term."""
    text = encode(tiny, checkpoint, [anna, bert])
    image = torch.rand(1, 128, 128, 3, generator=torch.Generator().manual_seed(1))
    applied = core.ControlNetApplyAdvanced().apply_controlnet(
        text.positive, text.negative, control_net, image, 1.0, 0.0, 1.0
    )
    controlled = replace(text, positive=applied[0], negative=applied[1])
    seen = []
    hook = control_net.control_model.register_forward_hook(
        lambda module, args, output: seen.append(output["middle"][0].clone())
    )
    models = [apply_subjects(tiny.model, checkpoint, [anna, bert], scale, routing=routing) for scale in (0.0, 0.8)]
    without, given = (sample(model, controlled, sigmas=ONE_STEP) for model in models)
    hook.remove()
    assert len(seen) == 2
    assert torch.equal(*seen)
    assert distance(given, without) > 0.01
    assert distance(given, sample(models[1], text, sigmas=ONE_STEP)) > 0.01


def make_model_in_fp8():
    """The tiny UNet with its weights stored in float8, as ComfyUI's loaders build it: computed in float32."""
    full = make_model(20)
    sizes = full.model.model_config.unet_config
    config = comfy.supported_models.SDXL(sizes)
    config.unet_config = dict(sizes)
    config.set_inference_dtype(torch.float8_e4m3fn, torch.float32)
    stored = comfy.model_base.SDXL(config, device="cpu")
    stored.embedder = full.model.embedder
    stored.diffusion_model.load_state_dict(full.model.diffusion_model.state_dict())
    return comfy.model_patcher.ModelPatcher(stored, full.load_device, full.offload_device)


def test_fp8_weights(ours, text, alone):
    """The image term is that of full precision, up to float8's rounding of weights."""
    model = make_model_in_fp8()
    weight = model.model.diffusion_model.input_blocks[4][1].transformer_blocks[0].attn2.to_k.weight
    assert weight.dtype == torch.float8_e4m3fn
    term = record(ours(model), text).first() - record(ours(model, 0.0), text).first()
    expected = alone[1] - alone[0]
    assert (term - expected).norm() < 0.15 * expected.norm()
    assert sample(ours(model), text).isfinite().all()


@pytest.fixture
def compiled(monkeypatch):
    """Core's TorchCompileModel without a code generator, on the attention that GPUs run, which traces in one graph."""
    for module, name in (
        (host_attention, "optimized_attention"),
        (host_attention, "optimized_attention_masked"),
        (our_attention, "optimized_attention"),
    ):
        monkeypatch.setattr(module, name, host_attention.attention_pytorch)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda model: torch_compile.TorchCompileModel.execute(model, "eager").args[0]
    torch._dynamo.reset()


@pytest.mark.parametrize("routing, start, graphs", [(OFF, 0.5, 3), (MASKS, 0.0, 1), (AUTO, 0.0, 2)])
def test_torch_compile(tiny, checkpoint, anna, bert, compiled, routing, start, graphs):
    """Eager latents without a graph break, also from a late start, and again after a re-queue with other subjects."""
    base, schedule = compiled(tiny.model), Schedule(start, 1.0)
    others = [replace(anna, tokens=-anna.tokens), replace(bert, tokens=2 * bert.tokens)]
    for subjects in ([anna] if routing == OFF else [anna, bert], others):
        text = encode(tiny, checkpoint, subjects)
        latents, eager = (
            sample(
                apply_subjects(model, checkpoint, subjects, schedule=schedule, routing=routing),
                text,
                1.0,
                sigmas=(4.1, 1.2, 0.0),
            )
            for model in (base, tiny.model)
        )
        assert distance(latents, eager) <= FLOOR
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.parametrize("routing", MODES)
def test_torch_compile_again_for_no_prompt(tiny, checkpoint, anna, bert, compiled, routing):
    """Where class words stand changes no trace: three prompts, one graph, and the eager latents."""
    subjects = [replace(anna, region=left_half()), bert]
    model, eager = (
        apply_subjects(base, checkpoint, subjects, routing=routing) for base in (compiled(tiny.model), tiny.model)
    )
    for prompt in (
        "man<|subj|> and woman<|subj|>",
        "a man<|subj|>, one woman<|subj|>",
        "see a big man<|subj|>, woman<|subj|>",
    ):
        text = encode(tiny, checkpoint, subjects, prompt)
        latents = sample(model, text, 1.0, sigmas=ONE_STEP)
        assert distance(latents, sample(eager, text, 1.0, sigmas=ONE_STEP)) <= FLOOR
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("side", [64, 48])
def test_torch_compile_again_for_another_picture(tiny, checkpoint, anna, bert, compiled, side):
    """An area of one size in pictures of two, then a mask of another size: what is cut out of it is the run's own."""
    text = encode(tiny, checkpoint, [anna, bert])
    area = [[embeddings, {**entry, "area": (16, 16, 0, 0), "strength": 1.0}] for embeddings, entry in text.positive]
    compiled_base = compiled(tiny.model)
    for height, rows in ((16, 64), (24, side)):
        subjects = [replace(anna, region=torch.ones(rows, rows).triu()), bert]
        latents, eager = (
            sample(
                apply_subjects(base, checkpoint, subjects, routing=MASKS),
                replace(text, positive=area),
                1.0,
                sigmas=ONE_STEP,
                noise=torch.randn(1, 4, height, 16, generator=torch.Generator().manual_seed(3)),
            )
            for base in (compiled_base, tiny.model)
        )
        assert distance(latents, eager) <= FLOOR
