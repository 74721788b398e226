"""Correlations and errors against SciPy, left-out values against leaving out, intervals by their coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.metrics import average, mean_squared_error, pearson, spearman, unexplained
from minillm.metrics.numbers import ranks

numbers = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=4, max_size=30)


def draw(rng, n, r, is_binary=False):
    """Pairs of a normal distribution, of which the first is then cut to 0 or 1."""
    x, y = rng.standard_normal((2, n))
    return (x > 0).astype(float) if is_binary else x, r * x + (1 - r * r) ** 0.5 * y


@pytest.mark.parametrize(("name", "ours"), [("pearsonr", pearson), ("spearmanr", spearman)])
def test_correlations_are_those_of_scipy(name, ours):
    stats = pytest.importorskip("scipy.stats", reason="needs SciPy")

    @given(numbers)
    @settings(max_examples=200, deadline=None)
    def check(pairs):
        x, y = map(list, zip(*pairs, strict=True))
        found = ours(x, y)
        assert found.low <= found.value <= found.high
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert found == (0, -1, 1)
        else:
            assert found.value == pytest.approx(getattr(stats, name)(x, y).statistic, abs=1e-9)

    check()


@pytest.mark.parametrize("ours", [pearson, spearman])
def test_changes_are_those_of_leaving_an_example_out(ours):
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, (2, 40))  # with ties
    found = ours(x, y)
    without = [ours(np.delete(x, i), np.delete(y, i)).value for i in range(40)]
    assert found.changes == pytest.approx(np.array(without) - found.value, abs=1e-12)


def test_ranks_are_means_where_values_are_equal():
    assert ranks(np.array([5.0, 1, 5, 7])).tolist() == [1.5, 0, 1.5, 3]


@pytest.mark.parametrize("scale", [1e-6, 1e9])
def test_correlation_does_not_depend_on_scale(scale):
    x, y = draw(np.random.default_rng(0), 100, 0.5)
    assert pearson(scale * x + 1000 * scale, y) == pytest.approx(pearson(x, y), abs=1e-6)


@pytest.mark.parametrize("is_binary", [False, True])
@pytest.mark.parametrize(("ours", "r", "n"), [(pearson, 0.5, 30), (pearson, 0.9, 200), (spearman, 0.5, 100)])
def test_intervals_hold_the_correlation(ours, r, n, is_binary):
    """Of 0 and 1 with a number, too, where Fisher's error is wrong."""
    rng = np.random.default_rng(1)
    large = ours if ours is pearson else lambda x, y: pearson(ranks(x), ranks(y))
    truth = large(*draw(rng, 300_000, r, is_binary)).value
    drawn = [ours(*draw(rng, n, r, is_binary)) for _ in range(400)]
    assert 0.92 <= np.mean([found.low <= truth <= found.high for found in drawn]) <= 0.98


def test_a_perfect_correlation_is_not_certain():
    found = pearson(range(20), range(20))
    assert found.value == pytest.approx(1)
    assert found.low < found.value


def test_errors_by_hand():
    assert mean_squared_error([1, 2, 3], [1, 2, 6]).value == pytest.approx(3)
    assert unexplained([1, 2, 3], [2, 2, 2]).value == pytest.approx(1)  # always the mean
    assert unexplained([1, 2, 3], [1, 2, 4]).value == pytest.approx(0.5)
    assert mean_squared_error([1, 2], [1, 2]) == (0, 0, float("inf"))  # two examples say nothing of others
    with pytest.raises(ValueError, match="no variance"):
        unexplained([1, 1], [1, 2])


@pytest.mark.parametrize("n", [20, 200])
def test_intervals_hold_the_error(n):
    rng = np.random.default_rng(2)
    held = [0, 0]
    for _ in range(600):
        x, y = draw(rng, n, 0.8)
        for i, (found, truth) in enumerate([(mean_squared_error(x, 0 * x), 1), (unexplained(x, 0.8 * y), 0.36)]):
            held[i] += found.low <= truth <= found.high
    assert all(0.925 <= each / 600 <= 0.975 for each in held)


def test_the_average_of_numbers_of_any_sign():
    """Student's interval, whose quantile for ten is 2.262; what a number moves is what leaving it out does."""
    x = np.random.default_rng(0).normal(-3, 2, 10)
    found = average(x.tolist())
    half = 2.262 * x.std(ddof=1) / 10**0.5
    assert found.value == pytest.approx(x.mean())
    assert (found.high - found.value, found.value - found.low) == pytest.approx((half, half), rel=0.03)
    assert found.changes == pytest.approx([np.delete(x, i).mean() - x.mean() for i in range(10)])
    assert str(average([1.0, 1.0])) == "1 [1, 1]"
    assert average([2.0]).high == np.inf
    with pytest.raises(ValueError, match="a mean of nothing"):
        average([])
