"""Edit distance by its definition, intervals by known values and by their coverage."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.metrics import Interval, edit_distance, macro_f1, rate, ratio

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
        (1, 29, 0.0061, 0.1718),
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


def test_ratio_is_of_sums_and_not_of_means():
    assert ratio([1, 0, 3], [1, 4, 5]).value == pytest.approx(0.4)


def test_ratio_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        lengths = rng.integers(1, 10, size=200)
        edits = rng.binomial(lengths, 0.2)
        interval = ratio(edits, lengths, samples=300)
        covered += interval.low <= 0.2 <= interval.high
    assert 88 <= covered <= 99


def test_ratio_interval_is_repeatable_and_shrinks():
    few, many = ([ratio([0, 1, 0, 2] * k, [2, 3, 4, 5] * k) for k in (n, n)] for n in (5, 500))
    assert few[0] == few[1]
    widths = [x.high - x.low for x in (few[0], many[0])]
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.2)
    assert ratio([1, 1], [2, 2]) == (0.5, 0.5, 0.5)


def test_ratio_holds_its_value_even_if_errors_are_rare():
    for edits in ([0] * 50, [0] * 49 + [3], [3] * 50):
        found = ratio(edits, [3] * 50)
        assert found.low <= found.value <= found.high


# ---- F1 ------------------------------------------------------------------------------------------


def test_f1_by_hand():
    #        precision  recall   F1
    # a      2/3        2/2      4/5
    # b      1/1        1/3      1/2
    # c      0/1        0/0      0     never true, but answered once
    assert macro_f1("aabbb", "aabac").value == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    assert macro_f1("ab", "ab") == (1, 1, 1)
    assert macro_f1("ab", "ba") == (0, 0, 0)


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
    found = macro_f1(truth, answers, samples=50)
    assert found.value == pytest.approx(sum(scores) / len(scores))
    assert 0 <= found.low <= found.high <= 1


def test_f1_interval_covers_the_truth():
    """Two classes of 80 and 20 %, told apart nine times in ten: F1 = 2·0.72/(0.8+0.74) and 2·0.18/(0.2+0.26)."""
    truth = (2 * 0.72 / 1.54 + 2 * 0.18 / 0.46) / 2
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        labels = rng.random(300) < 0.2
        answers = labels ^ (rng.random(300) < 0.1)
        interval = macro_f1(labels.tolist(), answers.tolist(), samples=300)
        covered += interval.low <= truth <= interval.high
    assert 180 <= covered <= 198


@pytest.mark.parametrize(
    "measure", [lambda: rate([]), lambda: ratio([], []), lambda: ratio([1], [0]), lambda: macro_f1([], [])]
)
def test_nothing_has_no_rate(measure):
    with pytest.raises(ValueError, match="no examples"):
        measure()


def test_intervals_read_as_percent():
    assert str(Interval(0.3817, 0.3634, 0.401)) == "38.2% [36.3%, 40.1%]"
