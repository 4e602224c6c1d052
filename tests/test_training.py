"""Training against sampling: one attention, one prediction; what is trained, and that the base stays whole."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from conftest import ROOT
from helpers import ONE_STEP, guider_for, noise_for, run
from mmdiff_model.checkpoint import load_checkpoint, write_safetensors
from mmdiff_model.lora import unet_patches
from mmdiff_model.sampling import apply_subjects
from mmdiff_model.subject import encode_subject
from mmdiff_model.text import encode_text, with_text_lora
from mmdiff_model.training.dataset import Batch, Drops, Examples
from mmdiff_model.training.encoders import attend_as_torch, attend_by_products
from mmdiff_model.training.examples import Preparation
from mmdiff_model.training.loop import Loop, Micro
from mmdiff_model.training.objective import Losses, Objective
from mmdiff_model.training.plan import Plan
from mmdiff_model.training.processes import Processes
from mmdiff_model.training.state import State
from mmdiff_model.training.trainable import IMAGE_BRANCH, LORA, PARTS, REFINER, TEXT_FUSION, VISION, Shape, Trainable

sys.path.append(str(ROOT))

from small_world.phases.world import World  # noqa: E402

SIZE = 128
DEFAULT, PLAN = Losses(), Plan(steps=1)
SHAPE = Shape(num_tokens=4, depth=1, token_hidden=64, lora_rank=4, text_lora_rank=4, vision_layers=1)
KEEP_ALL = Drops(text=0, image=0, both=0, background=0)
WORLD = World(seed=11, count=24)


@pytest.fixture(autouse=True)
def gradients():
    with torch.enable_grad():
        yield


@pytest.fixture
def training(tiny):
    """Builds an objective over the tiny models; it is closed at the end."""
    made = []

    def build(
        losses: Losses = DEFAULT, parts: tuple[str, ...] = PARTS, shape: Shape = SHAPE, plan: Plan = PLAN
    ) -> Objective:
        torch.manual_seed(7)
        trainable = Trainable(tiny.model.model, tiny.clip, tiny.clip_vision, "subject", shape, parts)
        empty = prepare(tiny).empty
        made.append(Objective(tiny.model, tiny.clip, tiny.clip_vision, trainable, losses, empty, plan))
        return made[-1]

    yield build
    for objective in made:
        objective.close()


def prepare(tiny) -> Preparation:
    return Preparation(tiny.model.model, tiny.clip, tiny.vae, tiny.clip_vision, "subject", SIZE)


def examples(tiny, drops: Drops = KEEP_ALL, seed: int = 3) -> Examples:
    return Examples(WORLD, prepare(tiny), drops, seed, cache=True)


def step(objective: Objective, batch: Batch, rate: float = 2e-3) -> dict[str, Tensor]:
    """One plain update of Adam's direction, kept in the objective for the next."""
    loss, figures = objective.loss(batch)
    objective.trainable.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in objective.trainable.parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad.sign()
    return {"loss": loss.detach(), **figures}


def gradients_of(objective: Objective, batch: Batch) -> set[str]:
    """Names of the parameters that a batch's loss moves, once nothing is at its zero start."""
    with torch.no_grad():
        for name, parameter in objective.trainable.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.02)
    objective.loss(batch)[0].backward()
    return {
        name
        for name, parameter in objective.trainable.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().amax() > 0
    }


def of_part(name: str) -> str:
    """The part of MM-Diff that a parameter belongs to."""
    if "refiner" in name:
        return REFINER
    if name.startswith(("adapter.cls_head", "adapter.text_fusion")):
        return TEXT_FUSION
    if name.startswith(("unet_lora", "text_lora")):
        return LORA
    return VISION if name.startswith("vision") else IMAGE_BRANCH


def dead_ends(objective: Objective) -> set[str]:
    """The last layer of the first text encoder, which SDXL does not use."""
    last = [
        number
        for number, name in enumerate(objective.trainable.text_lora.names)
        if "text_encoder.text_model.encoder.layers.3" in name
    ]
    return {f"text_lora.layers.{number}.{side}" for number in last for side in ("down", "up")}


@pytest.mark.parametrize("left_out", [None, *PARTS])
def test_gradients_reach_what_is_trained_and_nothing_else(tiny, training, left_out):
    parts = tuple(part for part in PARTS if part != left_out)
    objective = training(parts=parts)
    reached = gradients_of(objective, examples(tiny).batch(0, 4))
    expected = {name for name, _ in objective.trainable.named_parameters() if of_part(name) in parts}
    if left_out == TEXT_FUSION:
        expected = {name for name in expected if of_part(name) != VISION} | {n for n in reached if of_part(n) == VISION}
    if left_out == IMAGE_BRANCH:
        expected = {name for name in expected if of_part(name) != REFINER}
    assert reached == expected - dead_ends(objective)
    frozen = [*tiny.model.model.diffusion_model.parameters(), *tiny.clip.cond_stage_model.parameters()]
    assert all(parameter.grad is None for parameter in [*frozen, *tiny.clip_vision.model.parameters()])


