"""Tags that mark entities: which entities they are, which sequences may be, the best of them, against all that there
are."""

from itertools import product

import numpy as np
import pytest

from minillm.metrics import entities
from minillm.tags import Grammar, in_order, mark

SCHEMES = {"BIO": "BI", "IO": "I", "BILOU": "BILU", "IOBES": "BIES", "BMES": "BMES"}


def tags_of(scheme, kinds=("x", "y-z")):
    return ["O", *(f"{prefix}-{kind}" for kind in kinds for prefix in SCHEMES[scheme])]


def test_entities_in_order():
    truth = [("x", 0, 3), ("x", 3, 4), ("y-z", 5, 7)]
    assert in_order(["B-x", "I-x", "I-x", "B-x", "O", "B-y-z", "I-y-z"]) == truth
    assert in_order(["B-x", "I-x", "L-x", "U-x", "O", "B-y-z", "L-y-z"]) == truth
    assert in_order(["B-x", "M-x", "E-x", "S-x", "O", "B-y-z", "E-y-z"]) == truth
    assert in_order(["I-x", "I-x", "I-x", "I-x", "O", "I-y-z", "I-y-z"]) == [("x", 0, 4), ("y-z", 5, 7)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_well_formed_are_those_that_entities_are_written_as(scheme):
    """Sequences without a fault, and only they, stay as they are when they are mended."""
    grammar = Grammar(tags_of(scheme))
    for tags in map(list, product(tags_of(scheme), repeat=3)):
        mended = grammar.mended(tags)
        assert (mended == tags) == (not grammar.faults(tags)), tags
        assert entities(mended) == entities(tags)
        assert not grammar.faults(mended)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_best_sequence_is_the_best_of_all_that_may_be(scheme, count):
    tags = tags_of(scheme, ("x", "y")) if count < 4 else tags_of(scheme, ("x",))
    grammar, rng = Grammar(tags), np.random.default_rng(count)
    allowed = [path for path in product(range(len(tags)), repeat=count) if not grammar.faults([tags[k] for k in path])]
    for _ in range(20):
        scores = rng.normal(size=(count, len(tags))) - 3 * (rng.random((count, len(tags))) < 0.5)
        total = {path: sum(scores[i, k] for i, k in enumerate(path)) for path in allowed}
        assert tuple(grammar.best(scores)) == max(total, key=total.get)


def test_where_the_likeliest_tags_are_well_formed_they_are_the_best():
    known = tags_of("BIO")
    tags = ["B-x", "I-x", "O", "B-y-z", "B-x"]
    scores = np.random.default_rng(0).random((5, 5))
    scores[range(5), [known.index(tag) for tag in tags]] += 2
    assert [known[k] for k in Grammar(known).best(scores)] == tags


def test_parts_of_speech_mark_nothing_and_may_stand_anywhere():
    tags = ["NOUN", "VERB", "B"]
    assert not mark(tags)
    assert not mark(["O"])
    assert mark(["O", "B-x"])
    grammar = Grammar(tags)
    assert grammar.mended(["B", "VERB"]) == ["B", "VERB"]
    assert grammar.best(np.eye(3)) == [0, 1, 2]


def test_a_sequence_takes_a_prefix_of_its_scheme():
    assert Grammar(["O", "B-x", "I-x", "E-x", "S-x"]).mended(["O", "I-x", "O"]) == ["O", "S-x", "O"]
    assert Grammar(["O", "B-x", "I-x", "L-x", "U-x"]).mended(["O", "I-x", "I-x"]) == ["O", "B-x", "L-x"]
    assert Grammar(["O", "B-x", "I-x"]).mended(["I-x", "I-x", "B-x"]) == ["B-x", "I-x", "B-x"]  # IOB1
    assert Grammar(["O", "I-x"]).mended(["I-x", "O"]) == ["I-x", "O"]


def test_long_sentences_of_many_tags():
    """Quick, and no sum overflows."""
    tags = ["O", *(f"{prefix}-{kind}" for kind in range(40) for prefix in "BI")]
    rng = np.random.default_rng(0)
    path = Grammar(tags).best(np.log(rng.dirichlet(np.ones(len(tags)), size=2000)))
    assert not Grammar(tags).faults([tags[k] for k in path])
    assert len(path) == 2000
