"""A step of decoding is attention of one query a sequence."""

import pytest
import torch

from kernels import reference
from kernels.decoding import decode_attention, laid_out

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("batch", [3, 20])  # with 4 heads on either side of what half precision is divided by
@pytest.mark.parametrize("group", [1, 3])
def test_equals_the_definition(dtype, ragged, batch, group):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, 4 * group, 16, generator=generator).to(dtype)
    keys, values = (torch.randn(batch, 4, 11, 16, generator=generator).to(dtype) for _ in range(2))
    keys, values = laid_out(keys)[:, :, :9], values[:, :, :9]
    lengths = torch.randint(1, 10, (batch,), generator=generator) if ragged else torch.full((batch,), 9)
    visible = (torch.arange(9) < lengths[:, None])[:, None, None] if ragged else None
    out = decode_attention(q, keys, values, visible)
    k, v = (x.transpose(1, 2).double() for x in (keys, values))
    ones = torch.ones(batch, dtype=torch.int64)
    truth = reference.attention(q[:, None].double(), k, v, causal=True, q_lengths=ones, k_lengths=lengths)[:, 0]
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), truth, rtol=0, atol=TOLERANCES[dtype])


def test_keys_lie_along_tokens_where_products_read_them():
    few, many = torch.randn(8, 4, 6, 16).bfloat16(), torch.randn(9, 4, 6, 16).bfloat16()
    for keys, stride in ((few, 1), (many, 6), (many.float(), 1), (many.mT.contiguous().mT.float(), 1)):
        assert laid_out(keys).stride(-1) == stride
        assert torch.equal(laid_out(keys), keys)
