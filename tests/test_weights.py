"""The base's weights: merges, storages, LoRAs and hooks before and after ours, and what stays merged."""

from dataclasses import replace

import comfy.hooks
import comfy.lora
import comfy.model_base
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import comfy_extras.nodes_attention_multiply as attention_multiply
import comfy_extras.nodes_model_merging as merging
import pytest
import torch

import neighbour_packs as packs
from helpers import ONE_STEP, distance, encode, guider_for, noise_for, random_subject, record, run, sample
from mmdiff_model.checkpoint import load_checkpoint
from mmdiff_model.lora import held_strength, unet_patches
from mmdiff_model.sampling import apply_subjects
from mmdiff_model.sampling.attention import MultimodalCrossAttention
from mmdiff_model.sampling.projection import SubjectProjections, image_projections
from mmdiff_model.text import encode_text
from quantised import make_packed_model
from tiny_pack.checkpoint import write_official_checkpoint
from tiny_pack.models import make_model

FLOOR = 2e-5


@pytest.fixture(scope="module")
def anna(checkpoint):
    return random_subject(checkpoint, 1)


@pytest.fixture(scope="module")
def text(tiny, checkpoint, anna):
    return encode(tiny, checkpoint, [anna])


@pytest.fixture
def merged(monkeypatch):
    """The weights that ComfyUI merges patches into, as it does so."""
    keys = []
    merge = comfy.lora.calculate_weight

    def counting(patches, weight, key, **options):
        keys.append(key)
        return merge(patches, weight, key, **options)

    monkeypatch.setattr(comfy.lora, "calculate_weight", counting)
    return keys


def attention_lora(model, seed: int, keys=(".attn2.to_k.weight", ".attn2.to_v.weight"), size: float = 0.02) -> dict:
    """A LoRA of rank 4 for some weights of a UNet, as LoRA files name them."""
    random = torch.Generator().manual_seed(seed)
    lora = {}
    for key, weight in model.model.state_dict().items():
        if key.startswith("diffusion_model.") and key.endswith(keys):
            name = f"lora_unet_{key.removeprefix('diffusion_model.').removesuffix('.weight').replace('.', '_')}"
            lora[f"{name}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=random)
            lora[f"{name}.lora_down.weight"] = size * torch.randn(4, weight.shape[1], generator=random)
    return lora


def with_lora(model, lora: dict, strength: float = 0.7):
    """As ComfyUI's LoRA loader does it."""
    model = model.clone()
    model.add_patches(comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model.model, {})), strength)
    return model


def image_keys(model, checkpoint, subject) -> dict:
    """K and V of a subject's tokens by the weights that the model has once it is loaded."""
    comfy.model_management.load_model_gpu(model)
    model.pre_run()
    tokens = subject.tokens.flatten(0, 1)
    projections = image_projections(model.model, checkpoint.unet_lora)
    return SubjectProjections(projections, tokens, torch.ones(len(tokens))).of(model.model)


def expected_keys(model, checkpoint, subject) -> dict:
    """The same from a base that never had ours: its own projection plus the image LoRA."""
    comfy.model_management.load_model_gpu(model)
    tokens = subject.tokens.flatten(0, 1)
    expected = {}
    for p in image_projections(model.model, checkpoint.unet_lora):
        module = comfy.utils.get_attr(model.model, p.module)
        expected[p.block] = tuple(
            linear(tokens) + tokens @ down.T @ up.T
            for linear, (down, up) in ((module.to_k, p.image_k), (module.to_v, p.image_v))
        )
    return expected


def assert_same_keys(given: dict, expected: dict, limit: float = FLOOR) -> None:
    assert given.keys() == expected.keys()
    for block in given:
        for ours, theirs in zip(given[block], expected[block], strict=True):
            assert distance(ours[0], theirs) < limit


def merge(model, checkpoint, other, ratio):
    return merging.ModelMergeSimple().merge(model, other, ratio)[0]


def multiply(model, checkpoint, other, ratio):
    return attention_multiply.UNetCrossAttentionMultiply.execute(model, q=1.0, k=1.4, v=ratio, out=1.0).args[0]


def add(model, checkpoint, other, ratio):
    return merging.ModelAdd().merge(model, other)[0]


def subtract(model, checkpoint, other, ratio):
    return merging.ModelSubtract().merge(model, other, ratio)[0]


