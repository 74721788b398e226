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


def features(texts: Texts) -> Iterator[str]:
    """Words and pairs of neighbours; those of a second text are others than those of the first."""
    for mark, text in zip(("", "\0"), texts, strict=False):
        words = WORD.findall(text.lower())
        yield from (mark + word for word in words)
        yield from (f"{mark}{a} {b}" for a, b in pairwise(words))
