"""What tasks share that learn from files: fields by their roles, what is held out, where nothing can be."""

import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import records
from minillm.errors import UserError
from minillm.records import Record
from minillm.tasks.files import Fields, Options, divide, load

ROLES = ("text", "label", "text2")


def record(**fields):
    return Record("a.jsonl:7", fields)


def test_fields_are_called_as_their_roles():
    fields = Fields(None, ROLES)
    assert fields.text(record(text=" a "), "text") == "a"
    assert fields.name("label") == "label"
    assert fields.has(record(text="a", text2="b"), "text2")
    assert not fields.has(record(text="a"), "text2")


def test_fields_of_other_names():
    fields = Fields(" text = review , label=stars", ROLES)
    assert fields.text(record(review="a", text="b"), "text") == "a"
    assert fields.name("label") == "stars"
    with pytest.raises(UserError, match=r"a\.jsonl:7 has no field 'review'"):
        fields.text(record(text="b"), "text")


def test_a_role_of_several_fields():
    fields = Fields("prompt=instruction+input", ("prompt", "answer"))
    assert fields.text(record(instruction="do", input="this"), "prompt") == "do\nthis"
    assert fields.text(record(instruction="do", input=" "), "prompt") == "do"
    with pytest.raises(UserError, match=r"a\.jsonl:7: 'instruction' and 'input' are empty"):
        fields.text(record(instruction="", input=" "), "prompt")
    with pytest.raises(UserError, match=r"prompt must be one field, not instruction\+input"):
        fields.name("prompt")


@pytest.mark.parametrize("option", ["text", "text=", "body=x", "text=a,text=b", "text=a;label=b,", "text=a+", "=a"])
def test_wrong_fields(option):
    with pytest.raises(UserError, match=r"--fields .*: expected text=NAME, label=NAME, text2=NAME"):
        Fields(option, ROLES)


def test_one_field_has_one_role():
    with pytest.raises(UserError, match="different roles must be different fields"):
        Fields("text=a,label=a", ROLES)


# ---- splits --------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    def write(name, texts):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return path

    return write


def read(path, train):
    return [record.text("text") for record in records.read(path)]


def splits(train=None, dev=None, test=None):
    return load(Options(train, dev, test), "shout", read, str.casefold)


def test_what_is_held_out_is_never_trained_on(write):
    found, notes = splits(write("a.jsonl", ["a", "b", "c", "D"]), write("b.jsonl", ["B", "e"]), write("c.jsonl", ["d"]))
    assert vars(found) == {"train": ["a", "c"], "dev": ["B", "e"], "test": ["d"], "unlabelled": []}
    few = "only 2 examples to learn from: what comes of that is mostly chance"
    leaks = "left out of --train, where they stand, too: 1 of 2 dev examples and 1 of 1 test example"
    assert notes == [leaks, few]


def test_held_out_examples_that_are_no_new_ones_are_said(write):
    """Copies of each other there, and of what is given to learn from, which is not learned from then."""
    train = [f"text {i}" for i in range(40)]
    _, notes = splits(
        write("a.jsonl", train), write("b.jsonl", ["x", "X", "x", "text 1"]), write("c.jsonl", ["y", "z"])
    )
    leaks, copies = notes
    assert leaks == "left out of --train, where they stand, too: 1 of 4 dev examples"
    assert copies.startswith("copies of one another: 2 of 4 dev examples; unless texts recur")
    assert splits(write("a.jsonl", train), write("b.jsonl", ["x", "y"]), write("c.jsonl", ["x"]))[1] == []
    _, notes = splits(write("a.jsonl", [text for text in train for _ in range(2)]))
    assert notes[0] == "--dev is not given: 8 examples of --train are held out instead"
    assert notes[1].startswith("copies of one another: 4 of 8 dev examples;")


def test_a_part_is_held_out_and_said(write):
    found, notes = splits(write("a.jsonl", [f"text {i}" for i in range(40)]))
    assert (len(found.train), len(found.dev), found.test) == (36, 4, [])
    assert notes == ["--dev is not given: 4 examples of --train are held out instead"]


def test_files_that_are_only_to_be_answered(write):
    found, notes = splits(test=write("a.jsonl", ["a"]))
    assert (vars(found), notes) == ({"train": [], "dev": [], "test": ["a"], "unlabelled": []}, [])


def test_splits_that_cannot_be(write):
    one, two = write("a.jsonl", ["a"]), write("b.jsonl", ["b", "B"])
    for files, sentence in (
        ((), "--task shout learns from your own examples: give --train FILE"),
        ((one, one), r"--dev is the file of --train, .*a\.jsonl: leave it out"),
        ((one,), "too few examples to hold any out; give --dev FILE"),
        ((two, write("c.jsonl", ["b"])), r"all examples of .*b\.jsonl are held out, too"),
        ((one, Path("none.jsonl")), r"cannot read none\.jsonl"),
    ):
        with pytest.raises(UserError, match=sentence):
            splits(*files)


pairs = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), min_size=1, max_size=60)


@given(pairs, st.floats(0.01, 0.5))
def test_a_division_is_stratified_and_keeps_together_what_is_the_same(examples, share):
    key, stratum = partial(take, 0), partial(take, 1)
    keys_of = {group: {k for k, g in dict(examples).items() if g == group} for _, group in examples}
    try:
        train, dev = divide(examples, share, key, stratum)
    except UserError:
        assert all(len(keys) < 2 for keys in keys_of.values()) or len(dict(examples)) < 2
        return
    assert sorted(train + dev) == sorted(examples)
    assert not set(map(key, train)) & set(map(key, dev))
    for keys in keys_of.values():
        assert len(keys & set(map(key, dev))) == (max(1, round(share * len(keys))) if len(keys) > 1 else round(share))


def take(index, pair):
    return pair[index]