def lora_and_merge(model, checkpoint, other, ratio):
    return merge(with_lora(model, attention_lora(model, 3)), checkpoint, other, ratio)


@pytest.mark.parametrize("later", [merge, multiply, add, subtract, lora_and_merge])
@pytest.mark.parametrize("ratio", [0.3, 0.9])
def test_a_merge_after_ours(tiny, checkpoint, anna, later, ratio):
    """Image K and V are those of the same merge without ours, plus the image LoRAs: no trace of the text LoRA."""
    other = make_model(21)
    given = image_keys(
        later(apply_subjects(tiny.model, checkpoint, [anna]), checkpoint, other, ratio), checkpoint, anna
    )
    assert_same_keys(given, expected_keys(later(tiny.model, checkpoint, other, ratio), checkpoint, anna))


def test_a_merge_of_two_of_ours(tiny, checkpoint, anna):
    """The other side carries the same text LoRA: it is taken out of both."""
    other = make_model(21)
    merged = merge(apply_subjects(tiny.model, checkpoint, [anna]), None, apply_subjects(other, checkpoint, [anna]), 0.3)
    assert_same_keys(
        image_keys(merged, checkpoint, anna), expected_keys(merge(tiny.model, None, other, 0.3), checkpoint, anna)
    )


def test_a_lora_before_and_after_ours(tiny, checkpoint, anna, text):
    """Both loaders are in image K and V, and their order does not matter."""
    first, second = attention_lora(tiny.model, 3), attention_lora(tiny.model, 4)
    expected = expected_keys(with_lora(with_lora(tiny.model, first), second), checkpoint, anna)
    orders = [
        with_lora(apply_subjects(with_lora(tiny.model, first), checkpoint, [anna]), second),
        with_lora(apply_subjects(with_lora(tiny.model, second), checkpoint, [anna]), first),
        with_lora(with_lora(apply_subjects(tiny.model, checkpoint, [anna]), first), second),
    ]
    for model in orders:
        assert_same_keys(image_keys(model, checkpoint, anna), expected)
    latents = [sample(model, text, sigmas=ONE_STEP) for model in orders]
    assert distance(latents[1], latents[0]) < FLOOR and distance(latents[2], latents[0]) < FLOOR


def test_a_dora_after_ours_is_named(tiny, checkpoint, anna, caplog):
    """It scales what is there row by row; before ours nothing is to be said."""
    lora = attention_lora(tiny.model, 3, (".attn2.to_k.weight",))
    for name in [name for name in lora if name.endswith(".lora_up.weight")]:
        lora[name.replace(".lora_up.weight", ".dora_scale")] = torch.ones(len(lora[name]), 1)
    image_keys(apply_subjects(with_lora(tiny.model, lora), checkpoint, [anna]), checkpoint, anna)
    assert "Load it before" not in caplog.text
    image_keys(with_lora(apply_subjects(tiny.model, checkpoint, [anna]), lora), checkpoint, anna)
    assert caplog.text.count("Load it before") == 1


def test_held_strength_follows_the_list():
    up = torch.ones(2, 2)
    (lora,) = comfy.lora.load_lora({"a.lora_up.weight": up, "a.lora_down.weight": up}, {"a": "a"}).values()
    ours, scaled = (1.0, lora, 1.0, None, None), (0.0, (None,), 0.5, None, None)
    replaced = (1.0, ("set", (up,)), 1.0, None, None)
    other = (0.7, [(up, None), ours, scaled], 0.3, None, None)
    assert held_strength([], up) == 0
    assert held_strength([ours, scaled], up) == 0.5
    assert held_strength([scaled, ours], up) == 1
    assert held_strength([ours, replaced], up) == 0
    assert held_strength([ours, other], up) == pytest.approx(0.3 + 0.7 * 0.5)
    assert held_strength([ours], torch.ones(2, 2)) == 0


def test_packed_weights(tiny, checkpoint, anna, text):
    """A GGUF base is accepted, and its image term is that of full precision within 1%."""
    packed = make_packed_model(make_model(20))
    key = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    assert packed.model.state_dict()[key].shape != comfy.utils.get_attr(packed.model, key).shape
    terms = [
        record(apply_subjects(model, checkpoint, [anna]), text).first()
        - record(apply_subjects(model, checkpoint, [anna], 0.0), text).first()
        for model in (packed, tiny.model)
    ]
    assert (terms[0] - terms[1]).norm() < 0.01 * terms[1].norm()
    given = image_keys(apply_subjects(packed, checkpoint, [anna]), checkpoint, anna)
    expected = image_keys(apply_subjects(tiny.model, checkpoint, [anna]), checkpoint, anna)
    for block in expected:
        for ours, full in zip(given[block], expected[block], strict=True):
            assert (ours - full).norm() < 0.01 * full.norm()


