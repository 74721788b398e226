"""Edit distance by its definition, intervals by known values and by their coverage."""

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm import metrics
from minillm.metrics import Interval, edit_distance, macro_f1, nats_per_token, rate, ratio

words = st.lists(st.sampled_from("abc"), max_size=6).map(tuple)


@functools.cache
def by_definition(first, second):
    """The cheapest of: delete, insert, substitute or keep the first symbol."""
    if not first or not second:
        return len(first) + len(second)
    return min(
        1 + by_definition(first[1:], second),
        1 + by_definition(first, second[1:]),
        (first[0] != second[0]) + by_definition(first[1:], second[1:]),
    )


@given(words, words)
@settings(max_examples=200, deadline=None)
def test_edit_distance_is_its_definition(first, second):
    assert edit_distance(first, second) == by_definition(first, second)


@given(words, words, words)
@settings(max_examples=100, deadline=None)
def test_edit_distance_is_a_distance(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_edit_distance_of_words_and_of_lists_of_words():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_distance(["T", "R", "AE", "N", "S"], ["T", "AE", "N", "Z"]) == 2
    assert edit_distance("", "abc") == edit_distance("abc", "") == 3


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe (1998), Statistics in Medicine 17, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
    ],
)
def test_wilson_interval_is_the_published_one(right, n, low, high):
    interval = rate([True] * right + [False] * (n - right))
    assert interval.value == pytest.approx(right / n)
    assert interval.low == pytest.approx(low, abs=5e-5)
    assert interval.high == pytest.approx(high, abs=5e-5)


@given(st.integers(0, 500), st.integers(1, 500))
@settings(max_examples=100, deadline=None)
def test_wilson_interval_holds_its_value_and_is_symmetric(right, n):
    right = min(right, n)
    found = rate([True] * right + [False] * (n - right))
    mirrored = rate([False] * right + [True] * (n - right))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert mirrored.low == pytest.approx(1 - found.high)


@pytest.mark.parametrize(
    ("right", "n", "low"),
    [(1, 29, 0.0009), (2, 100, 0.0024), (3, 1000, 0.0006), (4, 50, 0.0222)],  # Clopper and Pearson (1934)
)
def test_few_successes_set_nearly_the_exact_bound(right, n, low):
    interval = rate([True] * right + [False] * (n - right))
    assert low / 2 < interval.low < low * 1.05
    assert rate([False] * right + [True] * (n - right)).high == pytest.approx(1 - interval.low)


@pytest.mark.parametrize("n", [20, 37, 100, 400])
def test_rates_are_held_whatever_they_are(n):
    """The probability of all outcomes whose interval holds the rate: 0.83 at worst of Wilson's own interval."""
    bounds = np.array([rate([i < right for i in range(n)]) for right in range(n + 1)])
    rates = np.concatenate([np.linspace(0.005, 0.995, 199), np.geomspace(0.01, 10, 200) / n])
    coverage = [binomial(n, p) @ ((bounds[:, 1] <= p) & (p <= bounds[:, 2])) for p in rates]
    assert 0.94 < np.mean(coverage[:199]) < 0.97
    assert min(coverage) > 0.92


def binomial(n, p):
    return np.array([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)])


# ---- ratios --------------------------------------------------------------------------------------


def test_ratio_is_of_sums_and_not_of_means():
    assert ratio([1, 0, 3], [1, 4, 5]).value == pytest.approx(0.4)
    assert ratio([5, 6], [2, 2]).value == 2.75  # more edits than phones


def held(draw, repeats, seed=0):
    """How often an interval holds the truth."""
    rng = np.random.default_rng(seed)
    return np.mean([low <= truth <= high for (_, low, high), truth in (draw(rng) for _ in range(repeats))])


@pytest.mark.parametrize(
    ("n", "p", "least", "most"),
    [
        (10, 0.03, 0.95, 1.0),
        (10, 0.2, 0.93, 1.0),
        (20, 0.2, 0.93, 1.0),
        (200, 0.2, 0.93, 0.97),
        (2000, 0.02, 0.93, 0.97),
    ],
)
def test_ratio_intervals_hold_the_truth(n, p, least, most):
    """Edits of words, most of which are right, and the wrong ones wrong in a third of their phones and at least one."""

    def draw(rng):
        lengths = rng.integers(3, 13, size=n)
        wrong = rng.random(n) < p * lengths / 8
        edits = wrong * (1 + rng.binomial(lengths - 1, 0.3))
        return ratio(edits, lengths), p * np.mean(ALL * (1 + (ALL - 1) * 0.3)) / 8 / ALL.mean()

    assert least <= held(draw, 1500) <= most


ALL = np.arange(3, 13)  # lengths


def test_ratio_interval_is_repeatable_and_shrinks():
    few, many = ([ratio([0, 1, 0, 2] * k, [2, 3, 4, 5] * k) for k in (n, n)] for n in (5, 500))
    assert few[0] == few[1]
    widths = [x.high - x.low for x in (few[0], many[0])]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.2)


def test_ratio_of_shares_is_as_sure_as_a_rate():
    """Words of one phone: the error rate of phones is that of words."""
    wrong = [True] * 30 + [False] * 70
    assert ratio(wrong, [1] * 100) == pytest.approx(rate(wrong), abs=0.02)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20), st.integers(1, 9))
def test_ratio_holds_its_value_and_is_never_sure(pairs, length):
    edits, lengths = zip((0, length), *pairs, strict=True)
    found = ratio(edits, lengths)
    assert 0 <= found.low <= found.value <= found.high
    assert found.low < found.high


