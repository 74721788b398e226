"""What simple rules reach, to be read beside what a model does. (How texts are classified by counting: naive_bayes.py.)

Each is made from training examples, or from nothing, and answers as a model would.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence

END = re.compile(r"[.!?…][\"'”’]*(?:\s+|$)|[。！？]|\n+")  # of a sentence; not before a bracket: (cats, dogs, etc.)
Token = Hashable


def copy(prompt: str) -> str:
    """What a translation is worth in which nothing is translated."""
    return prompt


def lead(text: str, sentences: int = 1) -> str:
    """The first sentences: of news and abstracts hard to beat as a summary (Nenkova 2005)."""
    text = text.strip()
    ends = [match.end() for match in END.finditer(text)]
    return text[: ends[sentences - 1]].strip() if len(ends) >= sentences else text


class TagLookup:
    """Each word gets its commonest tag in training, an unknown one always the same."""

    def __init__(self, sentences: Sequence[Sequence[str]], tags: Sequence[Sequence[str]], unknown: str = "O"):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for words, marks in zip(sentences, tags, strict=True):
            for word, tag in zip(words, marks, strict=True):
                counts[word][tag] += 1
        self.tags = {word: commonest(found) for word, found in counts.items()}
        self.unknown = unknown

    def answer(self, words: Sequence[str]) -> list[str]:
        return [self.tags.get(word, self.unknown) for word in words]


def commonest(counts: Counter[str]) -> str:
    """Of equally common ones the first by alphabet, whatever order they came in."""
    return min(counts, key=lambda tag: (-counts[tag], tag))


class NGrams:
    """The probability of a token by the `order − 1` before it: interpolated Kneser-Ney (Chen and Goodman 1998, "An
    empirical study of smoothing techniques"), which backs off to shorter contexts, in which a token counts as often as
    it followed different ones, and at last to all known tokens and one unknown alike."""

    def __init__(self, sequences: Sequence[Sequence[Token]], order: int = 3):
        self.order = order
        self.vocabulary = {token for sequence in sequences for token in sequence}
        grams = Counter(gram for sequence in sequences for gram in ngrams(sequence, order))
        self.levels: list[Level] = []  # from the longest context to none
        for _ in range(order):
            self.levels.append(Level(grams))
            grams = Counter(gram[1:] for gram in grams)  # how many different tokens stood before each

    def probability(self, context: Sequence[Token], token: Token) -> float:
        """p(token | the end of the context); one unknown token stands for all there are."""
        before = (None,) * (self.order - 1) + tuple(context)
        p = 1 / (len(self.vocabulary) + 1)
        for length, level in zip(range(self.order), reversed(self.levels), strict=True):
            p = level.probability(before[len(before) - length :], token, p)
        return p

    def nats(self, sequence: Sequence[Token]) -> float:
        """Σ −log p of all its tokens, the first ones with what little stands before them."""
        padded = [*[None] * (self.order - 1), *sequence]
        starts = range(len(sequence))
        return -sum(math.log(self.probability(padded[i : i + self.order - 1], sequence[i])) for i in starts)


class Level:
    """Counts of n-grams of one length."""

    def __init__(self, grams: Counter[tuple[Token, ...]]):
        self.grams = grams
        self.totals: Counter[tuple[Token, ...]] = Counter()
        self.kinds: Counter[tuple[Token, ...]] = Counter()  # how many different tokens follow
        for gram, count in grams.items():
            self.totals[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1
        once, twice = (sum(count == n for count in grams.values()) for n in (1, 2))
        self.discount = once / (once + 2 * twice) if once and twice else 0.75  # Ney, Essen and Kneser 1994

    def probability(self, context: tuple[Token, ...], token: Token, shorter: float) -> float:
        """With that of the shorter context, which gets what is taken off every count."""
        if not (total := self.totals[context]):
            return shorter
        kept = max(self.grams[(*context, token)] - self.discount, 0)
        return (kept + self.discount * self.kinds[context] * shorter) / total


def ngrams(sequence: Sequence[Token], order: int) -> Iterator[tuple[Token, ...]]:
    """One for each token, with None where there is nothing before it."""
    padded = [*[None] * (order - 1), *sequence]
    return zip(*(padded[i:] for i in range(order)), strict=False)
