"""Texts that are a little different in every epoch.

For taggers that start from nothing: what is said of an entity holds of others of its type, and of words that training
never had, which come in smaller pieces.

exchange    an entity becomes another one of its type (Dai and Adel 2020, arXiv:2010.11683)
split       a piece of a word becomes two smaller ones (as in MaxMatch-Dropout: Hiraoka 2022, arXiv:2209.04126)

For classifiers that are asked to, `--augment` (Wei and Zou 2019, arXiv:1901.11196):

drop        a share of the words is left out
swap        a share of the words change places
mask        a share of the words is replaced by what a model proposes: see proposals.py
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from minillm.tags import Grammar, in_order

EXCHANGED, SPLIT = 0.5, 0.1  # shares of the entities, and of the pieces
AUGMENTED = 0.1  # share of the words of a text
INNER = "##"  # how WordPiece writes what does not begin a word

Tagged = tuple[Sequence[str], Sequence[str]]  # words, and a tag for each


class Exchange:
    """Of entities for others of their type in these sentences."""

    def __init__(self, sentences: Iterable[Tagged], tags: Sequence[str]):
        self.grammar = Grammar(tags)
        found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for words, marks in sentences:
            for kind, start, stop in in_order(marks):
                found[kind].add(tuple(words[start:stop]))
        self.values = {kind: sorted(values) for kind, values in found.items()}

    def __call__(self, words: Sequence[str], tags: Sequence[str], rng: np.random.Generator) -> Tagged:
        new_words, new_tags, at = [], [], 0
        for kind, start, stop in in_order(tags):
            value = tuple(words[start:stop])
            if rng.random() < EXCHANGED:
                value = self.values[kind][rng.integers(len(self.values[kind]))]
            new_words += [*words[at:start], *value]
            new_tags += [*tags[at:start], *self.grammar.written(kind, len(value))]
            at = stop
        return [*new_words, *words[at:]], [*new_tags, *tags[at:]]


class Splitter:
    """Of pieces into smaller ones of the same vocabulary."""

    def __init__(self, vocabulary: Mapping[str, int], control: Collection[str]):
        pieces = {name: i for name, i in vocabulary.items() if name not in control}
        self.halves = {i: halves for name, i in pieces.items() if (halves := halves_of(name, pieces))}

    def __call__(
        self, tokens: Sequence[int], word_of: np.ndarray, rng: np.random.Generator
    ) -> tuple[list[int], np.ndarray]:
        """Tokens and the word that each is of; either half may be split again."""
        new, sizes = [], []
        for token in tokens:
            before = len(new)
            self.add(token, new, rng)
            sizes.append(len(new) - before)
        return new, np.repeat(word_of, sizes)

    def add(self, token: int, to: list[int], rng: np.random.Generator) -> None:
        halves = self.halves.get(token)
        if halves and rng.random() < SPLIT:
            for half in halves[rng.integers(len(halves))]:
                self.add(half, to, rng)
        else:
            to.append(token)


def halves_of(name: str, pieces: Mapping[str, int]) -> list[tuple[int, int]]:
    """All ways to make a piece of two."""
    start = len(INNER) if name.startswith(INNER) else 0
    cuts = range(start + 1, len(name))
    pairs = ((name[:i], INNER + name[i:]) for i in cuts)
    return [(pieces[a], pieces[b]) for a, b in pairs if a in pieces and b in pieces]


# ---- of whole texts --------------------------------------------------------------------------------


def dropped(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """All but a share of the words; one at least stays."""
    kept = [word for word, chance in zip(words, rng.random(len(words)), strict=True) if chance >= AUGMENTED]
    return kept or [words[rng.integers(len(words))]]


def swapped(words: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The same words, of which a share has changed places, each with any other."""
    words = list(words)
    for i in np.flatnonzero(rng.random(len(words)) < AUGMENTED / 2):  # two move each time
        j = rng.integers(len(words))
        words[i], words[j] = words[j], words[i]
    return words


AUGMENTATIONS: dict[str, Callable[[Sequence[str], np.random.Generator], list[str]]] = {
    "drop": dropped,
    "swap": swapped,
}


def augmented(text: str, kind: str, rng: np.random.Generator) -> str:
    """Blanks are where words end, and one stands between them."""
    return " ".join(AUGMENTATIONS[kind](text.split(), rng))
