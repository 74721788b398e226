"""Which entities the tags of a sentence mean, and how many were found.

Tags say for each word whether an entity of a type begins there (B), goes on (I), ends (E or L), is a single word (S or
U), or that it is in none (O). All schemes are read by one set of rules, those of CoNLL's conlleval, which find entities
in any sequence: one that goes on without a beginning, or as another type, begins there.
"""

from collections.abc import Sequence
from operator import eq

import numpy as np

from minillm.metrics.intervals import Interval
from minillm.metrics.rates import ratio

Entity = tuple[str, int, int]  # type, first word, the word behind the last
BEGINS, ENDS = set("BSU"), set("ESLU")  # before, behind the word


def entities(tags: Sequence[str]) -> set[Entity]:
    """Of one sentence, by the tags of its words; equal to seqeval's, but for the end, which is exclusive here. A type
    that is missing, as of the tag B, is "_"."""
    found, start, open_type, is_closed = set(), 0, None, True
    for i, tag in enumerate([*tags, "O"]):
        mark, kind = tag[:1], tag[2:] or "_"
        goes_on = mark != "O" and mark not in BEGINS and not is_closed and kind == open_type
        if not goes_on:
            if open_type is not None:
                found.add((open_type, start, i))
            start, open_type = i, None if mark == "O" else kind
        is_closed = mark in ENDS or mark == "O"
    return found


def entity_f1(truth: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> Interval:
    """2·hits / (true entities + found ones) over sentences, by their tags: what CoNLL calls F1. A hit has the same type
    and the same words. Where no sentence has an entity, and none was found, it is 0, of [0, 1]."""
    return scores(pairs_of(truth, answers))["f1"]


def entity_report(
    truth: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]
) -> dict[str, dict[str, Interval | int]]:
    """Precision, recall, F1 and support (how many there are) of each type of entity that occurs, by its name."""
    pairs = pairs_of(truth, answers)
    types = sorted({entity[0] for pair in pairs for side in pair for entity in side})
    return {name: scores([(of_type(true, name), of_type(found, name)) for true, found in pairs]) for name in types}


def pairs_of(truth: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> list[tuple[set, set]]:
    return [(entities(true), entities(found)) for true, found in zip(truth, answers, strict=True)]


def of_type(found: set[Entity], name: str) -> set[Entity]:
    return {entity for entity in found if entity[0] == name}


def scores(pairs: Sequence[tuple[set[Entity], set[Entity]]]) -> dict[str, Interval | int]:
    """Of true and found entities, sentence by sentence."""
    counts = np.array([(len(true & found), len(true), len(found)) for true, found in pairs]).reshape(-1, 3)
    hits, true, found = counts.T
    return {
        "precision": share(hits, found),
        "recall": share(hits, true),
        "f1": share(2 * hits, true + found),
        "support": int(true.sum()),
    }


def share(hits: np.ndarray, of: np.ndarray) -> Interval:
    return ratio(hits, of, ceiling=1.0) if of.any() else Interval(0, 0, 1)


def token_accuracy(truth: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> Interval:
    """Share of words with the right tag; the interval is over sentences, whose words are not independent."""
    right = [sum(map(eq, true, found)) for true, found in zip(truth, answers, strict=True)]
    return ratio(right, list(map(len, truth)), ceiling=1.0)
