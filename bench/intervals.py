"""Do the 95 % intervals of minillm/metrics.py hold the true value in 95 % of cases? Simulated over kinds of data.

python bench/intervals.py            # some minutes on one core; writes bench/results/intervals.json
python bench/intervals.py --quick    # seconds, and nothing is written

The truth is that of the population that the examples are drawn from: of macro-F1, that of its confusion matrix. Kinds
of data in which it seems to be held in under 93.5 % of cases are drawn again: of many, the lowest are low by chance.
"""

import argparse
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, product
from pathlib import Path

import harness  # noqa: F401, first: puts the repository root on the path
import interval_data
import numpy as np

from minillm.metrics import Interval, rate, ratio
from minillm.metrics.classes import macro_f1_of

OUT = Path(__file__).resolve().parent / "results" / "intervals.json"
SIZES = (20, 50, 100, 500, 1000, 10_000)  # examples
CLASSES = (2, 5, 20, 100)
ACCURACIES = (0.3, 0.5, 0.7, 0.9, 0.97)
ERROR_RATES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6)
FEWEST = 5  # examples of a class
MOST_OTHER = 1000  # examples of correlations, whose time is that of their square, and of what is beside them
REPEATS, MORE_REPEATS, LOW = 200, 2000, 0.935

Draw = Callable[[np.random.Generator], tuple[Interval, float]]  # a data set's interval, and the truth


@dataclass
class Row:
    metric: str
    examples: int
    kind: str
    rate: float  # of the population: accuracy, of ratios errors a unit
    coverage: float = math.nan
    again: float | None = None  # drawn anew and more often, where the first draws held the truth seldom


# ---- accuracy: no simulation is needed ---------------------------------------------------------------------


def exact_rows(sizes: Iterable[int]) -> Iterator[Row]:
    """Coverage of `rate` summed over all outcomes, at even rates and at those where little is ever seen."""
    for n in sizes:
        intervals = [rate(np.arange(n) < right) for right in range(n + 1)]
        _, lows, highs = np.array(intervals).T
        rare = np.geomspace(0.01, 10, 200) / n
        for kind, rates in (("even rates", np.linspace(0.005, 0.995, 199)), ("rare", rare), ("rare", 1 - rare)):
            for p in rates:
                coverage = binomial(n, p)[(lows <= p) & (p <= highs)].sum()
                yield Row("rate", n, kind, float(p), float(coverage))


def binomial(n: int, p: float) -> np.ndarray:
    """Probabilities of 0, 1, …, n successes."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])  # of factorials
    right = np.arange(n + 1)
    return np.exp(logs[n] - logs - logs[::-1] + right * math.log(p) + (n - right) * math.log1p(-p))


# ---- ratios: the edits of words ----------------------------------------------------------------------------

EDITS = {"each phone alike": None, "one phone a wrong word": 0.0, "a fifth of a wrong word": 0.2, "half of it": 0.5}


def ratio_cells(sizes: Iterable[int]) -> Iterator[tuple[Row, Draw]]:
    for n, (kind, spoiled), p in product(sizes, EDITS.items(), ERROR_RATES):
        if 12 * wrong_words(p, spoiled or 0.0) <= 1 or spoiled is None:
            yield (
                Row("ratio", n, kind, p),
                lambda rng, n=n, p=p, spoiled=spoiled: (ratio(*words(rng, n, p, spoiled)), p),
            )


def words(rng: np.random.Generator, n: int, p: float, spoiled: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Edits and lengths of words of 3 to 12 phones. Longer words are wrong more often, and then in one phone and a
    share of the others; or phones are wrong one by one."""
    lengths = rng.integers(3, 13, size=n)
    if spoiled is None:
        return rng.binomial(lengths, p), lengths
    wrong = rng.random(n) < lengths * wrong_words(p, spoiled)
    return wrong * (1 + rng.binomial(lengths - 1, spoiled)), lengths


def wrong_words(p: float, spoiled: float) -> float:
    """How likely a word is wrong for each of its phones, so that p edits a phone are expected."""
    lengths = np.arange(3, 13)
    return p * lengths.sum() / (lengths * (1 + (lengths - 1) * spoiled)).sum()


# ---- macro-F1: confusion matrices --------------------------------------------------------------------------

PRIORS = ("even classes", "few large classes")
MIXUPS = ("mixed up evenly", "some classes harder", "with the first class", "with a neighbour")
DESIGNS = ("classes drawn", "classes as chosen")


def f1_cells(sizes: Iterable[int], classes: Iterable[int]) -> Iterator[tuple[Row, Draw]]:
    for n, k, prior, mixup, design, p in product(sizes, classes, PRIORS, MIXUPS, DESIGNS, ACCURACIES):
        if n < FEWEST * k or p <= 1 / k or (prior == PRIORS[1] and n == FEWEST * k):
            continue
        kind = f"{k} classes, {prior}, {mixup}, {design}"
        yield (
            Row("macro-F1", n, kind, p),
            lambda rng, a=(n, k, prior, mixup, p), d=design: classified(rng, *a, design=d),
        )