def test_a_base_of_another_size_is_still_refused(checkpoint):
    wider = {key: torch.zeros(len(tensor) + 1, *tensor.shape[1:]) for key, tensor in checkpoint.unet_lora.items()}
    with pytest.raises(ValueError, match="has no counterpart of the same size"):
        unet_patches(make_packed_model(make_model(20)), wider)


def hook(model, seed: int, strength: float = 0.7, strengths=(), keys=(".attn2.to_k.weight", ".attn2.to_v.weight")):
    """A LoRA as a hook for conditionings; `strengths` from each tenth of sampling on."""
    group = comfy.hooks.create_hook_lora(attention_lora(model, seed, keys), strength, 0.0)
    if strengths:
        frames = comfy.hooks.HookKeyframeGroup()
        for number, value in enumerate(strengths):
            frames.add(comfy.hooks.HookKeyframe(value, number / 10))
        group.set_keyframes_on_hooks(frames)
    return group


def hooked(text, group):
    return replace(text, positive=comfy.hooks.set_hooks_for_conditioning(text.positive, group))


def test_a_lora_hook_reaches_image_k_and_v(tiny, checkpoint, anna, text):
    """A hooked conditioning samples as with the LoRA in the model; the negative, without a hook, as without."""
    ours = apply_subjects(tiny.model, checkpoint, [anna])
    loaded = with_lora(ours, attention_lora(tiny.model, 3))
    expected = sample(loaded, text, 1.0, sigmas=ONE_STEP)
    assert distance(sample(ours, hooked(text, hook(tiny.model, 3)), 1.0, sigmas=ONE_STEP), expected) < FLOOR
    assert distance(expected, sample(ours, text, 1.0, sigmas=ONE_STEP)) > 0.01
    without = apply_subjects(tiny.model, checkpoint, [anna], 0.0)
    negative = sample(without, replace(text, positive=text.negative), 1.0, sigmas=ONE_STEP)
    past = sample(packs.past_apply_model(ours), hooked(text, hook(tiny.model, 3)), 1.0, sigmas=ONE_STEP)
    assert distance(past, expected) < FLOOR
    guided = sample(ours, hooked(text, hook(tiny.model, 3)), 5.0, sigmas=ONE_STEP)
    assert distance(guided, negative + 5 * (expected - negative)) < 1e-4


def test_two_hook_groups_in_one_run(tiny, checkpoint, anna, text):
    """Two conditionings, each with its own LoRA: each sees image K and V of its own."""
    ours = apply_subjects(tiny.model, checkpoint, [anna])
    groups = [hook(tiny.model, seed) for seed in (3, 4)]
    both = replace(text, positive=[entry for group in groups for entry in hooked(text, group).positive])
    alone = [sample(with_lora(ours, attention_lora(tiny.model, seed)), text, 1.0, sigmas=ONE_STEP) for seed in (3, 4)]
    assert distance(sample(ours, both, 1.0, sigmas=ONE_STEP), (alone[0] + alone[1]) / 2) < 1e-4
    assert distance(*alone) > 0.01


def test_hooks_with_keyframes(tiny, checkpoint, anna, text):
    """A hook's strength changes from step to step, and image K and V with it."""
    ours = apply_subjects(tiny.model, checkpoint, [anna])
    sampling = tiny.model.get_model_object("model_sampling")
    sigmas = [sampling.percent_to_sigma((number + 0.5) / 10) for number in range(3)] + [0.0]
    strengths = (1.0, 0.0, 0.4)
    latent, noise = torch.zeros(1, 4, 16, 16), noise_for()
    given = sample(ours, hooked(text, hook(tiny.model, 3, 0.7, strengths)), 1.0, sigmas=sigmas)
    x = noise * sigmas[0]
    for number, strength in enumerate(strengths):
        model = with_lora(ours, attention_lora(tiny.model, 3), 0.7 * strength)
        denoised = []
        run(
            guider_for(model, text, 1.0),
            noise=x / sigmas[number],
            sigmas=sigmas[number : number + 2],
            latent=latent,
            callback=lambda step, x0, *_, denoised=denoised: denoised.append(x0),
        )
        x = x + (x - denoised[0]) / sigmas[number] * (sigmas[number + 1] - sigmas[number])
    assert distance(given, tiny.model.model.process_latent_out(x)) < 1e-3


