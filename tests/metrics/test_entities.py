"""Entities and their F1 against seqeval, the field's own."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.metrics import entities, entity_f1, entity_report, token_accuracy
from minillm.metrics.entities import share

seqeval = pytest.importorskip("seqeval.metrics", reason="needs seqeval: pip install -e '.[test]'")
scheme = pytest.importorskip("seqeval.scheme")

BIO = ["O", *(f"{mark}-{kind}" for mark in "BI" for kind in ("PER", "LOC", "A-B"))]
IOBES = [*BIO, *(f"{mark}-{kind}" for mark in "ES" for kind in ("PER", "LOC", "A-B")), "B", "I", "E", "S"]
BILOU = [tag.replace("E-", "L-").replace("S-", "U-") for tag in IOBES[:-4]]


def sentences(tags):
    pair = st.lists(st.tuples(st.sampled_from(tags), st.sampled_from(tags)), min_size=1, max_size=12)
    return st.lists(pair, min_size=1, max_size=5).map(
        lambda each: tuple([[pair[i] for pair in sentence] for sentence in each] for i in (0, 1))
    )


@pytest.mark.parametrize("tags", [BIO, IOBES], ids=["BIO", "IOBES"])
def test_entities_are_those_of_seqeval_in_any_sequence(tags):
    @given(st.lists(st.sampled_from(tags), max_size=15))
    @settings(max_examples=300, deadline=None)
    def check(sequence):
        expected = {(kind, start, end + 1) for kind, start, end in seqeval.sequence_labeling.get_entities(sequence)}
        assert entities(sequence) == expected

    check()


@given(st.lists(st.tuples(st.sampled_from(["PER", "LOC", None]), st.integers(1, 4)), max_size=8))
@settings(max_examples=100, deadline=None)
def test_bilou_means_what_seqeval_reads_strictly(chunks):
    tags, expected = [], set()
    for kind, length in chunks:
        if kind:
            expected.add((kind, len(tags), len(tags) + length))
        marks = "U" if length == 1 else "B" + "I" * (length - 2) + "L"
        tags += [f"{mark}-{kind}" if kind else "O" for mark in marks]
    assert entities(tags) == expected
    strict = scheme.Entities([tags], scheme.BILOU).entities[0]
    assert {(each.tag, each.start, each.end) for each in strict} == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("I-A I-A O", {("A", 0, 2)}),  # IOB1, and any entity whose beginning was missed
        ("B-A I-B I-B", {("A", 0, 1), ("B", 1, 3)}),
        ("B-A B-A", {("A", 0, 1), ("A", 1, 2)}),
        ("O L-A U-A I-A", {("A", 1, 2), ("A", 2, 3), ("A", 3, 4)}),
        ("", set()),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entities(tags.split()) == expected


@pytest.mark.parametrize("tags", [BIO, IOBES], ids=["BIO", "IOBES"])
def test_scores_are_those_of_seqeval(tags):
    @given(sentences(tags))
    @settings(max_examples=100, deadline=None)
    def check(pair):
        truth, answers = pair
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of classes that were never found
            expected = seqeval.classification_report(truth, answers, output_dict=True, zero_division=0)
            f1 = seqeval.f1_score(truth, answers, zero_division=0)
        found = entity_f1(truth, answers)
        assert found.value == pytest.approx(f1)
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert token_accuracy(truth, answers).value == pytest.approx(seqeval.accuracy_score(truth, answers))
        report = entity_report(truth, answers)
        assert report.keys() == expected.keys() - {"micro avg", "macro avg", "weighted avg"}
        for kind, scores in report.items():
            for ours, theirs in (("precision",) * 2, ("recall",) * 2, ("f1", "f1-score")):
                assert scores[ours].value == pytest.approx(expected[kind][theirs])
            assert scores["support"] == expected[kind]["support"]

    check()


def test_nothing_to_find_is_no_score():
    assert entity_f1([["O", "O"]], [["O", "O"]]) == (0, 0, 1)
    assert entity_f1([["B-A"]], [["O"]]).value == 0


@pytest.mark.parametrize(
    ("n", "recall", "spurious"), [(30, 0.5, 0.1), (100, 0.2, 0.3), (100, 0.9, 0.02), (400, 0.97, 0)]
)
def test_f1_intervals_hold_the_truth(n, recall, spurious):
    """Sentences of none to four entities, of which all are found or each by chance; and some that are none."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        true = rng.integers(0, 5, n)
        hits = np.where(rng.random(n) < recall / 2, true, rng.binomial(true, recall / (2 - recall)))
        found = hits + rng.binomial(4, spurious, n)
        interval = share(2 * hits, true + found)
        held += interval.low <= 2 * 2 * recall / (2 + 2 * recall + 4 * spurious) <= interval.high
    assert 0.93 <= held / 400 <= 0.985
