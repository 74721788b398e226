"""Whether two models differ: paired intervals, by their coverage and against known ones."""

import numpy as np
import pytest

from minillm.metrics import Interval, difference, macro_f1, mean, of_sums, perplexity, rate, ratio


def test_a_difference_is_paired():
    """Models that fail on the same examples are told apart, where their own intervals overlap by far."""
    rng = np.random.default_rng(0)
    hard = rng.random(2000) < 0.3
    first, second = ~hard, ~hard & (rng.random(2000) < 0.98)
    a, b = rate(first), rate(second)
    assert a.low < b.high
    found = difference(a, b)
    assert found.value == pytest.approx(a.value - b.value)
    assert 0 < found.low < found.value < found.high
    assert difference(b, a) == pytest.approx((-found.value, -found.high, -found.low))


def test_models_that_always_agreed_may_still_differ():
    for n in (10, 1000):
        same = [True, False] * (n // 2)
        found = difference(rate(same), rate(same))
        assert found.value == 0
        assert found.low == pytest.approx(-1.96 * 2**0.5 / n, rel=0.2 if n == 10 else 2e-3)
        assert found.high == -found.low


def test_only_what_is_of_the_same_examples_has_a_difference():
    for other in (rate([True] * 3), Interval(0.5, 0.4, 0.6)):
        with pytest.raises(ValueError, match="same examples"):
            difference(rate([True] * 4), other)


def drawn(rng, n):
    """Scores of two models, from 0 to 1, that go together; the second's mean is 0.1 less."""
    easy = rng.beta(2, 1, n)
    return easy, easy * rng.beta(8.5, 1.5, n)


@pytest.mark.parametrize("n", [20, 200])
def test_differences_of_rates_are_held(n):
    rng, held = np.random.default_rng(1), 0
    for _ in range(1000):
        hard = rng.random(n)
        found = difference(rate(hard < 0.8), rate((hard < 0.7) ^ (rng.random(n) < 0.02)))
        held += found.low <= 0.8 - (0.7 * 0.98 + 0.3 * 0.02) <= found.high
    assert 0.93 <= held / 1000 <= (0.985 if n > 20 else 1)


@pytest.mark.parametrize("n", [30, 300])
def test_differences_of_means_and_ratios_are_held(n):
    rng, held = np.random.default_rng(2), [0, 0]
    for _ in range(600):
        first, second = drawn(rng, n)
        found = difference(mean(first), mean(second))
        held[0] += found.low <= 0.1 <= found.high
        sizes = rng.integers(1, 9, n)
        found = difference(ratio(first * sizes, sizes), ratio(second * sizes, sizes))
        held[1] += found.low <= 0.1 <= found.high
    assert all(0.93 <= each / 600 <= (0.975 if n > 30 else 1) for each in held)


@pytest.mark.parametrize("classes", [2, 10])
def test_differences_of_macro_f1_are_held(classes):
    rng, held = np.random.default_rng(3), 0
    for _ in range(500):
        truth = rng.integers(classes, size=200)
        wrong = (truth + rng.integers(1, classes, size=200)) % classes
        hard = rng.random(200)
        names = [np.where(hard < right, truth, wrong).tolist() for right in (0.8, 0.72)]
        found = difference(*(macro_f1(truth.tolist(), each) for each in names))
        held += found.low <= 0.08 <= found.high
    assert 0.92 <= held / 500 <= 0.985


def test_of_sums_is_a_ratio_where_the_function_is_one():
    rng = np.random.default_rng(4)
    rows = np.stack([rng.integers(0, 3, 300), rng.integers(3, 9, 300)], axis=-1).astype(float)
    found, expected = of_sums(rows, lambda s: s[..., 0] / s[..., 1]), ratio(*rows.T, ceiling=1.0)
    assert found == pytest.approx(expected, abs=2e-3)
    assert found.changes == pytest.approx(expected.changes, rel=0.05, abs=1e-5)


def test_perplexity_and_its_difference_are_those_of_nats():
    nats, tokens = np.array([[3.0, 4, 8, 9], [2, 4, 7, 9]]), [2, 3, 4, 5]
    first, second = (perplexity(each, tokens) for each in nats)
    assert first.value == pytest.approx(np.exp(24 / 14))
    assert first.low == pytest.approx(np.exp(ratio(nats[0], tokens).low))
    found = difference(first, second)
    assert found.value == pytest.approx(np.exp(24 / 14) - np.exp(22 / 14))
    assert found.low < found.value < found.high
    assert str(first) == f"{first.value:.2f} [{first.low:.2f}, {first.high:.2f}]"
