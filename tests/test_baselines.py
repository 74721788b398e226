"""What simple rules answer: by hand, by their formula, and that probabilities sum to 1."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.baselines import NGrams, TagLookup, copy, lead

texts = st.lists(st.text(alphabet="abc", min_size=1, max_size=12), min_size=1, max_size=5)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One. Two! Three?", "One."),
        ('He said: "Stop!" She did.', 'He said: "Stop!"'),
        ("End.\nNext. Last.", "End."),
        ("Pets (cats, dogs, etc.) are nice. So are we.", "Pets (cats, dogs, etc.) are nice."),
        ("No end", "No end"),
        ("  A title\n\nThen text. More.", "A title"),
        ("Version 3.5 is out. Good.", "Version 3.5 is out."),
        ("一。二。", "一。"),
        ("", ""),
    ],
)
def test_lead_is_the_first_sentence(text, first):
    assert lead(text) == first
    assert copy(text) == text


def test_lead_of_several():
    assert lead("One. Two! Three?", 2) == "One. Two!"
    assert lead("One. Two!", 9) == "One. Two!"


def test_tags_are_looked_up():
    lookup = TagLookup([["Bank", "of", "Rome"], ["the", "Bank"], ["Bank"]], [["B", "O", "L"], ["O", "N"], ["B"]], "?")
    assert lookup.answer(["Bank", "of", "Paris"]) == ["B", "O", "?"]
    assert TagLookup([["a"], ["a"]], [["N"], ["B"]]).answer(["a", "b"]) == [
        "B",
        "O",
    ]  # of equally common ones the first
    assert lookup.answer([]) == []


@given(texts, st.text(alphabet="abcd", max_size=4), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_probabilities_of_all_tokens_and_an_unknown_one_sum_to_one(sequences, context, order):
    model = NGrams(sequences, order)
    assert sum(model.probability(context, token) for token in [*model.vocabulary, "?"]) == pytest.approx(1)
    assert model.probability(context, "?") > 0


def kneser_ney(sequences, context, token):
    """Of pairs, from the formula, with sets and sums."""
    pairs = [(a, b) for sequence in sequences for a, b in zip([None, *sequence], sequence, strict=False)]
    kinds, vocabulary = set(pairs), set("".join(sequences))

    def discount(counts):
        once, twice = (sum(count == n for count in counts) for n in (1, 2))
        return once / (once + 2 * twice) if once and twice else 0.75

    before = {b: sum(pair[1] == b for pair in kinds) for b in vocabulary}
    d = discount(before.values())
    shorter = max(before.get(token, 0) - d, 0) / len(kinds) + d * len(before) / len(kinds) / (len(vocabulary) + 1)
    total = sum(a == context for a, _ in pairs)
    if not total:
        return shorter
    d = discount([pairs.count(pair) for pair in kinds])
    followers = sum(pair[0] == context for pair in kinds)
    return max(pairs.count((context, token)) - d, 0) / total + d * followers / total * shorter


@given(texts, st.sampled_from("abcd"), st.sampled_from("abcd"))
@settings(max_examples=200, deadline=None)
def test_pairs_are_kneser_neys(sequences, context, token):
    assert NGrams(sequences, 2).probability(context, token) == pytest.approx(kneser_ney(sequences, context, token))


def test_nats_are_those_of_each_token_after_the_ones_before_it():
    model = NGrams(["abcabcabd", "abx"], 3)
    expected = [model.probability("abca"[:i], token) for i, token in enumerate("abca")]
    assert model.nats("abca") == pytest.approx(-sum(map(math.log, expected)))
    assert model.nats("abc") < model.nats("bac") < model.nats("???")


def test_longer_contexts_foresee_more():
    text = "the cat sat on the mat and the dog sat on the log " * 20
    nats = [NGrams([text], order).nats(text[:200]) for order in (1, 2, 3, 5)]
    assert nats == sorted(nats, reverse=True)