def test_a_closed_objective_leaves_the_base_bit_for_bit(tiny, training):
    text = encode_plain(tiny)
    expected = run(guider_for(tiny.model, text), sigmas=ONE_STEP)
    before = {name: tensor.clone() for name, tensor in tiny.model.model.state_dict().items()}
    objective = training()
    step(objective, examples(tiny).batch(0, 2))
    objective.close()
    assert torch.equal(expected, run(guider_for(tiny.model, encode_plain(tiny)), sigmas=ONE_STEP))
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.model.state_dict().items())


def encode_plain(models) -> SimpleNamespace:
    positive, negative = (
        models.clip.encode_from_tokens_scheduled(models.clip.tokenize(t)) for t in ("a man", "blurry")
    )
    return SimpleNamespace(positive=positive, negative=negative)


def test_a_trained_and_loaded_checkpoint_samples_what_training_predicts(tiny, training, tmp_path):
    objective = training(Losses(constraint="masked", constraint_weight=0.05))
    data = examples(tiny)
    for number in range(3):
        step(objective, data.batch(number, 2), rate=1e-2)
    single = next(data.batch(n, 1) for n in range(24) if data.batch(n, 1).present.sum() == 2)
    noise, sigma = noise_for((16, 16)), torch.tensor([ONE_STEP[0]])
    batch = replace(single, latents=torch.zeros(1, 4, 16, 16), noise=noise)
    with torch.no_grad():
        cls, tokens = objective.encode_subjects(batch)
        context, pooled = objective.encode_text(batch, cls, batch.present)
        expected = objective.denoise(
            batch, sigma, context, pooled, tokens, batch.present, constraint_of(objective, batch)
        )
    tensors, metadata = objective.trainable.export()
    objective.close()
    write_safetensors(tensors, metadata, tmp_path / "trained.safetensors")
    checkpoint = load_checkpoint(tmp_path / "trained.safetensors")
    scene = WORLD.read(int(batch.names[0].split()[1]))
    subjects = [
        encode_subject(checkpoint, tiny.clip_vision, [torch.from_numpy(found.reference).float() / 255])
        for found in scene.segments
    ]
    prompt = scene.caption
    for found in sorted(scene.segments, key=lambda found: -found.end):
        prompt = f"{prompt[: found.end]}<|subj|>{prompt[found.end :]}"
    text = encode_text(tiny.clip, checkpoint, subjects, prompt, "")
    model = apply_subjects(tiny.model, checkpoint, subjects, fuse_scale=1.0)
    found = run(guider_for(model, text, cfg=1.0), noise=noise, sigmas=ONE_STEP)
    torch.testing.assert_close(model.model.process_latent_in(found), expected, atol=2e-4, rtol=1e-4)
    plain = run(guider_for(tiny.model, encode_plain(tiny), cfg=1.0), noise=noise, sigmas=ONE_STEP)
    assert (plain - found).abs().amax() > 0.01


@pytest.mark.parametrize("parts", [(LORA, VISION), (VISION,), (LORA, VISION, REFINER), (IMAGE_BRANCH,)])
def test_parts_that_were_not_trained_have_no_effect(tiny, training, tmp_path, parts):
    """A checkpoint with some parts paints the picture of the base with those parts alone: LoRAs, or nothing."""
    objective = training(parts=parts)
    with torch.no_grad():
        if LORA in parts:
            for name, parameter in objective.trainable.named_parameters():
                if name.startswith(("unet_lora", "text_lora")) and name.endswith(".up"):
                    parameter.normal_(std=0.05)
        tensors, metadata = objective.trainable.export()
    objective.close()
    write_safetensors(tensors, metadata, tmp_path / "parts.safetensors")
    checkpoint = load_checkpoint(tmp_path / "parts.safetensors")
    anna = encode_subject(checkpoint, tiny.clip_vision, [torch.rand(40, 40, 3)])
    text = encode_text(tiny.clip, checkpoint, [anna], "a man<|subj|> on a hill", "blurry")
    found = run(guider_for(apply_subjects(tiny.model, checkpoint, [anna], fuse_scale=1.0), text))
    model = tiny.model.clone()
    model.add_patches(unet_patches(model, checkpoint.unet_lora))
    clip = with_text_lora(tiny.clip, checkpoint)
    positive, negative = (
        clip.encode_from_tokens_scheduled(clip.tokenize(words)) for words in ("a man on a hill", "blurry")
    )
    alone = run(guider_for(model, SimpleNamespace(positive=positive, negative=negative)))
    plain = run(guider_for(tiny.model, encode_plain(tiny)))
    if IMAGE_BRANCH in parts:
        assert anna.tokens.abs().sum() > 0 and not torch.allclose(found, alone, atol=1e-3)
        assert torch.equal(text.positive[0][0], positive[0][0])
    else:
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)
        assert LORA not in parts or not torch.allclose(found, plain, atol=1e-2)


