"""Kinds of data for `bench/intervals.py` whose truth is known, by a formula or from all there is: a draw is an interval
and the truth."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from minillm.metrics import Interval, calibration_error, difference, mean, pearson, rate, ratio, spearman, texts

SENTENCES = 2000  # that there are; drawn with replacement
Draw = Callable[[np.random.Generator], tuple[Interval, float]]
Cell = tuple[str, str, float, Draw]  # metric, kind, rate


def cells(n: int) -> Iterator[Cell]:
    for kind in (entities, rouge, correlations, probabilities, two_models, two_translators):
        yield from kind(n)


def entities(n: int) -> Iterator[Cell]:
    """Sentences of none to four entities. All of them are found, or each by chance; and some that are none."""

    def draw(rng: np.random.Generator, recall: float, spurious: float) -> tuple[Interval, float]:
        true = rng.integers(0, 5, n)
        hits = np.where(rng.random(n) < recall / 2, true, rng.binomial(true, recall / (2 - recall)))
        found = hits + rng.binomial(4, spurious, n)
        return ratio(2 * hits, true + found, ceiling=1.0), 4 * recall / (2 + 2 * recall + 4 * spurious)

    for recall, spurious in ((0.2, 0.3), (0.5, 0.1), (0.7, 0.1), (0.9, 0.02), (0.97, 0.0)):
        yield "entity F1", "sentences", recall, bound(draw, recall, spurious)


def rouge(n: int) -> Iterator[Cell]:
    """Scores of answers from 0 to 1, a share of them 0."""

    def draw(rng: np.random.Generator, a: float, b: float, none: float) -> tuple[Interval, float]:
        return mean(rng.beta(a, b, n) * (rng.random(n) >= none)), (1 - none) * a / (a + b)

    for a, b, none in ((2, 6, 0.0), (0.5, 3, 0.3), (8, 1, 0.0), (0.3, 0.3, 0.0)):
        yield "mean", f"scores, beta({a}, {b}), {none:.0%} of them 0", (1 - none) * a / (a + b), bound(draw, a, b, none)


def correlations(n: int) -> Iterator[Cell]:
    """Of a normal distribution; or the first number is then cut to 0 or 1."""

    def draw(rng: np.random.Generator, measure: Callable, r: float, is_cut: bool, truth: float):
        x, y = rng.standard_normal((2, n))
        return measure((x > 0).astype(float) if is_cut else x, r * x + (1 - r * r) ** 0.5 * y), truth

    for r in (0.0, 0.3, 0.6, 0.9, 0.97):
        yield "Pearson", "normal", r, bound(draw, pearson, r, False, r)
        yield "Pearson", "one is 0 or 1", r, bound(draw, pearson, r, True, r * (2 / math.pi) ** 0.5)
        yield "Spearman", "normal", r, bound(draw, spearman, r, False, 6 / math.pi * math.asin(r / 2))


def probabilities(n: int) -> Iterator[Cell]:
    """Answers that are right less often than they say: of what is said over a half, a share is missing."""

    def draw(rng: np.random.Generator, missing: float) -> tuple[Interval, float]:
        said = 0.5 + 0.5 * rng.beta(3, 1.2, n)
        return calibration_error(said, rng.random(n) < said - missing * (said - 0.5)), missing * 0.5 * 3 / 4.2

    for missing in (0.0, 0.1, 0.3, 0.8):
        yield "calibration error", "too sure", missing, bound(draw, missing)


def two_models(n: int) -> Iterator[Cell]:
    """What is hard for one is hard for the other."""

    def rates(rng: np.random.Generator, first: float, gap: float, alone: float) -> tuple[Interval, float]:
        hard, flipped = rng.random(n), rng.random(n) < alone
        second = first - gap
        truth = first - (second * (1 - alone) + (1 - second) * alone)
        return difference(rate(hard < first), rate((hard < second) ^ flipped)), truth

    def means(rng: np.random.Generator) -> tuple[Interval, float]:
        easy = rng.beta(2, 1, n)
        return difference(mean(easy), mean(easy * rng.beta(8.5, 1.5, n))), 0.1

    for first, gap, alone in ((0.9, 0.0, 0.1), (0.8, 0.1, 0.02), (0.97, 0.02, 0.0), (0.6, 0.05, 0.2)):
        yield "difference", "of rates", first, bound(rates, first, gap, alone)
    yield "difference", "of means", 2 / 3, means


def two_translators(n: int) -> Iterator[Cell]:
    """BLEU of sentences, hard ones among them, in which words are left out, put in and replaced; and by how much more
    that happens to one translator than to another."""
    metric, first, second = translations()
    truths = [texts.of_statistics(metric, rows).value for rows in (first, second)]

    def draw(rng: np.random.Generator, compared: bool) -> tuple[Interval, float]:
        chosen = rng.integers(0, SENTENCES, n)
        better, worse = (texts.of_statistics(metric, rows[chosen]) for rows in (first, second))
        return (difference(better, worse), truths[0] - truths[1]) if compared else (better, truths[0])

    yield "BLEU", "sentences", truths[0] / 100, bound(draw, False)
    yield "difference", "of BLEU", truths[0] / 100, bound(draw, True)


@cache
def translations() -> tuple[Any, np.ndarray, np.ndarray]:
    """BLEU, and its statistics of all sentences that there are, by two translators."""
    rng, metric = np.random.default_rng(0), texts.sacrebleu().BLEU()
    shares = 1 / np.arange(1, 401)  # of words, as Zipf has them
    rows = []
    for _ in range(SENTENCES):
        sentence, hard = rng.choice(400, rng.integers(4, 30), p=shares / shares.sum()), rng.beta(1.5, 2.5)
        answers = [spoiled(rng, sentence, min(0.95, 2 * hard * level)) for level in (0.4, 0.45)]
        rows.append(texts.statistics(metric, [[" ".join(map(str, sentence))]] * 2, answers))
    first, second = np.stack(rows, axis=1)
    return metric, first, second


def spoiled(rng: np.random.Generator, sentence: np.ndarray, share: float) -> str:
    """Of the words that are wrong, half are others, a quarter are missing, and a quarter have another behind them."""
    chances = [1 - share, share / 2, share / 4, share / 4]
    words: list[int] = []
    for word, what in zip(sentence, rng.choice(4, len(sentence), p=chances), strict=True):
        words += [[word], [rng.integers(400)], [], [word, rng.integers(400)]][what]
    return " ".join(map(str, words))


def bound(draw: Callable, *arguments: float | bool | Callable | Sequence) -> Draw:
    return lambda rng: draw(rng, *arguments)
