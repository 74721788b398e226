"""The public function: all implementations against the reference, layouts against each other, bad input."""

import math
from functools import partial

import pytest
import torch

from kernels import Packing, attention, reference

IMPLS = ("eager", "torch")


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)


def value_and_gradients(function, q, k, v):
    """Output and the gradient of each input, for one fixed direction of the output."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = function(*leaves)
    out.backward(draw(*out.shape, dtype=out.dtype, seed=99))
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"causal": True, "window": 3},
        {"window": 3},
        {"scale": 0.2, "softcap": 2.0},
        {"q_lengths": torch.tensor([7, 0, 3])},
        {"k_lengths": torch.tensor([9, 1, 0])},
        {"causal": True, "q_lengths": torch.tensor([7, 5, 3]), "k_lengths": torch.tensor([2, 9, 3])},
    ],
)
@pytest.mark.parametrize(("T", "S"), [(7, 9), (9, 9), (1, 9)])
def test_dense(impl, options, T, S):
    q, k, v = draw(3, T, 4, 8), draw(3, S, 2, 8), draw(3, S, 2, 8, seed=1)
    if "q_lengths" in options:
        options = options | {"q_lengths": options["q_lengths"].clamp(max=T)}
    ours = value_and_gradients(lambda *x: attention(*x, impl=impl, **options), q, k, v)
    truth = value_and_gradients(lambda *x: reference.attention(*x, **options), q, k, v)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("q_lengths", "k_lengths"),
    [
        ((5, 1, 8), None),
        ((4, 4), None),
        ((3,), None),
        ((2, 1, 0), (6, 1, 4)),
        ((0, 0), (3, 3)),
        ((2, 2), (0, 0)),
        ((1, 1, 1), (3, 9, 1)),
        ((5, 2), (2, 5)),
    ],
)
def test_packed_equals_one_by_one(impl, causal, q_lengths, k_lengths):
    packing = Packing.from_lengths(q_lengths)
    k_packing = Packing.from_lengths(k_lengths) if k_lengths else packing
    q, k, v = (
        draw(packing.num_tokens, 4, 8),
        draw(k_packing.num_tokens, 2, 8),
        draw(k_packing.num_tokens, 2, 8, seed=1),
    )

    def one_by_one(q, k, v):
        parts = zip(*(p.split(x) for p, x in ((packing, q), (k_packing, k), (k_packing, v))), strict=True)
        return torch.cat([reference.attention(*(x[None] for x in part), causal=causal)[0] for part in parts])

    ours = value_and_gradients(
        lambda *x: attention(*x, packing=packing, k_packing=k_packing, causal=causal, impl=impl), q, k, v
    )
    for a, b in zip(ours, value_and_gradients(one_by_one, q, k, v), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("impl", IMPLS)
def test_one_fused_projection(impl):
    """Views of one (B,T,(H+2G)·D) projection go in as they are."""
    qkv = draw(2, 6, 8, 8)
    q, k, v = qkv.split((4, 2, 2), dim=2)
    ours = attention(q, k, v, causal=True, impl=impl)
    torch.testing.assert_close(ours, reference.attention(*(x.contiguous() for x in (q, k, v)), causal=True))


@pytest.mark.parametrize("impl", IMPLS)
def test_autocast_casts_the_inputs(impl):
    """Rotated queries in float32 and values in bfloat16 are what a model under autocast has."""
    q, k, v = (draw(1, 20, 2, 8, dtype=dtype) for dtype in (torch.float32, torch.float32, torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(q, k, v, causal=True, impl=impl)
    assert torch.equal(out, attention(q.bfloat16(), k.bfloat16(), v, causal=True, impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_keys(impl, dtype):
    """Queries that see nothing give 0 and have zero gradients."""
    q, k, v = draw(2, 40, 2, 16, dtype=dtype), draw(2, 0, 2, 16, dtype=dtype), draw(2, 0, 2, 16, dtype=dtype)
    for x in value_and_gradients(partial(attention, impl=impl), q, k, v):
        assert not x.any()
    with torch.no_grad():
        assert not attention(q, k, v, impl=impl).any()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("S", [33, 40])
def test_a_window_beyond_all_keys_is_none(impl, causal, S):
    q, k, v = draw(1, 40, 2, 8), draw(1, S, 2, 8), draw(1, S, 2, 8, seed=1)
    results = [
        value_and_gradients(partial(attention, causal=causal, window=window, impl=impl), q, k, v)
        for window in (None, 40, 2**31 - 1, 2**40)
    ]
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("scale", [0.0, -0.0, -0.5, -1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("T", [1, 20])
def test_a_scale_may_be_zero_or_below(scale, dtype, causal, packed, T):
    """What is hidden stays hidden then."""
    q, k, v = (draw(*([T] if packed else [2, T]), 2, 8, dtype=dtype, seed=i) for i in range(3))
    options = {"causal": causal, "scale": scale, "packing": Packing.from_lengths([T]) if packed else None}
    ours = value_and_gradients(partial(attention, impl="torch", **options), q, k, v)
    truth = value_and_gradients(partial(attention, impl="eager", **options), *(x.double() for x in (q, k, v)))
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.double(), b, atol=0.03 if dtype == torch.bfloat16 else 1e-6, rtol=0.01)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("T", [1, 3, 20])  # a step, a few queries, a prompt
@pytest.mark.parametrize("options", [{"causal": True}, {"window": 3}, {"softcap": 2.0}, {"dropout_p": 0.3}], ids=str)
def test_what_lies_behind_a_sequence_is_ignored(impl, dtype, value, T, options):
    """As in the buffers of a cache, which are longer than what they hold: by results and gradients."""
    q, k, v = draw(2, T, 4, 8, dtype=dtype), draw(2, 25, 2, 8, dtype=dtype), draw(2, 25, 2, 8, dtype=dtype, seed=1)
    lengths = {"q_lengths": torch.tensor([T, T - 1]), "k_lengths": torch.tensor([21, 0])}
    function = partial(attention, impl=impl, **lengths, **options)
    clean = [function(q, k, v), *value_and_gradients(function, q, k, v)]
    q[1, T - 1 :] = value
    for x in (k, v):
        x[0, 21:], x[1] = value, value
    for a, b in zip(clean, [function(q, k, v), *value_and_gradients(function, q, k, v)], strict=True):
        assert torch.equal(a, b)


def test_high_bits_of_the_dropout_seed_count():
    q, k, v = (draw(1, 40, 2, 8, dtype=dtype) for dtype in [torch.float32] * 3)
    for dtype in (torch.float32, torch.bfloat16):  # blocks and short ones
        packing = Packing.from_lengths([25, 15])
        x = [y[0].to(dtype) for y in (q, k, v)]
        a, b = (attention(*x, packing=packing, dropout_p=0.5, dropout_seed=s, impl="torch") for s in (5, 5 + 2**32))
        assert not torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": draw(2, 5, 8)}, "takes q and k, v of shapes"),
        ({"v": draw(2, 4, 2, 8)}, "takes q and k, v of shapes"),
        ({"q": draw(2, 5, 3, 8)}, "3 query heads cannot share 2"),
        ({"q": draw(1, 5, 4, 8)}, "batch size 1"),
        ({"q": draw(2, 5, 0, 8)}, "0 query heads cannot share 2"),
        ({"q": draw(2, 5, 0, 8), "k": draw(2, 5, 0, 8), "v": draw(2, 5, 0, 8)}, "0 query heads cannot share 0"),
        ({"window": 0}, "window=0"),
        ({"window": -(2**31)}, "window=-2147483648"),
        ({"scale": math.nan}, "scale=nan must be finite"),
        ({"softcap": 0.0}, "softcap=0.0 must be positive and finite"),
        ({"softcap": -5.0}, "softcap=-5.0"),
        ({"softcap": math.inf}, "softcap=inf"),
        ({"dropout_seed": 2**63}, "dropout_seed=9223372036854775808"),
        ({"dropout_seed": -1}, "dropout_seed=-1"),
        ({"dropout_p": 1.0}, "dropout_p=1.0"),
        ({"impl": "cuda"}, "impl='cuda'"),
        ({"v": draw(2, 5, 2, 8).float()}, "one dtype"),
        ({"packing": Packing.from_lengths([5])}, "takes q and k, v of shapes"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"q": draw(2, 5, 4, 8), "k": draw(2, 5, 2, 8), "v": draw(2, 5, 2, 8)} | change
    with pytest.raises(ValueError, match=message):
        attention(**arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_second_derivative(dtype):
    """Neither PyTorch's kernel nor the blocks have one, and they say so."""
    q, k, v = (draw(1, 5, 2, 8, dtype=dtype).requires_grad_() for _ in range(3))
    (dq,) = torch.autograd.grad(attention(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="derivative"):
        dq.sum().backward()
