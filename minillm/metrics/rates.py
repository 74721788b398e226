"""Shares of successes, errors a unit, and whatever else is a function of sums over examples."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from minillm.metrics.intervals import Interval, bias_and_variance, estimated, student

FEW = 8  # texts


def edit_distance(first: Sequence, second: Sequence) -> int:
    """The fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def rate(successes: Sequence[bool]) -> Interval:
    """Share of successes."""
    right = np.asarray(successes, dtype=np.float64)
    n = len(right)
    if n == 0:
        raise ValueError("a rate of nothing is undefined: no examples")
    p = float(right.sum()) / n
    changes = (p - right) / (n * max(1, n - 1)) ** 0.5  # so that the variance is that of Wilson's, p (1 − p) / n
    return estimated(p, changes, unit=1 / n)


def ratio(
    numerators: Sequence[float], denominators: Sequence[float], ceiling: float = math.inf, form: str = ".1%"
) -> Interval:
    """Σ numerators / Σ denominators over examples, as of edits and lengths; it may exceed 1, unless the ceiling is 1.

    Its variance is that of the examples' residuals (Cochran 1977, Sampling Techniques, 6.4)."""
    errors, sizes = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    n, total = len(errors), sizes.sum()
    if n == 0 or total <= 0:
        raise ValueError("a ratio of nothing is undefined: no examples, or all of them empty")
    value = float(errors.sum() / total)
    changes = (value * sizes - errors) / total * n / max(1, n - 1)
    unit = one_more(errors, sizes) if ceiling > 1 else min(one_more(errors, sizes), one_more(sizes - errors, sizes))
    return estimated(value, changes, unit, ceiling, form)


def one_more(errors: np.ndarray, sizes: np.ndarray) -> float:
    """What one more wrong example would change: it has as many errors as those that were seen, and one of mean size
    that is all wrong."""
    total = sizes.sum()
    return float((errors.sum() + total / len(sizes)) / (np.count_nonzero(errors) + 1) / total)


def mean(values: Sequence[float]) -> Interval:
    """Of values from 0 to 1, one an example."""
    return ratio(values, np.ones(len(values)), ceiling=1.0)


def pass_at(k: int, right: int, drawn: int) -> float:
    """The chance that k answers hold a right one, where so many of those that were drawn are right: unbiased, as the
    share of all ways to take k of them that do (Chen et al. 2021, arXiv:2107.03374). ValueError for k > drawn."""
    if not 0 < k <= drawn or not 0 <= right <= drawn:
        raise ValueError(f"no {k} of {drawn} answers can be taken, of which {right} are right")
    return 1 - math.comb(drawn - right, k) / math.comb(drawn, k)


def of_sums(rows: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """A metric from 0 to 1 that is a function of sums over the examples: of (…, S) sums → (…) values.

    rows: (n, S), what each example adds to the sums. ValueError where there are none."""
    n = len(rows)
    if n == 0:
        raise ValueError("a metric of nothing is undefined: no examples")
    sums = rows.sum(axis=0)
    value = float(function(sums))
    changes = function(sums - rows) - value if n > 1 else np.zeros(1)
    scarce = min(value, 1 - value)  # as of the mean of n values, none of them 0
    return estimated(value, changes, unit=(n * scarce + 1) / (n + 1) / n)


def nats_per_token(nats: Sequence[float], tokens: Sequence[float]) -> Interval:
    """Σ nats / Σ tokens: of texts or windows of a text, by the −log p of each and its number of tokens.

    As a `ratio`, but no text has next to no nats, so that none must be feared to be missing: what is not known but from
    the examples is the variance, for which the interval has Student's width. It is made of the logarithm, above 0. Of
    fewer than FEW texts next to nothing is known of the variance, and the interval is that of a ratio."""
    found = ratio(nats, tokens, form=".3f")
    if len(found.changes) < FEW or not found.value > 0:
        return found
    _, variance = bias_and_variance(found.changes)
    factor = math.exp(student(len(found.changes) - 1) * variance**0.5 / found.value)
    return Interval(found.value, found.value / factor, found.value * factor, found.form, found.changes)


def perplexity(nats: Sequence[float], tokens: Sequence[int]) -> Interval:
    """exp(Σ nats / Σ tokens)."""
    return nats_per_token(nats, tokens).through(np.exp, ".2f")


def bits_per_character(nats: Sequence[float], characters: Sequence[float]) -> Interval:
    """Σ nats / ln 2 / Σ characters: what vocabularies can be compared by."""
    return nats_per_token(np.asarray(nats) / math.log(2), characters)
