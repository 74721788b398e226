"""Intervals hold the truth as often as they say, on made-up results whose truth is known."""

import numpy as np
import pytest
from experiment import effects
from experiment.questions import between


def made_up(rng, seeds, examples, of_seed, of_example, truth=0.0):
    """Right or wrong of two arms: examples are of different difficulty, seeds of different luck, the arms apart by
    `truth` on average over both."""
    difficulty = rng.normal(0, of_example, examples)
    found = []
    for shift in (truth / 2, -truth / 2):
        p = 0.5 + shift + rng.normal(0, of_seed, (seeds, 1)) + difficulty
        found.append(rng.random((seeds, examples)) < np.clip(p, 0, 1))
    return found[0].astype(float), found[1].astype(float)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("of_seed", "of_example"), [(0.0, 0.1), (0.03, 0.1), (0.08, 0.0)])
def test_coverage(seeds, of_seed, of_example):
    """95 % of them hold it, or more; of few seeds whose luck hardly differs more, as their number is not known to."""
    rng, truth, trials = np.random.default_rng(0), 0.05, 400
    held = 0
    for _ in range(trials):
        found = effects.effect(*made_up(rng, seeds, 200, of_seed, of_example, truth))
        held += found.low <= truth <= found.high
    assert held / trials > 0.93


def test_a_plain_bootstrap_would_not_do():
    """What the closed form mends: percentiles over three seeds hold the truth much too rarely."""
    rng, truth, trials, held = np.random.default_rng(0), 0.05, 150, 0
    for _ in range(trials):
        first, second = made_up(rng, 3, 100, 0.08, 0.0, truth)
        difference = first - second
        means = []
        for _ in range(200):
            rows, columns = rng.integers(3, size=3), rng.integers(100, size=100)
            means.append(difference[np.ix_(rows, columns)].mean())
        low, high = np.percentile(means, [2.5, 97.5])
        held += low <= truth <= high
    assert held / trials < 0.9


def test_its_variance_is_that_of_the_two_way_bootstrap():
    """But for n / (n − 1), and for what the bootstrap of both at once counts a third time."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4, 1)) + rng.normal(size=(1, 50)) + 0.01 * rng.normal(size=(4, 50))
    means = [values[np.ix_(rng.integers(4, size=4), rng.integers(50, size=50))].mean() for _ in range(20_000)]
    of_seeds, of_examples = values.mean(1).var() / 4, values.mean(0).var() / 50
    assert np.var(means) == pytest.approx(of_seeds + of_examples, rel=0.03)


def test_where_all_are_alike_the_interval_is_that_of_none_of_n():
    """Nobody knows a share of 100 % from 300 examples, nor that two arms never differ."""
    from scipy import stats

    most = stats.beta.ppf(0.975, 1, 300)  # Clopper and Pearson's bound
    right = np.ones((3, 300))
    assert effects.effect(right, right)[:3] == pytest.approx((0.0, -most, most))
    assert effects.bounded(effects.mean_of(right))[:3] == pytest.approx((1.0, 1 - most, 1.0))
    assert effects.mean_of(right, ".3f")[:3] == (1.0, 1.0, 1.0)  # of what has no bounds nothing is known


def test_what_is_no_difference_has_bounds():
    few = np.zeros((3, 100))
    few[0, 0] = 1
    for form in (".1%", ".3f"):
        wide = effects.mean_of(few, form)
        found = effects.bounded(wide)
        assert wide.low < found.low == 0.0 < found.value < found.high == wide.high
    assert effects.bounded(effects.mean_of(1 - few)).high == 1.0
    assert effects.bounded(effects.mean_of(3 + few, ".3f")).high > 3
    assert effects.bounded(effects.mean_of(np.ones((1, 9)))).low != 0  # one seed has no interval


def test_pairs_count():
    """The same examples, with the same difficulty: much narrower than of examples that are not the same."""
    rng = np.random.default_rng(2)
    first = (rng.random((3, 500)) < 0.5).astype(float)
    second = first.copy()
    second[:, :5] = 1 - second[:, :5]
    paired, apart = effects.effect(first, second), effects.effect(first, second[:, ::-1])
    assert paired.high - paired.low < (apart.high - apart.low) / 3


def test_students_quantiles():
    from scipy import stats

    for freedom in (1, 2, 3, 9.999, 10, 11, 15.5, 40, 1e6):
        assert effects.student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=3e-3)
    assert effects.student(2.5) == pytest.approx((effects.student(2) + effects.student(3)) / 2)


def test_one_seed_has_no_interval_and_says_nothing():
    found = effects.effect(np.ones((1, 9)), np.zeros((1, 9)))
    assert found.value == 1
    assert found.low != found.low
    assert effects.sentence(found, "more", "less", "no difference was seen") == ""


def test_a_sentence_says_what_the_interval_carries():
    def of(*bounds):
        return effects.sentence(effects.Interval(*bounds), "A is ahead", "A is behind", "no difference was seen")

    assert of(0.02, 0.01, 0.03) == "A is ahead: +2.0 points [+1.0, +3.0]."
    assert of(-0.02, -0.03, -0.01) == "A is behind: −2.0 points [−3.0, −1.0]."
    assert of(-0.003, -0.012, 0.006) == "No difference was seen: −0.3 points [−1.2, +0.6]."


def test_differences_between_sets_of_other_examples():
    """The same as the difference of two means, with the variance of each set by itself."""
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        luck = rng.normal(0, 0.05, (3, 1))
        first, second = (mean + luck + rng.normal(0, 0.3, (3, n)) for mean, n in ((0.4, 80), (0.1, 300)))
        found = between(first, second)
        assert found.value == pytest.approx(first.mean() - second.mean())
        held += found.low <= 0.3 <= found.high
    assert held > 0.93 * 300


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="no pairs"):
        effects.effect(np.ones((2, 3)), np.ones((2, 4)))
