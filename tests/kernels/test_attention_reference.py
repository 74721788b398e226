"""The definition of attention itself: against a loop over queries and keys, and by gradcheck in float64."""

import math

import pytest
import torch

from kernels import reference
from kernels.philox import philox

OPTIONS = [
    {},
    {"causal": True},
    {"causal": True, "window": 2},
    {"window": 2},
    {"scale": 0.3, "softcap": 1.5},
    {"causal": True, "dropout_p": 0.4, "dropout_seed": 7},
    {"q_lengths": torch.tensor([2, 4]), "k_lengths": torch.tensor([5, 0])},
    {"causal": True, "q_lengths": torch.tensor([4, 3]), "k_lengths": torch.tensor([2, 5])},
]


def tensors(B=2, T=4, S=5, H=4, G=2, D=3):
    generator = torch.Generator().manual_seed(0)
    shapes = (B, T, H, D), (B, S, G, D), (B, S, G, D)
    return [torch.randn(s, dtype=torch.float64, generator=generator, requires_grad=True) for s in shapes]


@pytest.mark.parametrize("options", OPTIONS)
def test_gradcheck(options):
    assert torch.autograd.gradcheck(lambda q, k, v: reference.attention(q, k, v, **options), tensors())


@pytest.mark.parametrize("options", [o for o in OPTIONS if "dropout_p" not in o])
def test_against_a_loop_over_queries_and_keys(options):
    q, k, v = (x.detach() for x in tensors())
    expected = torch.zeros_like(q)
    for b in range(2):
        n = int(options.get("q_lengths", torch.tensor([4, 4]))[b])
        m = int(options.get("k_lengths", torch.tensor([5, 5]))[b])
        for h in range(4):
            for i in range(n):
                expected[b, i, h] = one_query(q[b, i, h], k[b, :m, h // 2], v[b, :m, h // 2], i + m - n, options)
    torch.testing.assert_close(reference.attention(q, k, v, **options), expected)


def one_query(q, k, v, place, options):
    """Attention of one query at `place` among the keys, with Python floats for the weights."""
    weights = {}
    for j in range(k.shape[0]):
        if options.get("causal") and j > place:
            continue
        if abs(j - place) >= options.get("window", 10**9):
            continue
        score = float(q @ k[j]) * options.get("scale", 1 / math.sqrt(q.shape[0]))
        if "softcap" in options:
            score = options["softcap"] * math.tanh(score / options["softcap"])
        weights[j] = math.exp(score)
    total = sum(weights.values())
    return sum((w / total * v[j] for j, w in weights.items()), torch.zeros_like(q))


def test_a_hidden_row_gives_zero_and_no_gradient():
    q, k, v = tensors()
    out = reference.attention(q, k, v, causal=True, k_lengths=torch.tensor([1, 0]))
    assert out[0, :3].abs().max() == 0
    assert out[1].abs().max() == 0
    out.sum().backward()
    assert q.grad[1].abs().max() == 0
    assert k.grad[1].abs().max() == 0
    assert all(torch.isfinite(x.grad).all() for x in (q, k, v))


def test_philox_known_answers():
    """The vectors published with Random123 (kat_vectors, philox4x32 10)."""
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    known = [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (2**32 - 1,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (0x299F31D0 << 32 | 0xA4093822, pi, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ]
    for seed, counters, expected in known:
        assert tuple(int(x) for x in philox(seed, *map(torch.tensor, counters))) == expected


def test_dropout_keeps_the_right_share_and_the_mean():
    q, k, _ = (torch.zeros(1, 256, 2, 4) for _ in range(3))
    v = torch.ones(1, 256, 2, 4)
    out = reference.attention(q, k, v, dropout_p=0.25, dropout_seed=3)
    assert abs(out.mean().item() - 1) < 0.01  # 131,072 draws: standard deviation 0.0016
    other = reference.attention(q, k, v, dropout_p=0.25, dropout_seed=4)
    assert not torch.equal(out, other)