def test_nothing_wrong_is_no_proof():
    """Of n words without an error, 1 − 0.025^(1/n) and less may be wrong in truth; here all phones of them."""
    for n in (1, 5, 10, 100, 10_000):
        assert ratio([0] * n, [7] * n).low == 0
        assert 1 - 0.025 ** (1 / n) < ratio([0] * n, [7] * n).high < 4 / n


# ---- F1 ------------------------------------------------------------------------------------------


def test_f1_by_hand():
    #        precision  recall   F1
    # a      2/3        2/2      4/5
    # b      1/1        1/3      1/2
    # c      0/1        0/0      0     never true, but answered once
    assert macro_f1("aabbb", "aabac").value == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert macro_f1("ab", "ab").value == 1
    assert macro_f1("ab", "ba").value == 0


def f1_by_definition(truth, answers, name):
    """The harmonic mean of precision and recall; 0 where a class is never hit."""
    hits = sum(t == a == name for t, a in zip(truth, answers, strict=True))
    if hits == 0:
        return 0.0
    precision, recall = hits / answers.count(name), hits / truth.count(name)
    return 2 / (1 / precision + 1 / recall)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=12))
def test_f1_is_its_definition(pairs):
    truth, answers = map(list, zip(*pairs, strict=True))
    scores = [f1_by_definition(truth, answers, name) for name in {*truth, *answers}]
    found = macro_f1(truth, answers)
    assert found.value == pytest.approx(sum(scores) / len(scores))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    assert macro_f1([f"class {name}" for name in truth], [f"class {name}" for name in answers]) == pytest.approx(found)


def test_f1_of_two_even_classes_is_as_sure_as_accuracy():
    truth, answers = "ab" * 200, "ab" * 150 + "ba" * 50
    assert macro_f1(truth, answers) == pytest.approx(
        rate([t == a for t, a in zip(truth, answers, strict=True)]), abs=0.01
    )
    assert macro_f1("ab" * 50, "ab" * 50) == pytest.approx(rate([True] * 100), abs=1e-6)


@pytest.mark.parametrize("chosen", [False, True], ids=["classes drawn", "as many of each"])
@pytest.mark.parametrize(
    ("classes", "each", "accuracy", "most"),
    [(2, 10, 0.7, 0.985), (2, 100, 0.9, 0.97), (20, 5, 0.6, 0.985), (100, 5, 0.5, 0.985), (100, 10, 0.8, 0.97)],
)
def test_f1_intervals_hold_the_truth(classes, each, accuracy, most, chosen):
    """Errors fall on all other classes alike, so that every class has an F1 of `accuracy`. The percentiles of a
    bootstrap hold it in 60 to 90 % of these cases."""

    def draw(rng):
        n = classes * each
        truth = np.repeat(np.arange(classes), each) if chosen else rng.integers(classes, size=n)
        wrong = (truth + rng.integers(1, classes, size=n)) % classes
        answers = np.where(rng.random(n) < accuracy, truth, wrong)
        return macro_f1(truth.tolist(), answers.tolist()), accuracy

    assert 0.93 <= held(draw, 800) <= most


def test_f1_does_not_depend_on_the_order_of_a_set():
    """Or a run that goes on in another process would end with other last digits."""
    code = f"""import sys, types
sys.modules["minillm"] = package = types.ModuleType("minillm")  # or PyTorch would be loaded
package.__path__ = [{str(Path(metrics.__file__).parents[1])!r}]
from minillm.metrics import macro_f1
truth = ["class %d" % (i % 97) for i in range(1000)]
print(repr(macro_f1(truth, [name if i % 7 and i % 11 else truth[i * i % 1000] for i, name in enumerate(truth)])))"""
    environments = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(3)]
    command = [sys.executable, "-c", code]
    printed = {subprocess.run(command, env=env, capture_output=True, check=True).stdout for env in environments}
    assert len(printed) == 1


def test_f1_of_large_test_sets_is_quick_and_narrow():
    truth = [f"class {i % 1000}" for i in range(10_000)]
    found = macro_f1(truth, truth[:9000] + truth[:1000][::-1])
    assert found.value == pytest.approx(0.9, abs=0.001)
    assert found.high - found.low < 0.02


@pytest.mark.parametrize(
    "measure", [lambda: rate([]), lambda: ratio([], []), lambda: ratio([1], [0]), lambda: macro_f1([], [])]
)
def test_nothing_has_no_rate(measure):
    with pytest.raises(ValueError, match="no examples"):
        measure()


def test_intervals_read_as_percent():
    assert str(Interval(0.3817, 0.3634, 0.401)) == "38.2% [36.3%, 40.1%]"


@pytest.mark.parametrize("n", [8, 30])
def test_nats_of_few_windows_that_are_alike_have_narrow_intervals_that_hold_the_truth(n):
    rng = np.random.default_rng(n)
    truth, held, widths = 2.5, 0, []
    for _ in range(2000):
        tokens = rng.integers(50, 200, n)
        found = nats_per_token(rng.normal(truth, 0.06, n) * tokens, tokens)
        held += found.low <= truth <= found.high
        widths.append(found.high - found.low)
    assert 0.93 <= held / 2000 <= 0.97
    assert np.mean(widths) < 6 * 0.06 / n**0.5


def test_nats_of_next_to_no_texts_say_how_little_is_known():
    found = nats_per_token([250.0], [100])
    assert found.low < 2.5 / 2
    assert found.high > 2.5 * 1.5
    assert nats_per_token([0.0] * 9, [10] * 9).value == 0


def test_other_numbers_are_shown_alike():
    found = Interval(0.2, -0.1, 0.3, ".3f", np.ones(3), 0.5)._replace(low=0.0)
    assert str(found) == "0.200 [0.000, 0.300]"
    assert found.unit == 0.5
    assert len(found.changes) == 3
