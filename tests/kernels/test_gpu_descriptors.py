"""The forward whose tiles the copy engine moves: to the last bit what the plain kernel gives."""

from contextlib import contextmanager
from unittest.mock import patch

import pytest

pytest.importorskip("triton")

import torch

from kernels import attention
from kernels.gpu import attention_launch as operators
from kernels.gpu import descriptors
from tests.kernels.attention_cases import ADVERSARIAL, DEVICE, Case, draw_case, launched, triton
from tests.kernels.interpreter import GuardBands, reversed_programs

interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="needs the interpreter")
DRAWN = [draw_case(i) for i in range(400)]
USED = []  # launches of the kernel


@contextmanager
def by(engine: bool, case: Case):
    """Launches of the case, with the copy engine or without."""
    with launched(case):
        table = operators.launches

        def choose(*of):
            launches = table(*of)
            return launches._replace(forward=launches.forward._replace(descriptors=engine))

        with patch.object(operators, "launches", choose):
            yield


def forward(case: Case, engine: bool) -> tuple:
    """Output and log-sum-exp."""
    inputs, layout = case.tensors()
    seen = []
    real = operators._run

    def run(kernel, grid, pointers, *rest):
        USED.append(kernel is descriptors.forward_kernel)
        real(kernel, grid, pointers, *rest)
        seen.extend(pointers[3:5])

    with by(engine, case), patch.object(operators, "_run", run):
        triton(case, *(x.to(case.dtype).requires_grad_() for x in inputs), layout)
    return tuple(seen)


def check(case: Case) -> None:
    plain, fast = forward(case, False), forward(case, True)
    assert len(plain) == len(fast)
    for a, b in zip(plain, fast, strict=True):
        assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


@pytest.mark.parametrize("case", ADVERSARIAL, ids=str)
def test_adversarial(case):
    check(case)


@pytest.mark.parametrize("case", DRAWN[:12], ids=str)
def test_drawn(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", DRAWN[12::8], ids=str)
def test_many_drawn(case):
    check(case)


@interpreted
def test_the_engine_is_used_where_rows_fit():
    """Rows of 100 half numbers are no multiple of 16 bytes apart; of 16 they are."""
    for D, used in ((16, True), (100, False)):
        USED.clear()
        forward(Case((33,), (33,), D=D, dtype=torch.float16, options={"causal": True}), True)
        assert [used] == USED


def test_dropout_is_left_to_the_plain_kernel():
    USED.clear()
    forward(Case((33,), (33,), options={"dropout_p": 0.1, "dropout_seed": 3}), True)
    assert USED == [False]


GUARDED = [
    Case((33, 5), (20, 37), G=2, options={"causal": True}),
    Case((33, 1, 20), (33, 1, 20), packed=True, D=32, options={"causal": True}),
    Case((7, 33), (7, 33), packed=True, options={"window": 9}),
]


@interpreted
@pytest.mark.parametrize("case", GUARDED, ids=str)
def test_guard_bands(case):
    """NaN around the inputs must not be read; sentinels around outputs must survive, in whatever order programs run."""
    expected, bands = forward(case, True), GuardBands()
    inputs, layout = case.tensors()
    leaves = [bands.guard(x.float()).requires_grad_() for x in inputs]
    assert descriptors.fits(*leaves)
    with bands.outputs(), by(True, case), reversed_programs():
        out = attention(*leaves, **layout, **case.options, impl="triton")
    bands.check()
    assert torch.equal(out, expected[0])