def test_a_hook_elsewhere_projects_nothing_again(tiny, checkpoint, anna, text, monkeypatch):
    """Only hooks on to_k and to_v of cross-attentions make K and V anew, and each state once."""
    import mmdiff_model.sampling.projection as projection

    calls = []
    project = projection.project_tokens
    monkeypatch.setattr(projection, "project_tokens", lambda *args: calls.append(0) or project(*args))
    ours = apply_subjects(tiny.model, checkpoint, [anna])
    sigmas = (4.1, 2.0, 1.0, 0.0)
    sample(ours, hooked(text, hook(tiny.model, 3, keys=(".attn1.to_k.weight",))), sigmas=sigmas)
    assert len(calls) == 1
    sample(ours, hooked(text, hook(tiny.model, 3)), sigmas=sigmas)
    assert len(calls) == 3


def test_a_hook_leaves_the_model_as_it_was(tiny, checkpoint, anna, text):
    ours = apply_subjects(tiny.model, checkpoint, [anna])
    alone = sample(ours, text, sigmas=ONE_STEP)
    sample(ours, hooked(text, hook(tiny.model, 3)), sigmas=ONE_STEP)
    assert torch.equal(sample(ours, text, sigmas=ONE_STEP), alone)


def queue(tiny, checkpoint, subject, prompt: str, fuse_scale: float = 0.8):
    """What an execution of Apply MM-Diff and a KSampler loads: CLIP, then the UNet."""
    text = encode_text(tiny.clip, checkpoint, [subject], prompt, "blurry")
    model = apply_subjects(tiny.model, checkpoint, [subject], fuse_scale)
    return sample(model, text, sigmas=ONE_STEP)


def test_an_edit_merges_nothing_again(tiny, checkpoint, anna, merged):
    """The prompt, fuse_scale and subject change, the merged weights stay; latents are those of newly merged ones."""
    queue(tiny, checkpoint, anna, "a man<|subj|> dancing")
    merged.clear()
    edited = [
        queue(tiny, checkpoint, anna, "a man<|subj|> on a beach"),
        queue(tiny, checkpoint, anna, "a man<|subj|> on a beach", 0.3),
        queue(tiny, checkpoint, random_subject(checkpoint, 2), "a man<|subj|> on a beach", 0.3),
    ]
    assert not merged
    comfy.model_management.unload_all_models()
    again = queue(tiny, checkpoint, anna, "a man<|subj|> on a beach", 0.3)
    assert len([key for key in merged if "diffusion_model" in key]) > 100
    assert len([key for key in merged if "clip_" in key]) > 10
    assert torch.equal(edited[1], again)


def test_the_same_file_read_again_merges_nothing(tiny, official_folder, checkpoint, anna, merged):
    queue(tiny, checkpoint, anna, "a man<|subj|>")
    merged.clear()
    queue(tiny, load_checkpoint(official_folder), anna, "a man<|subj|>")
    assert not merged


def test_another_checkpoint_is_merged(tiny, checkpoint, anna, tmp_path, merged):
    """One bit of one LoRA differs, or only the type that it is stored in."""
    half = load_checkpoint(write_official_checkpoint(tmp_path / "half", dtype=torch.float16))
    key = next(key for key in checkpoint.unet_lora if "to_out" in key)
    changed = {**checkpoint.unet_lora, key: checkpoint.unet_lora[key].clone()}
    changed[key].view(torch.int32)[-1, -1] ^= 1
    digests = {c.lora_digest for c in (checkpoint, half, replace(checkpoint, unet_lora=changed))}
    assert len(digests) == 3
    queue(tiny, checkpoint, anna, "a man<|subj|>")
    merged.clear()
    queue(tiny, replace(checkpoint, unet_lora=changed), anna, "a man<|subj|>")
    assert len([key for key in merged if "diffusion_model" in key]) > 100