def classified(
    rng: np.random.Generator, n: int, k: int, prior: str, mixup: str, accuracy: float, design: str
) -> tuple[Interval, float]:
    cells = population(rng, n, k, prior, mixup, accuracy)
    if design == DESIGNS[0]:
        counts = rng.multinomial(n, cells.ravel())
    else:
        sizes = np.round(cells.sum(axis=1) * n).astype(int)
        counts = np.stack([rng.multinomial(size, row / row.sum()) for size, row in zip(sizes, cells, strict=True)])
    truth, answers = np.divmod(np.repeat(np.arange(k * k), counts.ravel()), k)
    occurs = np.bincount(np.concatenate([truth, answers]), minlength=k) > 0
    numbers = np.cumsum(occurs) - 1  # of those that occur
    of_population = 2 * np.diagonal(cells) / (cells.sum(axis=0) + cells.sum(axis=1))
    return macro_f1_of(numbers[truth], numbers[answers]), float(of_population.mean())


def population(rng: np.random.Generator, n: int, k: int, prior: str, mixup: str, accuracy: float) -> np.ndarray:
    """(k, k) probabilities of true class and answer."""
    sizes = np.ones(k) if prior == PRIORS[0] else 1 / np.arange(1, k + 1)
    sizes = FEWEST / n + (1 - k * FEWEST / n) * sizes / sizes.sum()
    right, errors = np.full(k, accuracy), np.ones((k, k))
    if mixup == "some classes harder":
        right = 1 - np.minimum((1 - accuracy) * rng.exponential(size=k), 0.95)
        errors = rng.gamma(0.3, size=(k, k)) + 1e-9
    elif mixup == "with the first class":
        errors[:, 1:] = 0.1 / k
    elif mixup == "with a neighbour":
        errors = np.roll(np.eye(k), 1, axis=1)
    np.fill_diagonal(errors, 0)
    errors *= ((1 - right) / errors.sum(axis=1))[:, None]
    return sizes[:, None] * (errors + np.diag(right))


# ---- other metrics: data of known truth --------------------------------------------------------------------


def other_cells(sizes: Iterable[int]) -> Iterator[tuple[Row, Draw]]:
    for n in sizes:
        if n <= MOST_OTHER:
            yield from ((Row(metric, n, kind, p), draw) for metric, kind, p, draw in interval_data.cells(n))


# ---- all of it ---------------------------------------------------------------------------------------------


def simulated(cells: Iterable[tuple[Row, Draw]], repeats: int, more_repeats: int) -> Iterator[Row]:
    for row, draw in cells:
        row.coverage = coverage(row, draw, repeats, salt=0)
        if row.coverage < LOW:
            row.again = coverage(row, draw, more_repeats, salt=1)
        yield row


def coverage(row: Row, draw: Draw, repeats: int, salt: int) -> float:
    """How often the interval holds the truth; draws depend on the kind of data alone."""
    rng = np.random.default_rng([salt, row.examples, round(row.rate * 1000), zlib.crc32(row.kind.encode())])
    drawn = (draw(rng) for _ in range(repeats))
    return sum(interval.low <= truth <= interval.high for interval, truth in drawn) / repeats


def group(row: Row) -> tuple[str, int, str]:
    """The lines of the table: of macro-F1, one for each number of classes; else one for each kind."""
    return row.metric, row.examples, row.kind.partition(",")[0]


def table(rows: Iterable[Row]) -> list[str]:
    lines = ["| metric | examples | data | kinds × rates | mean | lowest |", "| --- | --- | --- | --- | --- | --- |"]
    for (metric, n, kind), members in groupby(sorted(rows, key=group), key=group):
        members = list(members)
        mean, lowest = np.mean([row.coverage for row in members]), min(map(checked, members))
        lines.append(f"| {metric} | {n:,} | {kind} | {len(members)} | {mean:.1%} | {lowest:.1%} |")
    return lines


def checked(row: Row) -> float:
    return row.coverage if row.again is None else row.again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few sizes and repeats, to see that it runs")
    quick = parser.parse_args().quick
    sizes, classes, repeats, more = ((20, 50), (2, 4), 20, 20) if quick else (SIZES, CLASSES, REPEATS, MORE_REPEATS)
    cells = [*ratio_cells(sizes), *f1_cells(sizes, classes), *other_cells(sizes)]
    rows = [*exact_rows(sizes), *simulated(cells, repeats, more)]
    lines = table(rows)
    print(*lines, sep="\n")
    if not quick:
        lowest = [asdict(row) for row in sorted(rows, key=checked)[:50]]
        OUT.write_text(json.dumps({"table": lines, "lowest": lowest}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
