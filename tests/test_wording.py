"""Counts and nouns."""

import pytest

from minillm.wording import counted


@pytest.mark.parametrize(
    ("number", "nouns", "words"),
    [
        (0, ("thread",), "0 threads"),
        (1, ("thread",), "1 thread"),
        (2000, ("example",), "2,000 examples"),
        (1, ("class", "classes"), "1 class"),
        (3, ("class", "classes"), "3 classes"),
        (1, ("text is", "texts are"), "1 text is"),
    ],
)
def test_a_count_agrees_with_its_noun(number, nouns, words):
    assert counted(number, *nouns) == words
