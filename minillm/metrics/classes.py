"""Of classifiers: F1 of all classes and of each, and whether their probabilities mean what they say.

Letters: n examples, K classes.
"""

import math
from collections.abc import Sequence

import numpy as np

from minillm.metrics.intervals import Interval, Z, estimated
from minillm.metrics.rates import rate, ratio

BINS = 15  # of probabilities, as Guo et al. 2017 have it
FEWEST = 20  # examples in a bin
TEMPERATURES = 0.01, 100.0  # the least and the greatest that is looked for


def macro_f1(truth: Sequence[str], answers: Sequence[str]) -> Interval:
    """The mean over classes of F1 = 2·hits / (examples of the class + answers of the class), each class counting
    alike however rare. Classes are those that occur in either sequence."""
    if not truth:
        raise ValueError("F1 of nothing is undefined: no examples")
    classes = {name: i for i, name in enumerate(sorted({*truth, *answers}))}
    return macro_f1_of(np.array([classes[name] for name in truth]), np.array([classes[name] for name in answers]))


def macro_f1_of(truth: np.ndarray, answers: np.ndarray) -> Interval:
    """The same of (n,) classes as numbers from 0 on, each of which occurs.

    Bootstrap percentiles, the usual way to an interval, hold the truth in as little as a third of all cases where
    classes are many and small: each resampling adds the bias once more."""
    right = truth == answers
    total = np.bincount(np.concatenate([truth, answers]))  # (K,)
    hits = np.bincount(truth[right], minlength=len(total))
    f1 = 2 * hits / total
    less_a_hit = 2 * (hits - 1) / np.maximum(total - 2, 1) - f1
    less_an_error = 2 * hits / np.maximum(total - 1, 1) - f1
    changes = np.where(right, less_a_hit[truth], less_an_error[truth] + less_an_error[answers]) / len(total)
    unit = 2 * (1 / total).mean() / len(total)  # what an error costs of two classes that are right otherwise
    return estimated(float(f1.mean()), changes, unit)


def class_report(truth: Sequence[str], answers: Sequence[str]) -> dict[str, dict[str, Interval | int]]:
    """Precision, recall, F1 and support (its number of examples) of every class that occurs, by its name. Precision
    is 0, of [0, 1], where a class was never answered, and so is recall where it was never true."""
    return {
        name: report_of(*(np.array([each == name for each in sequence]) for sequence in (truth, answers)))
        for name in sorted({*truth, *answers})
    }


def report_of(true: np.ndarray, answered: np.ndarray) -> dict[str, Interval | int]:
    """Of one class, from (n,) whether it is true and was answered; of which one must be so somewhere."""
    return {
        "precision": rate(true[answered]) if answered.any() else Interval(0, 0, 1),
        "recall": rate(answered[true]) if true.any() else Interval(0, 0, 1),
        "f1": ratio(2.0 * (true & answered), 1.0 * true + answered, ceiling=1.0),
        "support": int(true.sum()),
    }


# ---- several classes at once ---------------------------------------------------------------------


def micro_f1(truth: np.ndarray, answers: np.ndarray) -> Interval:
    """F1 of all decisions together, each label counting alike: (n, K) bool, which classes apply to each example. 0, of
    [0, 1], where there is no label in either."""
    sizes = truth.sum(axis=1) + answers.sum(axis=1)
    if not sizes.any():
        return Interval(0, 0, 1)
    return ratio(2.0 * (truth & answers).sum(axis=1), sizes, ceiling=1.0)


def label_macro_f1(truth: np.ndarray, answers: np.ndarray) -> Interval:
    """The mean over classes of the F1 of each, likewise; of classes that occur in either, as `macro_f1` has it."""
    occurs = (truth | answers).any(axis=0)
    if not occurs.any():
        return Interval(0, 0, 1)
    truth, answers = truth[:, occurs], answers[:, occurs]
    hits, sizes = truth & answers, truth.astype(np.int64) + answers
    total, right = sizes.sum(axis=0), hits.sum(axis=0)  # (K,)
    f1 = 2 * right / total
    changes = (2 * (right - hits) / np.maximum(total - sizes, 1)).mean(axis=1) - f1.mean()
    unit = 2 * (1 / total).mean() / len(total)  # as of `macro_f1_of`
    return estimated(float(f1.mean()), changes, unit)


