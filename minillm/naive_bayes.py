"""Naive Bayes on words and pairs of words: what a classifier must beat to be worth its training.

A class explains a text by how often its training texts have each of the text's words and pairs of neighbours (McCallum
and Nigam 1998; pairs: Wang and Manning 2012). It is trained in a second, and on few texts it is hard to beat.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

WORD = re.compile(r"\w+|[^\w\s]")
SMOOTHING = 1.0  # what is added to every count (Laplace)

Texts = tuple[str, ...]  # a text, or a pair of them


class NaiveBayes:
    def __init__(self, texts: Sequence[Texts], labels: Sequence[str]):
        self.classes = sorted(set(labels))
        number = {name: k for k, name in enumerate(self.classes)}
        counts: dict[str, Counter[int]] = defaultdict(Counter)  # of every feature, in each class that has it
        for text, label in zip(texts, labels, strict=True):
            for feature in features(text):
                counts[feature][number[label]] += 1
        totals = np.zeros(len(self.classes))
        # log p(feature | class) is that of a feature the class never had, and above it, where it had it, a bonus.
        self.bonus: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for feature, found in counts.items():
            which, times = np.array(list(found)), np.array(list(found.values()))
            totals[which] += times
            self.bonus[feature] = which, np.log1p(times / SMOOTHING)
        of_class = Counter(labels)
        self.prior = np.log([of_class[name] / len(labels) for name in self.classes])
        self.unseen = np.log(SMOOTHING / (totals + SMOOTHING * len(counts)))

    def answer(self, text: Texts) -> str:
        """The class that the text is likeliest of. Features that no class had say nothing."""
        score = self.prior.copy()
        for feature in features(text):
            if (bonus := self.bonus.get(feature)) is not None:
                score += self.unseen
                score[bonus[0]] += bonus[1]
        return self.classes[int(score.argmax())]


class OneAgainstRest:
    """Of several labels at once, each by itself: whether a text is likelier one that has it or one that has it not."""

    def __init__(self, texts: Sequence[Texts], labels: Sequence[Sequence[str]]):
        self.classes = sorted({name for names in labels for name in names})
        number = {name: k for k, name in enumerate(self.classes)}
        counts: dict[str, Counter[int]] = defaultdict(Counter)  # of every feature, in each class that has it
        overall: Counter[str] = Counter()
        for text, names in zip(texts, labels, strict=True):
            own = [number[name] for name in names]
            for feature in features(text):
                overall[feature] += 1
                counts[feature].update(own)
        totals = np.zeros(len(self.classes))
        self.bonus: dict[str, tuple[float, np.ndarray, np.ndarray]] = {}  # as of NaiveBayes, in log p less that of rest
        for feature, times in overall.items():
            which = np.array(list(counts[feature]), dtype=np.int64)
            within = np.array([counts[feature][k] for k in which], dtype=np.float64)
            totals[which] += within
            never = -float(np.log1p(times / SMOOTHING))
            always = np.log1p(within / SMOOTHING) - np.log1p((times - within) / SMOOTHING)
            self.bonus[feature] = never, which, always - never
        room = SMOOTHING * len(overall)
        of_class = Counter(name for names in labels for name in set(names))
        having = np.array([of_class[name] for name in self.classes])
        with np.errstate(divide="ignore"):  # what all have, or none
            self.prior = np.log(having) - np.log(len(labels) - having)
        self.unseen = np.log(sum(overall.values()) - totals + room) - np.log(totals + room)

    def answer(self, text: Texts) -> tuple[str, ...]:
        """The classes that apply. Features that training did not have say nothing."""
        score = self.prior.copy()
        for feature in features(text):
            if (bonus := self.bonus.get(feature)) is not None:
                score += self.unseen + bonus[0]
                score[bonus[1]] += bonus[2]
        return tuple(name for name, each in zip(self.classes, score, strict=True) if each > 0)


def features(texts: Texts) -> Iterator[str]:
    """Words and pairs of neighbours; those of a second text are others than those of the first."""
    for mark, text in zip(("", "\0"), texts, strict=False):
        words = WORD.findall(text.lower())
        yield from (mark + word for word in words)
        yield from (f"{mark}{a} {b}" for a, b in pairwise(words))
