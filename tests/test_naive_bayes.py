"""Naive Bayes is what its formula says, class by class and feature by feature."""

import random
from collections import Counter

import numpy as np
import pytest

from minillm.naive_bayes import NaiveBayes, features


def test_words_and_pairs_of_neighbours():
    assert list(features(("It's GOOD!",))) == ["it", "'", "s", "good", "!", "it '", "' s", "s good", "good !"]
    assert not set(features(("a b",))) & set(features(("", "a b")))  # a second text has features of its own


@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition(seed):
    """argmax over classes of log p(class) + sum of log p(feature | class), every probability smoothed by 1."""
    rng = random.Random(seed)
    sizes = {"a": 30, "b": 9, "c": 2}
    texts, labels = [], []
    for label, size in sizes.items():
        for _ in range(size):
            texts.append((" ".join(rng.choices("uvwxyz" + label * 2, k=rng.randint(0, 8))),))
            labels.append(label)
    known = sorted({f for text in texts for f in features(text)})
    counts = {
        label: Counter(f for t, y in zip(texts, labels, strict=True) if y == label for f in features(t))
        for label in sizes
    }

    def score(text, label):
        total = counts[label].total() + len(known)
        seen = [f for f in features(text) if f in known]
        return np.log(labels.count(label) / len(labels)) + sum(np.log((counts[label][f] + 1) / total) for f in seen)

    model = NaiveBayes(texts, labels)
    asked = [(" ".join(rng.choices("uvwxyzabc?", k=rng.randint(0, 8))),) for _ in range(200)]
    for text in asked:
        scores = {label: score(text, label) for label in sizes}
        assert scores[model.answer(text)] == pytest.approx(max(scores.values()), abs=1e-9)
    assert len({model.answer(text) for text in asked}) == 3