def label_report(truth: np.ndarray, answers: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Interval | int]]:
    """As `class_report`, by the names of the K classes; of those that occur."""
    occurs = (truth | answers).any(axis=0)
    return {name: report_of(truth[:, k], answers[:, k]) for k, name in enumerate(names) if occurs[k]}


# ---- what probabilities are worth ----------------------------------------------------------------


def calibration_error(
    probabilities: Sequence[float], right: Sequence[bool], text: np.ndarray | None = None
) -> Interval:
    """The expected calibration error: how far the probability of an answer is from the share of right ones, over bins
    of answers of like probability, equally many in each (Nguyen and O'Connor 2015): 15, fewer of few examples.

    Chance alone sets the two apart, so that it is too high: in each bin by the mean of a folded normal distribution
    less its fold. Where the fold is, is known up to an error or so; the lower bound is less the bias of a fold an error
    nearer to 0 than was found, and the upper one that of a fold an error further away.

    `text` (n,), from 0 on: of which text each answer is, where a text has several, which may be wrong together."""
    confidence, truth = (np.asarray(each, dtype=np.float64) for each in (probabilities, right))
    n = len(confidence)
    if n == 0:
        raise ValueError("calibration of nothing is undefined: no examples")
    text = np.arange(n) if text is None else text
    m = int(text.max()) + 1
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(BINS, -(-m // FEWEST)))
    gaps = confidence - truth
    sums = np.array([gaps[each].sum() for each in bins])
    errors = np.array([(spread(gaps[each], text[each]) + gaps[each].mean() ** 2 + 1 / n) ** 0.5 for each in bins])
    folds, half = abs(sums) / errors, Z * np.square(errors).sum() ** 0.5
    low, high = ((abs(sums) - errors * excess(each)).sum() for each in (np.maximum(folds - 1, 0), folds + 1))
    value = float(abs(sums).sum() / n)
    signs = np.empty(n)
    signs[np.concatenate(bins)] = np.repeat(np.sign(sums), list(map(len, bins)))
    bounds = max(0.0, min(value, (low - half) / n)), min(1.0, max(value, (high + half) / n))
    changes = np.bincount(text, value - signs * gaps) / max(1, n - n / m)
    return Interval(value, *bounds, changes=changes, unit=1 / m)


def spread(gaps: np.ndarray, text: np.ndarray) -> float:
    """The variance of the sum of what differs from text to text."""
    return float(np.square(np.bincount(text, gaps - gaps.mean())).sum())


def excess(m: np.ndarray) -> np.ndarray:
    """E|x| − m of x from a normal distribution of mean m ≥ 0 and deviation 1."""
    below = np.array([math.erfc(each / 2**0.5) / 2 for each in m])  # that x is under 0
    return (2 / math.pi) ** 0.5 * np.exp(-m * m / 2) - 2 * m * below


def fitted_temperature(logits: np.ndarray, classes: np.ndarray) -> float:
    """The T for which softmax(logits / T) makes the true classes likeliest (Guo et al. 2017, arXiv:1706.04599): over 1
    where a model is too sure of itself. logits (n, K), classes (n,); examples that it was not trained on.

    The likelihood has one peak in 1 / T, which is where its slope is 0: halved in until it is found."""
    low, high = (math.log(1 / t) for t in reversed(TEMPERATURES))
    logits = logits - logits.max(axis=1, keepdims=True)
    true = logits[np.arange(len(logits)), classes]
    for _ in range(60):
        middle = (low + high) / 2
        weights = np.exp(logits * math.exp(middle))
        expected = (weights * logits).sum(axis=1) / weights.sum(axis=1)
        low, high = (middle, high) if true.mean() > expected.mean() else (low, middle)
    return math.exp(-low)
