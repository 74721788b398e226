"""The factors of dropout are 0 as often as asked for, and leave the expectation as it is."""

import math

import pytest
import torch

from kernels.cpu.dropout import LEVELS, dropout_factors, generator_of


def drawn(p: float, shape=(1_000, 1_001), dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    return dropout_factors(torch.empty(shape, dtype=dtype), p, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9, 1 / 3])
def test_as_many_are_dropped_as_asked_for(p):
    factors = drawn(p)
    dropped, n = float((factors == 0).double().mean()), factors.numel()
    assert abs(dropped - p) < 5 * math.sqrt(p * (1 - p) / n) + 1 / LEVELS
    kept = factors[factors != 0].unique()
    assert kept.tolist() == pytest.approx([1 / (1 - p)], rel=1 / (LEVELS * (1 - p)))
    assert abs(float(factors.mean()) - 1) < 5 * math.sqrt(p / (1 - p) / n)


def test_neighbours_are_independent():
    """Four elements share a word: every pattern of two neighbours is as frequent as it should be, at any distance."""
    p = 0.3
    dropped = (drawn(p).flatten() == 0).double()
    for distance in (1, 2, 3, 4, 5, 8, 64):
        both = float((dropped[distance:] * dropped[:-distance]).mean())
        assert abs(both - p * p) < 5 * math.sqrt(p * p * (1 - p * p) / dropped.numel())


@pytest.mark.parametrize(("p", "kept"), [(1e-7, 1.0), (1 - 1e-7, 1 / LEVELS)])
def test_extreme_probabilities_are_rounded_and_not_wrapped(p, kept):
    assert float((drawn(p) != 0).double().mean()) == pytest.approx(kept, abs=2e-5)


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_shape(shape, dtype):
    factors = drawn(0.5, shape, dtype)
    assert factors.shape == shape
    assert factors.dtype == dtype
    assert set(factors.flatten().tolist()) <= {0.0, 2.0}


def test_the_same_generator_draws_the_same_and_another_one_something_else():
    assert torch.equal(drawn(0.5, seed=1), drawn(0.5, seed=1))
    assert not torch.equal(drawn(0.5, seed=1), drawn(0.5, seed=2))
    torch.manual_seed(3)
    first, second = (dropout_factors(torch.empty(64), 0.5) for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(dropout_factors(torch.empty(64), 0.5), first)


def test_every_bit_of_a_seed_counts():
    seeds = 0, 1, 5, 5 + 2**16, 5 + 2**32, 2**32, 2**63 - 1
    draws = [dropout_factors(torch.empty(64), 0.5, generator_of(seed, torch.device("cpu"))) for seed in seeds]
    assert len({tuple(x.tolist()) for x in draws}) == len(seeds)


def test_the_factor_is_that_of_the_levels_kept():
    """For p = 1/3 the share that is kept is 43,691 of 65,536, and the factor its inverse: the mean is exactly 1."""
    assert float(drawn(1 / 3).max()) == LEVELS / 43691
