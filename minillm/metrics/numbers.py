"""Of answers that are numbers: how they go with the true ones, and how far off they are."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from minillm.metrics.intervals import Interval, Z, bias_and_variance, student

MOST = 1 - 1e-12  # of a correlation that has a Fisher z
CHUNK = 2**22  # numbers in memory at once


def pearson(truth: Sequence[float], answers: Sequence[float]) -> Interval:
    """The correlation; 0, of [−1, 1], where either is the same for all examples."""
    x, y = (standard(np.asarray(each, dtype=np.float64)) for each in (truth, answers))
    rows = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)
    sums = rows.sum(axis=0)
    return correlation(of_moments(sums), of_moments(sums - rows))


def spearman(truth: Sequence[float], answers: Sequence[float]) -> Interval:
    """The correlation of ranks, equal values having the mean of theirs."""
    x, y = (ranks(np.asarray(each, dtype=np.float64)) for each in (truth, answers))
    rows = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)
    return correlation(of_moments(rows.sum(axis=0)), without_each(x, y))


def correlation(value: float, left_out: np.ndarray) -> Interval:
    """By Fisher's z = artanh r, on which intervals are even, with the error that the jackknife finds: the usual
    1 / √(n − 3) is right for normal distributions alone. `left_out` (n,): the value without each example."""
    n = len(left_out)
    changes = left_out - value
    if n < 4 or not np.isfinite(left_out).all() or math.isnan(value):
        return Interval(0 if math.isnan(value) else value, -1, 1, ".3f", np.nan_to_num(changes), 1 / n)
    z, of_each = (np.arctanh(np.clip(each, -MOST, MOST)) for each in (value, left_out))
    _, variance = bias_and_variance(of_each - z)
    half = Z * (variance + 1 / n**2) ** 0.5
    low, high = min(value, math.tanh(z - half)), max(value, math.tanh(z + half))
    return Interval(value, low, high, ".3f", changes, 1 / n)


def of_moments(sums: np.ndarray) -> np.ndarray:
    """(…, 6) sums of 1, x, y, x², y², xy → (…) correlations; NaN where x or y is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.clip((n * xy - x * y) / np.sqrt((n * xx - x * x) * (n * yy - y * y)), -1, 1)


def standard(x: np.ndarray) -> np.ndarray:
    """Of mean 0 and deviation 1, which sums of squares keep their digits in; all 0 where they are all the same."""
    return (x - x.mean()) / (x.std() if np.ptp(x) else 1.0)


def ranks(x: np.ndarray) -> np.ndarray:
    """From 0 on."""
    _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[which]


def without_each(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) correlations of the ranks of all examples but one, in which those above it have moved down."""
    n = len(x)
    found = []
    for part in np.array_split(np.arange(n), max(1, n * n // CHUNK)):
        a, b = (each - (each > each[part, None]) - (each == each[part, None]) / 2 for each in (x, y))
        a, b = a - (n - 2) / 2, b - (n - 2) / 2
        a[np.arange(len(part)), part] = b[np.arange(len(part)), part] = 0
        with np.errstate(invalid="ignore", divide="ignore"):
            found.append((a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))
    return np.concatenate(found)


def average(values: Sequence[float]) -> Interval:
    """The mean of numbers of any size and sign, with Student's interval."""
    x = np.asarray(values, dtype=np.float64)
    n = len(x)
    if n == 0:
        raise ValueError("a mean of nothing is undefined: no examples")
    value, changes = float(x.mean()), (x.mean() - x) / max(1, n - 1)
    half = student(n - 1) * bias_and_variance(changes)[1] ** 0.5 if n > 1 else math.inf
    return Interval(value, value - half, value + half, ".3g", changes)


def mean_squared_error(truth: Sequence[float], answers: Sequence[float]) -> Interval:
    errors = np.square(np.asarray(truth, dtype=np.float64) - np.asarray(answers, dtype=np.float64))
    return positive(np.stack([errors, np.ones_like(errors)], axis=-1), lambda sums: sums[..., 0] / sums[..., 1], ".4g")


def unexplained(truth: Sequence[float], answers: Sequence[float]) -> Interval:
    """The squared error's share of the variance, 1 − R²: 0 of right answers, 1 of always answering the mean of these
    true values, more of worse. ValueError where they are all the same."""
    x = np.asarray(truth, dtype=np.float64)
    if not len(x) or not np.ptp(x):
        raise ValueError("a share of no variance is undefined: all true values are the same")
    errors, x = np.square(x - np.asarray(answers, dtype=np.float64)), x - x.mean()
    rows = np.stack([errors, np.ones_like(x), x, x * x], axis=-1)
    return positive(rows, lambda s: s[..., 0] / (s[..., 3] - s[..., 2] ** 2 / s[..., 1]), ".1%")


def positive(rows: np.ndarray, function: Callable[[np.ndarray], np.ndarray], form: str) -> Interval:
    """A function of the sums of (n, S) rows that has no bounds but 0: the interval is even in its logarithm."""
    n, sums = len(rows), rows.sum(axis=0)
    if n == 0:
        raise ValueError("an error of nothing is undefined: no examples")
    value = float(function(sums))
    if n < 3 or value == 0:
        return Interval(value, 0, math.inf if n < 3 else value, form, np.zeros(n))
    with np.errstate(invalid="ignore", divide="ignore"):
        left_out = np.nan_to_num(function(sums - rows), nan=value)
    _, variance = bias_and_variance(np.log(np.maximum(left_out, value / n)) - math.log(value))
    factor = math.exp(student(n - 1) * variance**0.5)
    return Interval(value, value / factor, value * factor, form, left_out - value)
