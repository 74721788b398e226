"""How good answers are, and how sure we can be of it.

All intervals are made in one way, Wilson's: they hold the values that are at most 1.96 standard errors from what was
measured, the error being that at the held value and not at the measured one. So they stay sensible where nothing or
everything is right, and are skewed as they should be. For a rate this is Wilson's interval (1927) itself; for other
metrics the examples count as so many as would give a rate the variance that was found (the effective sample size of
survey statistics: Korn and Graubard 1998). Under five successes or failures the bound that they set is nearly the
exact one.

How it was checked: `bench/intervals.py` simulates 1,300 kinds of data; its results stand in bench/results.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959964  # of the normal distribution 95 % lie within ± Z
# Macro-F1 of few examples a class is too low on average. By how much, the jackknife estimates well where a test set was
# drawn at large, but several times too high where so many examples of each class were chosen for it. A file doesn't
# say which it is; with this share of the estimate, intervals hold the truth either way.
SHARE_OF_BIAS = 0.6


class Interval(NamedTuple):
    """A measured value, 0 or more, and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


class Amount(Interval):
    """Of what is no share, such as a margin; it may be negative."""

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


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
    n = len(successes)
    if n == 0:
        raise ValueError("a rate of nothing is undefined: no examples")
    p = sum(successes) / n
    return around(p, p, variance=p * (1 - p) / n, unit=1 / n)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Interval:
    """Σ numerators / Σ denominators over examples, as of edits and lengths; it may exceed 1.

    Its variance is that of the examples' residuals (Cochran 1977, Sampling Techniques, 6.4)."""
    errors, sizes = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    n, total = len(errors), sizes.sum()
    if n == 0 or total <= 0:
        raise ValueError("a ratio of nothing is undefined: no examples, or all of them empty")
    value = errors.sum() / total
    variance = np.square(errors - value * sizes).sum() / total**2 * n / max(1, n - 1)
    # One more wrong example has as many errors as those that were seen, and one of mean size that is all wrong.
    unit = (errors.sum() + total / n) / (np.count_nonzero(errors) + 1) / total
    return around(value, value, variance, unit, ceiling=math.inf)


def mean(values: Sequence[float]) -> Amount:
    """The mean of numbers of any kind, with Student's interval widened to the normal one's 1.96 at large."""
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        raise ValueError("a mean of nothing is undefined: no examples")
    half = Z * numbers.std() / max(1, len(numbers) - 1) ** 0.5
    return Amount(*(float(numbers.mean() + sign * half) for sign in (0, -1, 1)))


def macro_f1(truth: Sequence[str], answers: Sequence[str]) -> Interval:
    """The mean over classes of F1 = 2·hits / (examples of the class + answers of the class), each class counting
    alike however rare. Classes are those that occur in either sequence."""
    if not truth:
        raise ValueError("F1 of nothing is undefined: no examples")
    classes = {name: i for i, name in enumerate(sorted({*truth, *answers}))}
    return macro_f1_of(np.array([classes[name] for name in truth]), np.array([classes[name] for name in answers]))


def macro_f1_of(truth: np.ndarray, answers: np.ndarray) -> Interval:
    """The same of (examples,) classes as numbers from 0 on, each of which occurs.

    Bias and variance are the jackknife's (Quenouille 1956, Tukey 1958): how the value changes as an example is left
    out. Bootstrap percentiles, the usual way, hold the truth in as little as a third of all cases where classes are
    many and small: each resampling adds the bias once more."""
    n, right = len(truth), truth == answers
    total = np.bincount(np.concatenate([truth, answers]))  # (K,)
    hits = np.bincount(truth[right], minlength=len(total))
    f1 = 2 * hits / total
    less_a_hit = 2 * (hits - 1) / np.maximum(total - 2, 1) - f1
    less_an_error = 2 * hits / np.maximum(total - 1, 1) - f1
    change = np.where(right, less_a_hit[truth], less_an_error[truth] + less_an_error[answers]) / len(total)
    bias, variance = (n - 1) * change.mean(), (n - 1) * change.var()
    unit = 2 * (1 / total).mean() / len(total)  # what an error costs of two classes that are right otherwise
    return around(f1.mean(), f1.mean() - SHARE_OF_BIAS * bias, variance, unit)


def around(value: float, centre: float, variance: float, unit: float, ceiling: float = 1.0) -> Interval:
    """The interval of a value between 0 and `ceiling`. `centre` is the value without its bias, `variance` that of the
    centre, `unit` what a single success or error would change: the smaller the counts, the less of their variance was
    seen, so that one more error is added to it."""
    centre = min(max(0.0, centre), ceiling)
    room = centre * (1 - centre / ceiling)
    spread = (variance + unit * unit) / (room + unit)  # of a rate 1 / n: (p (1 − p) / n + 1 / n²) / (p (1 − p) + 1 / n)
    middle, half = centre + Z * Z * spread / 2, Z * (spread * room + (Z * spread / 2) ** 2) ** 0.5
    low, high = (bound / (1 + Z * Z * spread / ceiling) for bound in (middle - half, middle + half))
    low = min(low, spread * fewest(centre / spread))
    if ceiling == 1.0:
        high = max(high, 1 - spread * fewest((1 - centre) / spread))
    return Interval(float(value), float(max(0.0, min(low, value))), float(min(ceiling, max(high, value))))


def fewest(count: float) -> float:
    """The smallest expected count of which a count under five is likely (Byar's approximation of Poisson's bound).

    Wilson's is too high there: where a success is rare, it holds the truth in as little as 84 % of cases (Brown, Cai
    and DasGupta 2001)."""
    if count >= 5:
        return math.inf
    return count * max(0.0, 1 - 1 / (9 * count) - Z / (3 * count**0.5)) ** 3 if count > 0 else 0.0
