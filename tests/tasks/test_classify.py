"""Classification: files become examples, mistakes in them are named, answers are measured."""

import json

import pytest

from minillm.errors import UserError
from minillm.tasks.classify import Classify, Fields, Labelled, Options, Prediction, in_order, worst_mistakes


@pytest.fixture
def write(tmp_path):
    """Rows (text, label) to a JSONL file."""

    def write(name, rows, **names):
        names = {"text": "text", "label": "label", **names}
        path = tmp_path / name
        lines = (json.dumps(dict(zip(names.values(), row, strict=True))) for row in rows)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def load(train, dev, test=None, fields=None):
    return Classify(Options(train, dev, test, fields), seed=0)


ROWS = [("good", 1), ("bad", 0), ("fine", 1)]


def test_labels_of_words_and_numbers(write):
    numbers = load(write("a.jsonl", [("x", 10), ("y", "9.5"), ("z", 2.0)]), write("b.jsonl", [("w", "10")]))
    assert numbers.classes == ["2", "9.5", "10"]
    assert numbers.splits.dev == [Labelled(("w",), "10")]
    words = load(write("a.jsonl", [("x", "b"), ("y", "a"), ("z", 1)]), write("b.jsonl", [("w", "a")]))
    assert words.classes == ["1", "a", "b"]


def test_csv_and_jsonl_are_the_same_task(write, tmp_path):
    (tmp_path / "a.csv").write_text("label,text\n1,good\n0,bad\n1,fine\n")
    dev = write("dev.jsonl", [("well", 0)])
    tasks = [load(path, dev) for path in (tmp_path / "a.csv", write("a.jsonl", ROWS))]
    assert tasks[0].splits == tasks[1].splits
    assert tasks[0].classes == tasks[1].classes == ["0", "1"]


def test_fields_have_names_of_ones_own(write):
    train, dev = (write(name, ROWS[:2], text="review", label="stars") for name in ("a.jsonl", "b.jsonl"))
    (dev).write_text('{"review": "new", "stars": 1, "rest": null}\n')
    task = load(train, dev, fields="text=review, label=stars")
    assert task.splits.train == [Labelled(("good",), "1"), Labelled(("bad",), "0")]


def test_pairs(tmp_path):
    for name, label in (("a", "yes"), ("b", "no")):
        lines = [
            {"premise": f"{name}1", "claim": "x", "label": label},
            {"premise": f"{name}2", "claim": "y", "label": "no"},
        ]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = load(tmp_path / "a.jsonl", tmp_path / "b.jsonl", fields="text=premise,text2=claim")
    assert task.splits.train == [Labelled(("a1", "x"), "yes"), Labelled(("a2", "y"), "no")]
    assert task.splits.train[0].prompt == "a1 / x"


@pytest.mark.parametrize("option", ["", "text", "text=", "body=x", "text=a,text=b", "text=a;label=b,"])
def test_wrong_fields(option):
    if option == "":
        assert Fields.parse(option) == ("text", "label", None)
    else:
        with pytest.raises(UserError, match=r"--fields .*: expected text=NAME,label=NAME"):
            Fields.parse(option)


def test_what_is_held_out_is_never_trained_on(write):
    train = write("a.jsonl", [*ROWS, ("again", 1), ("again", 0)])
    task = load(train, write("b.jsonl", [("fine", 1)]), write("c.jsonl", [("again", 1)]))
    assert [example.texts[0] for example in task.splits.train] == ["good", "bad"]


def test_wrong_data(write):
    good = write("good.jsonl", ROWS)
    cases = [
        (good, None, "give --train FILE and --dev FILE"),
        (None, good, "give --train FILE and --dev FILE"),
        (write("one.jsonl", [("a", 1), ("b", "1")]), good, r"one\.jsonl holds one class only, '1'"),
        (good, write("new.jsonl", [("x", 1), ("y", 2)]), r"new\.jsonl:2: no .* has the label '2', only '0', '1'"),
        (good, write("empty.jsonl", [("x", 1), (" ", 1)]), r"empty\.jsonl:2: 'text' is empty"),
        (write("name.jsonl", ROWS, text="body"), good, r"name\.jsonl:1 has no field 'text', only 'body', 'label'"),
        (write("null.jsonl", [("a", None)]), good, r"null\.jsonl:1: 'label' is null"),
        (write("ids.jsonl", [(f"text {i}", i) for i in range(1001)]), good, r"ids\.jsonl: 'label' has 1,001 different"),
        (good, write("all.jsonl", [("bad", 0)]), r"all examples of a class of .*good\.jsonl are held out"),
    ]  # fmt: skip
    for train, dev, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            load(train, dev)


def test_classes_are_in_order():
    assert in_order({"10", "9", "-1", "2.5"}) == ["-1", "2.5", "9", "10"]
    assert in_order({"10", "9", "b"}) == ["10", "9", "b"]


def examples(*labels):
    return [Labelled((f"text {i}",), label) for i, label in enumerate(labels)]


def test_measures_stand_beside_the_commonest_class(write):
    task = load(write("a.jsonl", [("1", "a"), ("2", "b"), ("3", "b")]), write("b.jsonl", [("4", "a")]))
    answers = [Prediction("b", 0.9), Prediction("a", 0.8), Prediction("a", 0.7), Prediction("a", 0.6)]
    measured = task.measure(examples("b", "a", "a", "b"), answers)
    assert measured["accuracy"].value == 0.75
    assert measured["macro_f1"].value == pytest.approx((0.8 + 2 / 3) / 2)
    assert measured["majority"].value == 0.5  # "b", the commonest in training
    assert task.reward(examples("b", "b"), [answers[0], Prediction("a", 1.0)]) == {"right": [1.0, 0.0]}


def test_the_worst_mistakes_are_the_surest():
    truth = examples(*"abab" * 10)
    answers = [Prediction("a", 0.5 + i / 100) for i in range(40)]
    worst = worst_mistakes(truth, answers)
    assert [guess.probability for _, guess in worst] == pytest.approx([0.89 - 0.02 * i for i in range(10)])
    assert all(example.label == "b" for example, _ in worst)


def test_details_tell_who_is_taken_for_whom(write):
    task = load(write("a.jsonl", [("1", "a"), ("2", "b")]), write("b.jsonl", [("3", "a")]))
    details = task.details(examples("a", "b", "b"), [Prediction("a", 0.9), Prediction("a", 0.8), Prediction("b", 0.7)])
    assert json.loads(json.dumps(details)) == {
        "confusion": {"a": {"a": 1}, "b": {"a": 1, "b": 1}},
        "worst_mistakes": [{"texts": ["text 1"], "label": "b", "answer": "a", "probability": 0.8}],
    }
