"""How sure we can be of a measured value: intervals, and whether two models differ.

What is known of a metric is by how much each example moves it: its `changes`, the jackknife's, as the example is left
out (Quenouille 1956, Tukey 1958). Their spread is the variance of the value, and the spread of two models' changes on
the same examples that of their difference.

All intervals of values between bounds are made in one way, Wilson's: they hold the values that are at most 1.96
standard errors from what was measured, the error being that at the held value and not at the measured one. So they stay
sensible where nothing or everything is right, and are skewed as they should be. For a rate this is Wilson's interval
(1927) itself; for other metrics the examples count as so many as would give a rate the variance that was found (the
effective sample size of survey statistics: Korn and Graubard 1998). Under five successes or failures the bound that
they set is nearly the exact one.

Each example counts as drawn by itself. Copies that somebody made of it are not: they make intervals too narrow, and
tasks/files.py says how many there are.

How it was checked: `bench/intervals.py` simulates over a thousand kinds of data; its results stand in bench/results.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Z = 1.959964  # of the normal distribution 95 % lie within ± Z
# Macro-F1 of few examples a class is too low on average. By how much, the jackknife estimates well where a test set was
# drawn at large, but several times too high where so many examples of each class were chosen for it. A file doesn't
# say which it is; with this share of the estimate, intervals hold the truth either way.
SHARE_OF_BIAS = 0.6


class Bounds(NamedTuple):
    value: float
    low: float
    high: float


class Interval(Bounds):
    """A measured value and its 95 % confidence interval.

    form      how its numbers are shown
    changes   (n,) by how much the value changes as each of the n examples is left out; None where nobody knows
    unit      what a single success or error would change
    """

    form: str = ".1%"
    changes: np.ndarray | None = None
    unit: float = 0.0

    def __new__(
        cls,
        value: float,
        low: float,
        high: float,
        form: str = ".1%",
        changes: np.ndarray | None = None,
        unit: float = 0.0,
    ) -> "Interval":
        self = super().__new__(cls, float(value), float(low), float(high))
        self.form, self.changes, self.unit = form, changes, float(unit)
        return self

    def _replace(self, **given: float) -> "Interval":
        """With other numbers; a named tuple's own would forget the form."""
        numbers = {"value": self.value, "low": self.low, "high": self.high, **given}
        return Interval(**numbers, form=self.form, changes=self.changes, unit=self.unit)

    def __str__(self) -> str:
        return " ".join(self.words())

    def words(self) -> tuple[str, str]:
        """The value, and the interval in brackets."""
        value, low, high = (format(number, self.form) for number in self)
        return value, f"[{low}, {high}]"

    def turned(self) -> "Interval":
        """Of the value with the other sign, such as a difference the other way round."""
        changes = None if self.changes is None else -self.changes
        return Interval(-self.value, -self.high, -self.low, self.form, changes, self.unit)

    def through(self, function: Callable, form: str) -> "Interval":
        """Of a rising function of the value, such as exp."""
        changes = None if self.changes is None else function(self.value + self.changes) - function(self.value)
        return Interval(*map(function, self), form, changes, function(self.value + self.unit) - function(self.value))


def estimated(value: float, changes: np.ndarray, unit: float, ceiling: float = 1.0, form: str = ".1%") -> Interval:
    """The interval of a value between 0 and `ceiling`; `changes` and `unit` as an Interval has them."""
    bias, variance = bias_and_variance(changes)
    return Interval(*around(value, value - SHARE_OF_BIAS * bias, variance, unit, ceiling), form, changes, unit)


def bias_and_variance(changes: np.ndarray) -> tuple[float, float]:
    n = len(changes)
    return (n - 1) * float(changes.mean()), (n - 1) * float(changes.var())


def difference(first: Interval, second: Interval) -> Interval:
    """By how much the first value is higher than the second, which was measured on the same examples.

    As if there were one more example on which they differ to either side (of rates nearly the interval of Bonett and
    Price 2012): where two models agree on a few examples, they may still differ elsewhere. So it is wide under a
    hundred examples. ValueError where either has no `changes`, or another number of examples.
    """
    if first.changes is None or second.changes is None or len(first.changes) != len(second.changes):
        raise ValueError("a difference needs two values of the same metric on the same examples")
    changes, unit = first.changes - second.changes, max(first.unit, second.unit)
    # Such an example moves the difference by as much as those do that most of the variance comes from.
    square = np.square(changes).sum() + unit**2
    one_more = (abs(changes**3).sum() + unit**3) / square if square else 0.0  # of means that are the same everywhere
    bias, variance = bias_and_variance(changes)
    value = first.value - second.value
    centre, half = value - SHARE_OF_BIAS * bias, student(len(changes) - 1) * (variance + 2 * one_more**2) ** 0.5
    return Interval(value, min(value, centre - half), max(value, centre + half), first.form, changes, one_more)


# Quantiles of Student's distribution, 97.5 %, for 1 … 10 degrees of freedom; beyond, its expansion is exact to 0.1 %.
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def student(freedom: float) -> float:
    """What Z is where the variance is known from a few examples only, by its degrees of freedom; between whole ones, on
    a line."""
    if freedom >= len(QUANTILES):
        g1, g2 = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
        return Z + g1 / freedom + g2 / freedom**2
    low = max(1, int(freedom))
    part = min(1.0, max(0.0, freedom - low))
    return QUANTILES[low - 1] + part * (QUANTILES[low] - QUANTILES[low - 1])


def around(value: float, centre: float, variance: float, unit: float, ceiling: float = 1.0) -> Bounds:
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
    return Bounds(float(value), float(max(0.0, min(low, value))), float(min(ceiling, max(high, value))))


def fewest(count: float) -> float:
    """The smallest expected count of which a count under five is likely (Byar's approximation of Poisson's bound).

    Wilson's is too high there: where a success is rare, it holds the truth in as little as 84 % of cases (Brown, Cai
    and DasGupta 2001)."""
    if count > 5 - 1e-9:  # five, whatever way it was rounded
        return math.inf
    return count * max(0.0, 1 - 1 / (9 * count) - Z / (3 * count**0.5)) ** 3 if count > 0 else 0.0
