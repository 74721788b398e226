"""Sentences that differ from epoch to epoch: what changes, what never does, and how often."""

from collections import Counter

import numpy as np
import pytest

from minillm.tags import Grammar, in_order
from minillm.variation import EXCHANGED, SPLIT, Exchange, Splitter, augmented

SENTENCES = [
    (["play", "blue", "sky", "now"], ["O", "B-song", "I-song", "O"]),
    (["play", "it"], ["O", "B-song"]),
    (["in", "new", "york", "city", "by", "abba"], ["O", "B-city", "I-city", "I-city", "O", "B-band"]),
    (["rome"], ["B-city"]),
    (["go", "on"], ["O", "O"]),
]
TAGS = ["O", "B-song", "I-song", "B-city", "I-city", "B-band"]


def outside(words, marks):
    return [word for word, mark in zip(words, marks, strict=True) if mark == "O"]


@pytest.mark.parametrize("scheme", ["BIO", "BILOU"])
def test_an_entity_becomes_another_of_its_type(scheme):
    tags = TAGS if scheme == "BIO" else ["O", *(f"{p}-{kind}" for p in "BILU" for kind in ("song", "city", "band"))]
    grammar, rng = Grammar(tags), np.random.default_rng(0)
    sentences = [(words, grammar.mended(marks)) for words, marks in SENTENCES]
    exchange, known = Exchange(sentences, tags), {}
    for words, marks in sentences:
        for kind, start, stop in in_order(marks):
            known.setdefault(kind, set()).add(tuple(words[start:stop]))
    seen = Counter()
    for _ in range(500):
        for words, marks in sentences:
            new_words, new_marks = exchange(words, marks, rng)
            assert len(new_words) == len(new_marks)
            assert not grammar.faults(new_marks)
            found = in_order(new_marks)
            assert [kind for kind, _, _ in found] == [kind for kind, _, _ in in_order(marks)]
            assert all(tuple(new_words[a:b]) in known[kind] for kind, a, b in found)
            assert outside(new_words, new_marks) == outside(words, marks)
            seen[tuple(new_words)] += 1
    assert seen["play", "it", "now"] / 500 == pytest.approx(EXCHANGED / 2, abs=0.06)  # one of two songs
    assert seen["play", "blue", "sky", "now"] / 500 == pytest.approx(1 - EXCHANGED / 2, abs=0.06)
    assert seen["go", "on"] == 500


VOCABULARY = {name: i for i, name in enumerate(["[UNK]", "a", "##a", "b", "##b", "ab", "##ab", "aab", "abc"])}
NAMES = list(VOCABULARY)


def spelled(tokens, word_of):
    words = [""] * (max(word_of) + 1)
    for token, word in zip(tokens, word_of, strict=True):
        words[word] += NAMES[token].removeprefix("##")
    return words


def test_pieces_are_split_and_words_stay_what_they_are():
    splitter, rng = Splitter(VOCABULARY, ["[UNK]"]), np.random.default_rng(0)
    tokens = [VOCABULARY[name] for name in ("aab", "##ab", "[UNK]", "abc", "a")]
    word_of = np.array([0, 0, 1, 2, 3])
    seen = Counter()
    for _ in range(2000):
        new, of = splitter(tokens, word_of, rng)
        assert spelled(new, of) == ["aabab", "[UNK]", "abc", "a"]  # abc has no parts: c is in no vocabulary
        for word in range(4):
            pieces = [NAMES[t] for t, w in zip(new, of, strict=True) if w == word]
            assert all(name.startswith("##") for name in pieces[1:])
            assert not pieces[0].startswith("##")
            seen[word, tuple(pieces)] += 1
    whole = seen[0, ("aab", "##ab")] / 2000
    assert whole == pytest.approx((1 - SPLIT) ** 2, abs=0.03)
    assert seen[0, ("a", "##a", "##b", "##a", "##b")] > 0  # halves are split again
    assert seen[1, ("[UNK]",)] == seen[2, ("abc",)] == seen[3, ("a",)] == 2000


def test_the_same_random_numbers_give_the_same_sentence():
    splitter, exchange = Splitter(VOCABULARY, []), Exchange(SENTENCES, TAGS)
    for seed in range(20):
        first, second = (
            (splitter([7, 6, 5], np.arange(3), rng)[0], exchange(*SENTENCES[2], rng))
            for rng in (np.random.default_rng(seed), np.random.default_rng(seed))
        )
        assert first == second


# ---- of whole texts --------------------------------------------------------------------------------


def test_a_share_of_the_words_is_left_out_or_moved():
    words = [str(i) for i in range(20)]
    rng = np.random.default_rng(0)
    texts = [augmented(" ".join(words), "drop", rng).split() for _ in range(500)]
    assert np.mean([len(text) for text in texts]) == pytest.approx(18, abs=0.2)
    assert all(text == sorted(text, key=int) for text in texts)
    texts = [augmented(" ".join(words), "swap", rng).split() for _ in range(500)]
    assert all(sorted(text, key=int) == words for text in texts)
    moved = np.mean([sum(a != b for a, b in zip(text, words, strict=True)) for text in texts])
    assert moved == pytest.approx(2 * 19 / 20, abs=0.2)


def test_no_text_becomes_empty():
    rng = np.random.default_rng(0)
    assert {augmented("word", kind, rng) for kind in ("drop", "swap") for _ in range(100)} == {"word"}
