"""Attention over short packed sequences: as exact as the dtype allows, whatever stands in the padding."""

import pytest
import torch

from kernels import Packing, attention
from kernels.arguments import AttentionOptions as Options
from kernels.cpu.attention import _is_short, _short

LENGTHS = [5, 64, 1, 17, 90, 3]


def inputs(dtype, lengths=LENGTHS, H=3, D=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    packing = Packing.from_lengths(lengths)
    q, k, v, grad = (torch.randn(packing.num_tokens, H, D, generator=generator).to(dtype) for _ in range(4))
    return packing, [x.requires_grad_() for x in (q, k, v)], grad


def options(causal=False, p=0.0, seed=0):
    return Options(causal, None, 0.3, None, p, seed)


def output_and_gradients(function, tensors, grad):
    out = function(*tensors)
    return [out, *torch.autograd.grad(out, tensors, grad)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", [LENGTHS, [128], [1, 1], [4, 0, 7]])
def test_it_is_attention(causal, lengths):
    """In float64, which the formula allows though nobody is sent here with it."""
    packing, tensors, grad = inputs(torch.float64, lengths)
    ours = output_and_gradients(lambda *x: _short(*x, packing, packing, options(causal)), tensors, grad)
    truth = output_and_gradients(
        lambda *x: attention(*x, packing=packing, causal=causal, scale=0.3, impl="eager"), tensors, grad
    )
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


PAIRS = [[(3, 3), (2, 9), (1, 4), (0, 2), (7, 8)], [(4, 6)] * 3, [(1, 5)] * 2, [(0, 0), (3, 4)]]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pairs", PAIRS)
def test_queries_that_stand_behind_other_keys(causal, pairs):
    """The last beside the last key, whoever has how many."""
    generator = torch.Generator().manual_seed(0)
    packing, k_packing = (Packing.from_lengths(lengths) for lengths in zip(*pairs, strict=True))
    counts = packing.num_tokens, k_packing.num_tokens, k_packing.num_tokens, packing.num_tokens
    *tensors, grad = (torch.randn(count, 3, 16, generator=generator, dtype=torch.float64) for count in counts)
    tensors = [x.requires_grad_() for x in tensors]
    ours = output_and_gradients(lambda *x: _short(*x, packing, k_packing, options(causal)), tensors, grad)
    given = {"packing": packing, "k_packing": k_packing, "causal": causal, "scale": 0.3, "impl": "eager"}
    truth = output_and_gradients(lambda *x: attention(*x, **given), tensors, grad)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_bfloat16_is_as_exact_as_it_can_be():
    packing, tensors, grad = inputs(torch.bfloat16)
    assert _is_short(*tensors[:2], packing, packing, options())
    ours = output_and_gradients(lambda *x: attention(*x, packing=packing, scale=0.3), tensors, grad)
    wide = [x.detach().double().requires_grad_() for x in tensors]
    truth = output_and_gradients(
        lambda *x: attention(*x, packing=packing, scale=0.3, impl="eager"), wide, grad.double()
    )
    for a, b in zip(ours, truth, strict=True):
        assert (a.double() - b).norm() / b.norm() < 2**-7


def test_dropout_is_unbiased_and_its_gradient_that_of_what_was_kept():
    packing, tensors, _ = inputs(torch.float64, [6, 9])
    outputs = [_short(*tensors, packing, packing, options(p=0.5, seed=seed)).detach() for seed in range(2000)]
    mean, whole = torch.stack(outputs).mean(0), _short(*tensors, packing, packing, options()).detach()
    assert (mean - whole).norm() / whole.norm() < 0.05
    assert torch.autograd.gradcheck(lambda *x: _short(*x, packing, packing, options(p=0.5, seed=3)), tensors)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_no_queries_have_no_answers(dtype):
    packings = {"packing": Packing.from_lengths([0, 0]), "k_packing": Packing.from_lengths([2, 3])}
    tensors = [torch.zeros(count, 2, 16, dtype=dtype) for count in (0, 5, 5)]
    assert attention(*tensors, **packings).shape == (0, 2, 16)


@pytest.mark.parametrize(
    "change",
    [{"window": 4}, {"softcap": 5.0}],
)
def test_extras_go_elsewhere(change):
    packing, (q, k, _), _ = inputs(torch.bfloat16)
    assert not _is_short(q, k, packing, packing, options()._replace(**change))
    assert not _is_short(q.float(), k.float(), packing, packing, options())
    assert not _is_short(q, k[:, :1], packing, packing, options())  # grouped queries
    assert not _is_short(q, k, *[Packing.from_lengths([129, 51])] * 2, options())
    for of_queries, of_keys, is_short in (([90, 90], [90, 128], True), ([90, 90], [89, 91], False)):
        packings = Packing.from_lengths(of_queries), Packing.from_lengths(of_keys)
        assert _is_short(q, k, *packings, options()) == is_short  # of whom each sees a key
