"""How alike texts are to what they should be: BLEU, chrF, ROUGE.

BLEU and chrF are sacrebleu's own (Post 2018), ROUGE is that of the package rouge-score without its stemmer. An interval
is over sentences. Where an example has several right answers, BLEU counts the words of any of them, as sacrebleu does,
and ROUGE is that of the most alike one.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from types import ModuleType

import numpy as np

from minillm.errors import need
from minillm.metrics.intervals import Interval
from minillm.metrics.rates import mean, of_sums

NOT_OF_WORDS = re.compile(r"[^a-z0-9]+")  # after lowering: what ROUGE leaves out
Answers = Sequence[str]  # each of them is right


def bleu(references: Sequence[Answers], answers: Sequence[str]) -> Interval:
    """From 0 to 100, of a corpus; see `signature`. UserError without the library sacrebleu."""
    return by_sacrebleu(sacrebleu().BLEU(), references, answers)


def chrf(references: Sequence[Answers], answers: Sequence[str]) -> Interval:
    """chrF2 (Popović 2015), from 0 to 100, of a corpus."""
    return by_sacrebleu(sacrebleu().CHRF(), references, answers)


def signature(name: str, references: Sequence[Answers]) -> str:
    """What a figure of `BLEU` or `CHRF` was measured by, for others to compare with, as sacrebleu writes it."""
    metric = getattr(sacrebleu(), name)(references=streams(references))
    return str(metric.get_signature())


def sacrebleu() -> ModuleType:
    """Its metrics; tasks that need them ask at their beginning and not after an hour's training. UserError."""
    return need("sacrebleu.metrics", "metrics", "BLEU")


def by_sacrebleu(metric, references: Sequence[Answers], answers: Sequence[str]) -> Interval:
    return of_statistics(metric, statistics(metric, references, answers))


def statistics(metric, references: Sequence[Answers], answers: Sequence[str]) -> np.ndarray:
    """(n, S): what each sentence adds to the sums that sacrebleu computes a corpus's score from. They are not in what
    it has public, but are what its own significance tests use."""
    return np.array(metric._extract_corpus_statistics(list(answers), streams(references)))


def of_statistics(metric, rows: np.ndarray) -> Interval:
    """The score of a corpus whose sentences have these `statistics`."""

    def score(sums: np.ndarray) -> np.ndarray:
        return np.apply_along_axis(lambda each: metric._compute_score_from_stats(each.tolist()).score / 100, -1, sums)

    return of_sums(rows, score).through(lambda share: 100 * share, ".1f")


def streams(references: Sequence[Answers]) -> list[list[str | None]]:
    """The first right answers of all examples, the second ones, and so on: None where an example has no more."""
    return [list(each) for each in zip_longest(*references)]


# ---- ROUGE ---------------------------------------------------------------------------------------


def rouge(references: Sequence[Answers], answers: Sequence[str]) -> dict[str, Interval]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), each from 0 to 1, means over examples."""
    scores = [best_rouge(list(map(words, right)), words(a)) for right, a in zip(references, answers, strict=True)]
    return {name: mean([each[i] for each in scores]) for i, name in enumerate(("rouge_1", "rouge_2", "rouge_l"))}


def best_rouge(references: Sequence[Sequence[str]], answer: Sequence[str]) -> list[float]:
    return [max(column) for column in zip(*(one_rouge(each, answer) for each in references), strict=True)]


def one_rouge(reference: Sequence[str], answer: Sequence[str]) -> list[float]:
    """What they have in common is single words, pairs of neighbours, or the longest common subsequence."""
    found = []
    for n in (1, 2):
        first, second = (Counter(zip(*(each[i:] for i in range(n)), strict=False)) for each in (reference, answer))
        found.append(f_measure((first & second).total(), first.total(), second.total()))
    return [*found, f_measure(longest_common(reference, answer), len(reference), len(answer))]


def f_measure(common: int, first: int, second: int) -> float:
    return 2 * common / (first + second) if common else 0.0


def words(text: str) -> list[str]:
    return NOT_OF_WORDS.sub(" ", text.lower()).split()


def longest_common(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of its table at a time: a bit is 0 where the row's count
    rises (Hyyrö 2004, Bit-parallel LCS-length computation revisited)."""
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for word in second:
        both = row & places.get(word, 0)
        row = (row + both | row - both) & everywhere
    return len(first) - row.bit_count()