def test_identity_of_patched_models(tiny, checkpoint):
    """The same base and checkpoint are the same patches; another base below, more above or another order are not."""
    lora = attention_lora(tiny.model, 3)
    below, ours = with_lora(tiny.model, lora), apply_subjects(tiny.model, checkpoint, [])
    models = [
        tiny.model,
        below,
        ours,
        apply_subjects(below, checkpoint, []),
        with_lora(ours, lora),
        with_lora(ours, lora),
        apply_subjects(with_lora(tiny.model, lora), checkpoint, []),
        apply_subjects(make_model(20), checkpoint, []),
    ]
    assert len({model.patches_uuid for model in models}) == len(models)
    assert apply_subjects(tiny.model, checkpoint, [], 0.3).patches_uuid == ours.patches_uuid
    assert apply_subjects(below.clone(), checkpoint, []).patches_uuid == models[3].patches_uuid
    assert ours.clone_has_same_weights(apply_subjects(tiny.model, checkpoint, []))


def test_the_second_text_encoders_lora_is_another_clip(tiny, checkpoint, anna, merged):
    """Switched on and off again: CLIP is patched anew each time, and gives what it gave."""
    both = replace(checkpoint, text_encoder_2_lora=True)
    first, other, again = (
        encode_text(tiny.clip, c, [anna], "a man<|subj|>", "").positive[0][0] for c in (checkpoint, both, checkpoint)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert merged


def test_what_comes_after_ours_is_merged(tiny, checkpoint, anna, text):
    """A LoRA loader after ours, edited and taken away again: latents are those of fresh models."""
    lora = attention_lora(tiny.model, 3)
    queued = [
        sample(model, text, sigmas=ONE_STEP)
        for strength in (0.7, 0.2, 0.0, 0.7)
        for model in [with_lora(apply_subjects(tiny.model, checkpoint, [anna]), lora, strength)]
    ]
    plain = sample(apply_subjects(tiny.model, checkpoint, [anna]), text, sigmas=ONE_STEP)
    assert torch.equal(queued[0], queued[3]) and not torch.equal(queued[0], queued[1])
    assert distance(queued[2], plain) < FLOOR


def test_two_samplers_in_one_graph(tiny, checkpoint, anna, text, merged):
    """Both take their model from the same base, with other subjects: one set of merged weights for both."""
    first = apply_subjects(tiny.model, checkpoint, [anna])
    second = apply_subjects(tiny.model, checkpoint, [random_subject(checkpoint, 2)], 1.2)
    alone = [sample(model, text, sigmas=ONE_STEP) for model in (first, second)]
    merged.clear()
    assert all(torch.equal(sample(m, text, sigmas=ONE_STEP), a) for m, a in zip((first, second), alone, strict=True))
    assert not merged


def test_what_lives_in_a_runs_patches_moves(tiny, checkpoint, anna, text):
    """ComfyUI moves a call's patches to another GPU by `to`; the one that was there before ours is moved with them."""

    class Movable:
        def __init__(self, places=()):
            self.places = places

        def to(self, target):
            return Movable((*self.places, target))

        def __call__(self, q, k, v, extra_options):
            return q

    patch = MultimodalCrossAttention(("input", 4, 0), (torch.ones(1), torch.ones(1)), Movable())
    moved = patch.to("cpu").to(torch.float16)
    assert moved.previous.places == ("cpu", torch.float16)
    assert patch.previous.places == ()
    function = MultimodalCrossAttention(("input", 4, 0), (torch.ones(1), torch.ones(1)), lambda q, *_: q)
    assert function.to("cpu") is function


def test_another_gpus_model_projects_for_itself(tiny, checkpoint, anna, text):
    """The host runs some calls by a copy of the model: image K and V are that copy's, and kept for the run."""
    copy = make_model(20)
    ours = apply_subjects(tiny.model, checkpoint, [anna])
    patched = apply_subjects(copy, checkpoint, [anna])
    for model in (ours, patched):
        comfy.model_management.load_model_gpu(model)
        model.pre_run()
    patched.load_device = torch.device("meta")
    tokens = anna.tokens.flatten(0, 1)
    projections = SubjectProjections(
        image_projections(tiny.model.model, checkpoint.unet_lora), tokens, torch.ones(len(tokens))
    )
    here = projections.of(tiny.model.model)
    copy.model.diffusion_model.to("meta")
    there = projections.of(copy.model)
    assert here is projections.of(tiny.model.model) and there is projections.of(copy.model)
    assert {x.device.type for pair in there.values() for x in pair} == {"meta"}
