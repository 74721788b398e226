"""A step of decoding is attention of one query a sequence."""

import pytest
import torch

from kernels import reference
from kernels.cpu import attention as cpu
from kernels.cpu.attention import Step, laid_out

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
S, N, G, D = 11, 9, 4, 16  # capacity, keys held, key/value heads, head dim


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch", [3, 60])
@pytest.mark.parametrize("sharing", [1, 3])
def test_equals_the_definition(dtype, ragged, batch, sharing):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, G * sharing, D, generator=generator).to(dtype)
    keys, values = (torch.randn(batch, G, S, D, generator=generator).to(dtype) for _ in range(2))
    lengths = torch.randint(1, N + 1, (batch,), generator=generator) if ragged else torch.full((batch,), N)
    visible = (torch.arange(N) < lengths[:, None])[:, None, None] if ragged else None
    out = Step(N, visible).attend(q, laid_out(keys, G * sharing), values)
    k, v = (x[:, :, :N].transpose(1, 2).double() for x in (keys, values))
    ones = torch.ones(batch, dtype=torch.int64)
    truth = reference.attention(q[:, None].double(), k, v, causal=True, q_lengths=ones, k_lengths=lengths)[:, 0]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=TOLERANCES[dtype])


def test_layers_share_a_step():
    """What was derived for the first layer fits all that follow."""
    step = Step(N)
    for seed in range(3):
        torch.manual_seed(seed)
        q, keys, values = torch.randn(60, 2 * G, D), torch.randn(60, G, S, D), torch.randn(60, G, S, D)
        out = step.attend(q, keys.mT.contiguous().mT, values)
        torch.testing.assert_close(out, Step(N).attend(q, keys, values))


@pytest.mark.parametrize(
    ("dtype", "batch", "heads", "stride"),
    [
        (torch.float32, 46, 4, 1),
        (torch.float32, 47, 4, S),
        (torch.float32, 24, 8, S),  # it is the heads that ask which count
        (torch.bfloat16, 5, 4, 1),
        (torch.bfloat16, 6, 4, S),
        (torch.float64, 100, 4, 1),
    ],
)
def test_keys_lie_along_tokens_where_rows_are_summed(monkeypatch, dtype, batch, heads, stride):
    monkeypatch.setattr(cpu, "HAS_FAST_SUMS", True)
    keys = torch.randn(batch, G, S, D).to(dtype)
    for given in (keys, keys.mT.contiguous().mT):
        assert laid_out(given, heads).stride(-1) == stride
        assert torch.equal(laid_out(given, heads), keys)


def test_keys_lie_as_ever_where_sums_of_rows_are_slow(monkeypatch):
    monkeypatch.setattr(cpu, "HAS_FAST_SUMS", False)
    assert laid_out(torch.randn(100, G, S, D), G).stride(-1) == 1
