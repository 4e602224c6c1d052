"""Single modules equal the released code's: SE-Refiner, CLS head, fusion MLP, face tokens, both kinds of attention."""

import comfy.ops
import pytest
import torch
from comfy.ldm.modules.attention import CrossAttention
from safetensors.torch import load_file

from helpers import a_conditioning, step_of
from mmdiff_model.fusion import CLSHead, FusionMLP
from mmdiff_model.refiner import SERefiner, SubjectTokens
from mmdiff_model.sampling.attention import MultimodalCrossAttention
from mmdiff_model.sampling.projection import Projection
from mmdiff_model.sampling.routing import Routing
from reference import FOLDER, assert_close
from tiny_pack.models import fill
from tiny_pack.weights import noise, weight

pytestmark = pytest.mark.hosts

SEED, TOLERANCE = 20, 1e-5
OPERATIONS = comfy.ops.manual_cast
HEADS, WIDTH, CONTEXT, RANK, TOKENS = 4, 64, 512, 64, 4
PIXELS = (4, 6)
# name: subjects' masks by row of the batch (None: unconditional), photos, fuse_scale
VARIANTS = {
    "true": ([(True,)], 1, 0.8),
    "false": ([None], 1, 0.8),
    "cfg": ([None, (True,)], 1, 0.8),
    "three_refs": ([(True,)], 3, 0.8),
    "three_refs_cfg": ([None, (True,)], 3, 1.0),
    "two_tf": ([(True, False)], 2, 0.8),
    "two_ft": ([(False, True)], 2, 0.8),
    "two_tt": ([(True, True)], 2, 0.8),
    "two_ff": ([None], 2, 0.8),
    "two_cfg": ([None, (True, False)], 2, 0.8),
    "scale0": ([(True,)], 1, 0.0),
    "scale1": ([(True,)], 1, 1.0),
}


@pytest.fixture(scope="module")
def expected():
    return load_file(FOLDER / "modules.safetensors")


def given(name: str, *shape: int) -> torch.Tensor:
    return noise(f"module.{name}", shape, SEED)


def test_refiner(expected):
    refiner = SERefiner(512, 128, 4, OPERATIONS)
    fill(refiner, SEED, lambda key: f"module.refiner.{key}")
    assert_close(
        refiner(given("refiner.query", 2, 4, 512), given("refiner.dense", 2, 50, 128)),
        expected["refiner.out"],
        TOLERANCE,
    )


def test_face_tokens(expected):
    tokens = SubjectTokens(512, 1024, 128, 512, 4, 4, OPERATIONS)
    fill(tokens, SEED, lambda key: f"module.face_embeds_proj.{key}")
    assert_close(tokens(expected["face.embeds"], given("face.dense", 2, 50, 128)), expected["face.out"], TOLERANCE)


def test_cls_head(expected):
    head = CLSHead(96, 96, (192, 320), OPERATIONS)
    fill(head, SEED, lambda key: f"module.projhead.{key}")
    first, second = head(given("projhead.in", 3, 96))
    assert_close(first, expected["projhead.out_1"], TOLERANCE)
    assert_close(second, expected["projhead.out_2"], TOLERANCE)


def test_fusion_mlp(expected):
    fusion = FusionMLP(192, OPERATIONS)
    fill(fusion, SEED, lambda key: f"module.mlp.{key}")
    word, subject = given("mlp.in", 5, 384).chunk(2, dim=-1)
    assert_close(fusion(word, subject), expected["mlp.out"], TOLERANCE)


def lora(processor: str, name: str, inputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(
        weight(f"module.{processor}.{name}.{side}.weight", shape, SEED)
        for side, shape in (("down", (RANK, inputs)), ("up", (WIDTH, RANK)))
    )


def attention(name: str, processor: str, context: int) -> CrossAttention:
    """ComfyUI's attention with the LoRAs of q, k, v and out in its weights, as weight patches leave it."""
    module = CrossAttention(WIDTH, context, HEADS, WIDTH // HEADS, operations=OPERATIONS)
    fill(module, SEED, lambda key: f"module.{name}.{key}")
    for layer, key, inputs in (
        (module.to_q, "to_q_lora", WIDTH),
        (module.to_k, "to_k_lora", context),
        (module.to_v, "to_v_lora", context),
        (module.to_out[0], "to_out_lora", WIDTH),
    ):
        down, up = lora(processor, key, inputs)
        layer.weight += up @ down
    return module


def test_self_attention_with_lora(expected):
    hidden = given("cross.hidden", 2, 24, WIDTH)
    assert_close(attention("attn1", "self", WIDTH)(hidden), expected["self.out"], TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_multimodal_cross_attention(name, expected):
    rows, photos, fuse_scale = VARIANTS[name]
    batch = len(rows)
    hidden, text = given("cross.hidden", 2, 24, WIDTH)[-batch:], given("cross.text", 2, 77, CONTEXT)[-batch:]
    tokens = given("cross.image", 2, 12, CONTEXT)[-1, : photos * TOKENS]
    module = attention("attn2", "cross", CONTEXT)
    names = ("to_k_lora", "to_v_lora", "to_k_lora_image", "to_v_lora_image")
    projection = Projection(("input", 4, 0), "", *(lora("cross", key, CONTEXT) for key in names))
    image = projection.project(module, tokens, torch.full((len(tokens),), fuse_scale), torch.float32)
    called = [() if row is None else tuple(i for i, there in enumerate(row) if there) for row in rows]
    subjects = max(len(row or ()) for row in rows) or 1
    step = step_of([a_conditioning(who) for who in called], (len(tokens) // subjects,) * subjects, PIXELS, Routing())
    options = {"n_heads": HEADS, "attn_precision": None, "activations_shape": [batch, WIDTH, *PIXELS], "mmdiff": step}
    patch = MultimodalCrossAttention(projection.block, image, None)
    out = module.to_out(patch(module.to_q(hidden), module.to_k(text), module.to_v(text), options))
    assert_close(out, expected[f"cross.{name}.out"], TOLERANCE)


def test_unrefined_tokens_stay_in_the_sum():
    """The SE-Refiner adds to the tokens: with its output norm at zero they pass through."""
    tokens = SubjectTokens(512, 1024, 128, 512, 4, 4, OPERATIONS)
    fill(tokens, SEED, lambda key: f"module.face_embeds_proj.{key}")
    tokens.refiner.norm_out.weight.zero_()
    tokens.refiner.norm_out.bias.zero_()
    identity = given("identity", 1, 512)
    plain = tokens.layer_norm(tokens.proj(identity).view(1, 4, 512))
    assert torch.equal(tokens(identity, given("face.dense", 1, 50, 128)), plain)