def constraint_of(objective: Objective, batch: Batch):
    from mmdiff_model.training.constraint import AttentionConstraint

    kind = objective.losses.constraint
    return AttentionConstraint(kind, batch.masks, batch.positions["l"], batch.present, batch.present)


@pytest.mark.parametrize("kind", ["balance", "masked"])
def test_the_constraint_draws_attention_into_the_masks(tiny, training, kind):
    objective = training(Losses(constraint=kind, constraint_weight=10.0))
    data = examples(tiny)
    batch = next(data.batch(n, 2) for n in range(12) if data.batch(n, 2).present.all())
    first = step(objective, batch)
    for _ in range(29):
        last = step(objective, batch)
    assert last["image_map"] < first["image_map"] - 0.02
    assert last["text_map"] < first["text_map"]


def test_dropped_conditions_are_those_of_a_plain_model(tiny, training):
    objective = training()
    gradients_of(objective, examples(tiny).batch(0, 2))
    objective.trainable.zero_grad()
    batch = examples(tiny).batch(0, 4)
    flags = torch.ones(4, dtype=torch.bool)
    without = replace(batch, drop_text=flags, drop_image=flags)
    other = replace(without, photos=1 - batch.photos, crops=1 - batch.crops)
    assert torch.equal(objective.loss(without)[0], objective.loss(other)[0])
    assert not torch.equal(objective.loss(batch)[0], objective.loss(replace(batch, photos=other.photos))[0])


def test_a_masked_noise_loss_counts_the_subjects_alone(tiny, training):
    objective = training(Losses(constraint="none"))
    batch = examples(tiny).batch(0, 2)
    error = torch.ones(2, 4, 16, 16)
    error[0, :, batch.masks[0].sum(dim=0) > 0] = 3.0
    batch = replace(batch, subjects_only=torch.tensor([True, False]))
    assert objective.noise_loss(error, torch.ones(2), batch).item() == pytest.approx((9 + 1) / 2)


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        (Losses("none"), (1, 1, 1)),
        (Losses("none", snr_limit=5.0), (0.05, 1, 1)),
        (Losses("none", velocity_limit=25.0), (1.01, 10, 25)),
    ],
)
def test_noise_levels_count_as_the_losses_say(tiny, training, losses, weights):
    objective = training(losses)
    batch = examples(tiny).batch(0, 1)
    for sigma, weight in zip((0.1, 3.0, 10.0), weights, strict=True):
        found = objective.noise_loss(torch.ones(1, 4, 16, 16), torch.tensor([sigma]), batch)
        assert found.item() == pytest.approx(weight, rel=1e-5)


def test_half_precision_is_for_the_base_and_the_adapter_and_not_for_the_vae(tiny, training, tmp_path):
    plan = Plan(steps=1, precision="bf16")
    objective = training(plan=plan)
    text, vision, unet = tiny.clip.cond_stage_model, tiny.clip_vision.model, tiny.model.model.diffusion_model
    layers = {
        "vae": tiny.vae.first_stage_model.encoder.conv_in,
        "unet": unet.get_submodule("input_blocks.4.1.transformer_blocks.0.attn2.to_q"),
        "text": text.clip_g.transformer.text_model.encoder.layers[0].self_attn.q_proj,
        "vision": vision.vision_model.encoder.layers[0].self_attn.q_proj,
        "adapter": objective.trainable.adapter.cls_head.fc,
    }
    seen: dict[str, set[torch.dtype]] = {name: set() for name in layers}
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output, name=name: seen[name].add(output.dtype))
        for name, layer in layers.items()
    ]
    loop = Loop(plan, objective.trainable, State(tmp_path / "state.pt", {}), Processes(torch.device("cpu")))
    data = Examples(WORLD, prepare(tiny), KEEP_ALL, seed=3)
    figures, _ = loop.update(lambda number: Micro(*objective.loss(data.batch(number, 2))))
    for hook in hooks:
        hook.remove()
    assert seen.pop("vae") == {torch.float32}
    assert all(dtypes == {torch.bfloat16} for dtypes in seen.values()), seen
    assert all(torch.tensor(value).isfinite() for value in figures.values())


def test_torchs_attention_stands_in_for_the_hosts_with_its_gradient(tiny, training):
    objective, batch = training(), examples(tiny).batch(0, 2)
    losses, gradients = [], []
    for objective.attention in (attend_by_products, attend_as_torch):
        objective.trainable.zero_grad()
        loss = objective.loss(batch)[0]
        loss.backward()
        losses.append(loss.detach())
        gradients.append(objective.trainable.background.grad.clone())
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-3)

    def without_gradient(q, k, v, heads, **options):
        raise AssertionError("the host's own kernel is not asked")

    q = torch.randn(1, 5, 8, requires_grad=True)
    attend_as_torch(without_gradient, q, q, q, 2).sum().backward()
    assert q.grad.abs().sum() > 0
