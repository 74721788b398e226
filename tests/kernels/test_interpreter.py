"""The tools of interpreter.py: they must be right themselves, and catch what they are for."""

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from tests.kernels.interpreter import GuardBands, reversed_programs, right_bfloat16  # noqa: E402

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="these tools are for the interpreter")


@triton.jit
def _product(a_ptr, b_ptr, c_ptr, cast_ptr):
    i = tl.arange(0, 16)
    tile = i[:, None] * 16 + i[None, :]
    a, b = tl.load(a_ptr + tile), tl.load(b_ptr + tile)
    tl.store(c_ptr + tile, tl.dot(a, b))
    tl.store(cast_ptr + tile, (a.to(tl.float32) * 1.2345).to(tl.bfloat16))


@triton.jit
def _add(a_ptr, b_ptr, c_ptr):
    i = tl.arange(0, 16)
    tl.store(c_ptr + i, tl.load(a_ptr + i) + tl.load(b_ptr + i))


def test_bfloat16_is_right():
    a, b = (torch.randn(16, 16).bfloat16() for _ in range(2))
    c, cast, total = (
        torch.empty(16, 16),
        torch.empty(16, 16, dtype=torch.bfloat16),
        torch.empty(16).bfloat16(),
    )
    with right_bfloat16():
        _product[(1,)](a, b, c, cast)
        _add[(1,)](a, b, total)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-6, atol=1e-6)
    assert torch.equal(cast, (a.float() * 1.2345).bfloat16())
    assert torch.equal(total, a[0] + b[0])


@triton.jit
def _shift(x_ptr, y_ptr, n, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y_ptr + i, tl.load(x_ptr + i), mask=i < n)


@pytest.mark.parametrize("size", [16, 32])
def test_guard_bands_see_a_write_behind_the_end(size):
    bands = GuardBands()
    x = bands.guard(torch.zeros(16))
    with bands.outputs():
        y = torch.empty(16)
    _shift[(1,)](x, y, size, SIZE=size)
    if size == 16:
        bands.check()
    else:
        with pytest.raises(AssertionError, match="outside"):
            bands.check()


@triton.jit
def _last_wins(y_ptr):
    tl.store(y_ptr, tl.program_id(0))


def test_reversed_programs_show_a_race():
    forth, back = torch.zeros(2, dtype=torch.int32)
    y = torch.zeros(1, dtype=torch.int32)
    _last_wins[(5,)](y)
    forth = y.item()
    with reversed_programs():
        _last_wins[(5,)](y)
    back = y.item()
    assert (forth, back) == (4, 0)
