"""Tags of words that mark entities: which entities they mean, and which sequences of tags mean any.

In BIO, an entity of the type X is B-X I-X I-X; anything else is O. BILOU (or IOBES, BMES) also marks the last word of
an entity, L-X or E-X, and one that is alone, U-X or S-X. Where only I-X and O are used (IO), neighbours of a type are
one entity.

Letters: n words, K tags.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from minillm.metrics import entities

TAG = re.compile(r"O|[BIMELSU]-\S+")
ALONE, FIRST, INNER, LAST = "SU", "B", "IM", "EL"


def mark(tags: Iterable[str]) -> bool:
    """Whether these tags mark entities; parts of speech do not."""
    tags = set(tags)
    return len(tags) > 1 and all(map(TAG.fullmatch, tags))


def split(tag: str) -> tuple[str, str]:
    """B-artist → B, artist; of O the type is empty."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def in_order(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """The entities of a sentence as `metrics.entities` has them, from its beginning to its end."""
    return sorted(entities(tags), key=lambda entity: entity[1])


def may_follow(before: str, after: str, marks_last: bool) -> bool:
    """Whether the second tag may stand behind the first; O stands for both ends of a sentence."""
    (last, kind), (first, next_kind) = split(before), split(after)
    is_open = last in FIRST + INNER
    if first in INNER + LAST:
        return is_open and kind == next_kind
    return not (marks_last and is_open)


class Grammar:
    """What sequences of these tags may be, as far as the tags themselves say, and the best one that keeps to it."""

    def __init__(self, tags: Sequence[str]):
        """All tags that there are: which of BIO, BILOU and their like it is shows in what they begin with."""
        prefixes = {split(tag)[0] for tag in tags}
        self.prefix = {kind: next((p for p in kind if p in prefixes), None) for kind in (ALONE, FIRST, INNER, LAST)}
        self.marks_last = self.prefix[LAST] is not None
        self.is_strict = mark(tags) and bool(self.prefix[FIRST] or self.prefix[ALONE])  # IO allows everything
        self.allowed = np.array([[self.allows(a, b) for b in tags] for a in tags])
        self.first = np.array([self.allows("O", tag) for tag in tags])
        self.last = np.array([self.allows(tag, "O") for tag in tags])

    def allows(self, before: str, after: str) -> bool:
        return not self.is_strict or may_follow(before, after, self.marks_last)

    def faults(self, tags: Sequence[str]) -> list[int]:
        """The words whose tag may not stand behind the one before; n for a last one that may not be the last."""
        pairs = zip(["O", *tags], [*tags, "O"], strict=True)
        return [i for i, (before, after) in enumerate(pairs) if not self.allows(before, after)]

    def mended(self, tags: Sequence[str]) -> list[str]:
        """The same entities as they should have been written; parts of speech as they are."""
        if not self.is_strict:
            return list(tags)
        right = ["O"] * len(tags)
        for kind, start, stop in entities(tags):
            right[start:stop] = self.written(kind, stop - start)
        return right

    def written(self, kind: str, size: int) -> list[str]:
        """The tags of an entity of so many words."""
        inner = self.prefix[INNER] or "I"
        if not self.is_strict:
            return [f"{inner}-{kind}"] * size
        first, last = self.prefix[FIRST] or "B", self.prefix[LAST] or inner
        prefixes = [first, *[inner] * (size - 2), last] if size > 1 else [self.prefix[ALONE] or first]
        return [f"{prefix}-{kind}" for prefix in prefixes]

    def best(self, scores: np.ndarray) -> list[int]:
        """The numbers of the tags (n,) with the highest sum of scores (n, K) that keep to it (Viterbi 1967)."""
        forbidden = np.where(self.allowed, 0.0, -np.inf)
        total, came_from = np.where(self.first, scores[0], -np.inf), []
        for row in scores[1:]:
            through = total[:, None] + forbidden
            came_from.append(through.argmax(axis=0))
            total = through.max(axis=0) + row
        path = [int(np.where(self.last, total, -np.inf).argmax())]
        for back in reversed(came_from):
            path.append(int(back[path[-1]]))
        return path[::-1]
