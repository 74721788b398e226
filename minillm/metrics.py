"""How good answers are, and how sure we can be of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A measured value between 0 and 1 and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}]"


def edit_distance(first: Sequence, second: Sequence) -> int:
    """The fewest insertions, deletions and substitutions that turn one into the other (Levenshtein 1966)."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def rate(successes: Sequence[bool]) -> Interval:
    """Share of successes with Wilson's interval (1927), which stays sensible at 0 and 1."""
    n, z = len(successes), 1.959964
    if n == 0:
        raise ValueError("a rate of nothing is undefined: no examples")
    p = sum(successes) / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    # Rounding must not put the bounds on the wrong side of the value.
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def ratio(numerators: Sequence[float], denominators: Sequence[float], samples: int = 1000) -> Interval:
    """Σ numerators / Σ denominators over examples, with a bootstrap interval (Efron 1979; fixed seed)."""
    pairs = np.array([numerators, denominators], dtype=np.float64)  # (2, examples)
    n = pairs.shape[1]
    if n == 0 or pairs[1].sum() <= 0:
        raise ValueError("a ratio of nothing is undefined: no examples, or all of them empty")
    rng = np.random.default_rng(0)
    resampled = np.stack([pairs[:, rng.integers(n, size=n)].sum(axis=1) for _ in range(samples)])
    low, high = np.quantile(resampled[:, 0] / np.maximum(resampled[:, 1], 1), (0.025, 0.975))
    return Interval(float(pairs[0].sum() / pairs[1].sum()), float(low), float(high))


def macro_f1(truth: Sequence[str], answers: Sequence[str], samples: int = 1000) -> Interval:
    """The mean over classes of F1 = 2·hits / (examples of the class + answers of the class), each class counting
    alike however rare, with a bootstrap interval (fixed seed). Classes are those that occur in either sequence."""
    if not truth:
        raise ValueError("F1 of nothing is undefined: no examples")
    classes = {name: i for i, name in enumerate(sorted({*truth, *answers}))}
    confusion = np.zeros((len(classes), len(classes)))  # [true class, answer]
    np.add.at(confusion, ([classes[t] for t in truth], [classes[a] for a in answers]), 1)
    n = len(truth)
    # To draw n examples with replacement is to draw how many of them fall into each cell.
    drawn = np.random.default_rng(0).multinomial(n, confusion.ravel() / n, size=samples)
    low, high = np.quantile(mean_f1(drawn.reshape(-1, *confusion.shape)), (0.025, 0.975))
    return Interval(float(mean_f1(confusion)), float(low), float(high))


def mean_f1(confusion: np.ndarray) -> np.ndarray:
    """(..., K, K) counts of true class and answer → (...): the mean over the classes that occur."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)  # (..., K)
    total = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    return (2 * hits / np.maximum(total, 1)).sum(axis=-1) / (total > 0).sum(axis=-1)
