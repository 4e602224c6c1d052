"""The image term by two products: host attention and addition, in every form that sampling and training use."""

import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from mmdiff_model.sampling.image_term import add_image_term

BATCH, PIXELS, HEADS, HEAD = 4, 20, 3, 16
WIDTH = HEADS * HEAD


def case(own: bool, routed: bool, tokens: int = 8, dtype=torch.float32, seed: int = 0):
    random = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=random).to(dtype)

    out, q = draw(BATCH, PIXELS, WIDTH), draw(BATCH, PIXELS, WIDTH)
    k, v = draw(2 if own else 1, tokens, WIDTH), draw(2 if own else 1, tokens, WIDTH)
    routing = (draw(1, 1, PIXELS, tokens), draw(1, PIXELS, 1).abs()) if routed else (None, None)
    return out, q, k, v, routing


def expected(out, rows, q, k, v, bias, gate):
    out, q = out.double(), q[rows].double()
    k, v = (side.double().expand(len(q), -1, -1) for side in (k, v))
    bias, gate = (None if x is None else x.double().expand(len(q), *x.shape[1:]) for x in (bias, gate))
    term = optimized_attention(q, k, v, HEADS, mask=bias)
    out[rows] += term if gate is None else gate * term
    return out


@pytest.mark.parametrize("own", [False, True], ids=["shared tokens", "tokens of each row"])
@pytest.mark.parametrize("routed", [False, True], ids=["off", "routed"])
@pytest.mark.parametrize("tokens", [4, 48])
def test_it_is_attention_and_addition(own, routed, tokens):
    out, q, k, v, routing = case(own, routed, tokens)
    rows = slice(1, 3)
    wanted = expected(out, rows, q, k, v, *routing)
    before = out.clone()
    given = add_image_term(out, rows, q, k, v, HEADS, *routing)
    torch.testing.assert_close(given.double(), wanted, atol=2e-6, rtol=2e-6)
    assert given.data_ptr() == out.data_ptr()
    assert torch.equal(given[:1], before[:1]) and torch.equal(given[3:], before[3:])


@pytest.mark.parametrize("own", [False, True])
def test_gradients_flow(own):
    out, q, k, v, routing = case(own, True)
    rows = slice(2, 4)
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in (out, q, k, v)]
        add_image_term(leaves[0], rows, *leaves[1:], HEADS, *routing).square().sum().backward()
        given = [leaf.grad for leaf in leaves]
        leaves = [x.clone().double().requires_grad_() for x in (out, q, k, v)]
        total = expected(leaves[0] * 1, rows, *leaves[1:], *routing)
        total.square().sum().backward()
    for ours, leaf in zip(given, leaves, strict=True):
        torch.testing.assert_close(ours.double(), leaf.grad, atol=1e-3, rtol=1e-4)


def test_what_a_previous_patch_gave():
    """A text branch of another precision, or laid out in another order, is added to as well."""
    out, q, k, v, _ = case(False, False)
    rows = slice(0, 2)
    wanted = expected(out, rows, q, k, v, None, None)
    for given in (out.double(), out.movedim(0, 1).contiguous().movedim(1, 0)):
        result = add_image_term(given, rows, q, k, v, HEADS)
        assert result.dtype == given.dtype
        torch.testing.assert_close(result.double(), wanted, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_the_hosts(dtype):
    out, q, k, v, _ = case(False, False, 8, dtype)
    out.zero_()
    exact = expected(out, slice(0, 4), q, k, v, None, None)
    host = optimized_attention(q, *(side.expand(BATCH, -1, -1) for side in (k, v)), HEADS).double()
    ours = add_image_term(out, slice(0, 4), q, k, v, HEADS).double()
    assert (ours - exact).norm() < 3 * (host - exact).norm()
