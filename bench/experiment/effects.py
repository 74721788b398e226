"""Differences between arms, and how sure we can be of them: over seeds and over examples at once.

    d[s, i]   what arm A did on example i with seed s, less what arm B did: both began at the same start (paired)

Another experiment would have other seeds and other examples. Resampling both with replacement (the two-way bootstrap:
McCullagh 2000; Owen 2007, "The pigeonhole bootstrap") has a variance that is known without drawing:

    variance of the mean over seeds, of the means over examples   +   the same the other way round

Drawn as it is, it is too narrow for few seeds, in two ways that are mended here as for any mean (Efron and Tibshirani
1993, 12.4): variances are divided by n − 1 in place of n, and the interval has Student's width, with the degrees of
freedom that Satterthwaite's formula gives the two sums together, but never less than the seeds alone would have. What
seeds and examples do only jointly is counted twice, so that intervals are rather too wide than too narrow: of made-up
results whose truth is known they held it in 94 to 99 % of cases (tests/sft_vs_rl/test_effects.py).

Where all results are alike, such as all answers right, examples that differ may still be as frequent as Clopper and
Pearson's bound for none of n allows.

Letters: S seeds, n examples.
"""

import math
from collections.abc import Sequence

import numpy as np

from minillm.metrics import Interval
from minillm.metrics.intervals import student

TINY = 1e-18
UNSURE = 0.025  # on either side of an interval


def effect(first: np.ndarray, second: np.ndarray, form: str = ".1%") -> Interval:
    """The mean of (S, n) results less that of others, of the same seeds and examples in the same order."""
    if first.shape != second.shape or first.ndim != 2 or 0 in first.shape:
        raise ValueError(f"no pairs of results: {first.shape} and {second.shape}")
    return mean_of(first - second, form)


def mean_of(values: np.ndarray, form: str = ".1%", strata: Sequence[int] = ()) -> Interval:
    """Of (S, n), with its interval over seeds and examples. One seed says nothing of others: NaN are the bounds.
    `strata`: where examples come from several sets, each drawn by itself, how many from each."""
    S, n = values.shape
    mean = float(values.mean())
    if S < 2 or n < 2:
        return Interval(mean, math.nan, math.nan, form)
    parts = np.split(values.mean(axis=0), np.cumsum(strata or (n,))[:-1])
    by_seed = values.mean(axis=1).var(ddof=1) / S
    by_example = sum(len(part) * part.var(ddof=1) for part in parts) / n**2
    variance = by_seed + by_example
    if variance < TINY:
        half = 1 - UNSURE ** (1 / n) if form.endswith("%") else 0.0
        return Interval(mean, mean - half, mean + half, form)
    freedom = variance**2 / (by_seed**2 / (S - 1) + by_example**2 / (n - 1))
    half = max(student(freedom) * variance**0.5, student(S - 1) * by_seed**0.5)
    return Interval(mean, mean - half, mean + half, form)


def bounded(found: Interval) -> Interval:
    """Of what is measured itself, and no difference: from 0 on, shares up to 1."""
    if not math.isfinite(found.low):
        return found
    most = 1.0 if found.form.endswith("%") else math.inf
    return found._replace(low=max(found.low, 0.0), high=min(found.high, most))


def over_seeds(values: Sequence[float], form: str = ".1%") -> Interval:
    """Of one number a seed."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Interval(float(values.mean()), math.nan, math.nan, form)
    half = student(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return Interval(float(values.mean()), values.mean() - half, values.mean() + half, form)


def is_told(found: Interval) -> bool:
    """Whether the interval tells the difference from none."""
    return math.isfinite(found.low) and not found.low <= 0 <= found.high


def sentence(found: Interval, higher: str, lower: str, nothing: str) -> str:
    """What the interval carries: one of two statements, or that no difference was seen; the numbers behind it. Nothing
    where there is no interval."""
    if not math.isfinite(found.low):
        return ""
    said = (higher if found.value > 0 else lower) if is_told(found) else nothing
    return f"{said[:1].upper()}{said[1:]}: {' '.join(points(found))}."


def points(found: Interval) -> tuple[str, str]:
    """A difference with its sign; of shares in points."""
    is_share = found.form.endswith("%")
    scale, form = (100, "+.1f") if is_share else (1, "+" + found.form)
    value, low, high = (format(scale * number, form).replace("-", "−") for number in found)
    return f"{value} points" if is_share else value, f"[{low}, {high}]"
