"""Names of classes that look like a mistake are asked about, and others are left alone."""

from collections import Counter

import pytest

from minillm.labels import suspicious


def about(counts, *names):
    """Sentences that name all of these."""
    return [sentence for sentence in suspicious(counts) if all(repr(name) in sentence for name in names)]


@pytest.mark.parametrize("name", ["nan", "NaN", "None", "null", "N/A", "NA", "-", "?", "undefined"])
def test_names_of_missing_values(name):
    assert about({"good": 50, "bad": 40, name: 7}, name) == [
        f"the class {name!r} (7 examples) is how programs write a missing value; remove the lines if it is none"
    ]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("pos", "Pos"),
        ("on hold", "on-hold"),
        ("on_hold", "On  Hold"),
        ("straße", "STRASSE"),
        ("fi", "\ufb01"),  # a ligature
        ("news", "n\u200bews"),
        ("type 1", "type1"),
        ("pos", "'pos'"),
        ("\u201cpos\u201d", "Pos."),
        ("\u2764", "\u2764\ufe0f"),  # a heart, and one in red
    ],
)
def test_names_that_differ_in_how_they_are_written(first, second):
    (sentence,) = about({first: 70, "other": 90, second: 60}, first, second)
    assert sentence == (
        f"{first!r} (70) and {second!r} (60) differ only in how they are written; make them one if they mean one class"
    )


@pytest.mark.parametrize("slip", ["postive", "possitive", "positvie", "pozitive", "positivee", "Postive"])
def test_rare_misspellings(slip):
    assert about({"positive": 100, "negative": 100, slip: 3}, slip) == [
        f"is {slip!r} (3) a misspelling of 'positive' (100)?"
    ]
    assert not about({"positive": 100, "negative": 100, slip: 60}, slip)  # as common as that, it is another word


@pytest.mark.parametrize(
    "names",
    [
        ("-1", "1", "0"),
        ("A-", "A", "A+"),
        ("C", "C++", "C#"),
        ("1", "2", "10", "1.5"),
        ("1-2", "12", "1 2"),
        ("unknown", "known", "no", "yes", "other"),
        ("true", "false"),
        ("increase", "decrease", "like", "unlike"),
        ("class10", "class11", "class100"),
    ],
)
@pytest.mark.parametrize("rare", [2, 50])
def test_other_names_are_left_alone(names, rare):
    assert suspicious(dict.fromkeys(names[:-1], 50) | {names[-1]: rare}) == []


def test_classes_of_one_example():
    assert suspicious({"a": 5, "b": 1}) == ["1 class has one example only, too few to learn from: 'b'"]
    many = suspicious({str(i): 1 for i in range(1, 1235)})
    assert many == [
        "1,234 classes have one example only, too few to learn from: '1', '2', '3', '4', '5' and 1,229 more"
    ]


def test_several_at_once_and_each_once():
    counts = Counter({"positive": 200, "Positive": 9, "postive": 1, "neg": 80, "NEG": 1, "Neg": 2})
    sentences = suspicious(counts)
    assert len(sentences) == len(set(sentences))
    assert len(about(counts, "neg", "NEG", "Neg")) == 1
    assert about(counts, "positive", "Positive")
    assert about(counts, "postive", "positive")


def test_a_thousand_long_names():
    """Comparing each with each would take minutes."""
    assert suspicious({f"a name of some length, {'x' * (i % 97)}{'y' * (i // 97)}": 2 for i in range(1000)}) == []
