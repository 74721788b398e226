"""Classification: files become examples, mistakes in them are named, answers are measured."""

import json
import math
import random
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import assert_same, batch_of, bert_config, gradients, packed, sequences, shake

from minillm import evaluate
from minillm.batching import DocumentTable
from minillm.errors import UserError
from minillm.heads import MultiLabelClassifier, SequenceClassifier
from minillm.metrics import Interval
from minillm.metrics.classes import TEMPERATURES
from minillm.objective import backward
from minillm.report import score_of
from minillm.tasks.classes import in_order
from minillm.tasks.classify import Classify, Labelled, Options, Prediction, worst_mistakes
from minillm.tasks.multi_label import MultiLabel


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
    command = task.next_command(Path("runs/a run"))
    assert command == r"python -m minillm classify 'runs/a run' --pairs $'a text\tanother'"


def test_what_is_held_out_is_never_trained_on(write):
    train = write("a.jsonl", [*ROWS, ("again", 1), ("again", 0)])
    task = load(train, write("b.jsonl", [("fine", 1)]), write("c.jsonl", [("again", 1)]))
    assert [example.texts[0] for example in task.splits.train] == ["good", "bad"]


# ---- without --dev -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(100, 100), (150, 7, 2), (3, 2), (40, 1), (1000, 10, 10, 10)])
def test_a_share_of_every_class_is_held_out(write, sizes):
    rows = [(f"text {i} of {name}", name) for name, size in enumerate(sizes) for i in range(size)]
    random.Random(0).shuffle(rows)
    task = load(write("a.jsonl", rows), None)
    train, dev = (Counter(e.label for e in split) for split in (task.splits.train, task.splits.dev))
    for name, size in enumerate(sizes):
        assert dev[str(name)] == (max(1, round(size / 10)) if size > 1 else 0)
        assert train[str(name)] == size - dev[str(name)]
    assert {(e.texts[0], int(e.label)) for e in task.splits.train + task.splits.dev} == set(rows)
    assert f"--dev is not given: {sum(dev.values()):,} examples of --train" in task.notes[0]
    assert load(write("a.jsonl", rows), None).splits == task.splits


def test_examples_of_one_text_are_on_one_side(write):
    rows = [(f"text {i // 3}", i % 2) for i in range(300)]
    splits = load(write("a.jsonl", rows), None).splits
    assert len(splits.train) + len(splits.dev) == 300
    assert not {e.texts for e in splits.train} & {e.texts for e in splits.dev}


def test_of_what_is_tested_nothing_is_held_out_from_training_again(write):
    rows = [(f"text {i}", i % 2) for i in range(100)]
    task = load(write("a.jsonl", rows), None, write("test.jsonl", rows[:20]))
    assert (len(task.splits.train), len(task.splits.dev), len(task.splits.test)) == (72, 8, 20)
    assert "left out of --train, where they stand, too: 20 of 20 test examples" in task.notes


# ---- what looks like a mistake -------------------------------------------------------------------


def test_what_a_person_should_know_of_the_classes(write):
    rows = [*[(f"text {i}", "positive") for i in range(60)], ("a", "Negative"), ("b", "negative"), ("c", "nan")]
    notes = "\n".join(load(write("a.jsonl", [*rows, ("a", "positive")]), write("b.jsonl", [("x", "nan")])).notes)
    assert "4 classes: positive 61, Negative 1, negative 1, nan 1" in notes
    for sentence in ("missing value", "differ only in how they are written", "1 text stands in --train with different"):
        assert sentence in notes


OPEN = 'text,label\n"It was dull,bad\nIt was fine,good\nhe said.",good\nfine,good\ndull,bad\nIt was so so,bad\n'


@pytest.mark.parametrize(
    ("content", "is_said"),
    [
        (OPEN, True),
        (OPEN.replace('"', ""), False),
        ('label;text\nbad;"It was dull\ngood;It was fine\nbad;he said"\ngood;so so\n', True),
        ('text,label\n"First, good,\nthen bad, bad\nbad, too",bad\nfine,good\n', False),  # a text of three lines
    ],
    ids=["open", "closed", "label first", "lines"],
)
def test_a_quote_that_is_left_open_is_said(write, tmp_path, content, is_said):
    """It swallows the rows up to the next one, which are text then."""
    (tmp_path / "a.csv").write_text(content)
    notes = load(tmp_path / "a.csv", write("b.jsonl", [("x", "bad")])).notes
    assert any("1 text holds lines that look like rows, with a class" in note for note in notes) == is_said


def test_equal_numbers_are_one_class_in_every_kind_of_file(write, tmp_path):
    (tmp_path / "a.csv").write_text("text;label\nw;0\nx;1.0\ny;0.0\nz;1\n")
    task = load(tmp_path / "a.csv", write("dev.jsonl", [("v", 1.0), ("u", "0")]))
    assert task.classes == ["0", "1"]
    assert [example.label for example in task.splits.dev] == ["1", "0"]


# ---- what suits the data -------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "steps"), [(200, 400), (6920, 650), (100_000, 6000)])
def test_few_texts_take_a_least_number_of_steps_and_many_a_most(write, size, steps):
    task = load(write("a.jsonl", [(f"text {i}", i % 2) for i in range(size)]), write("b.jsonl", [("x", 1)]))
    recipe = task.recipe(None, None)
    assert recipe["epochs"] * size / recipe["batch_examples"] == pytest.approx(steps, rel=0.01)


def test_a_result_that_says_little_is_said_in_words(write):
    rows = [("good film", "a"), ("bad film", "b"), ("fine film", "a")]
    task = load(write("a.jsonl", rows), write("b.jsonl", [("x", "a")]))
    sure, unsure, better = (Interval(x, x - 0.1, x + 0.1) for x in (0.9, 0.55, 0.95))
    said = {"accuracy": sure, "majority": unsure, "naive_bayes": unsure}
    assert task.remarks(said) == []
    assert "naive Bayes, which only counts words, does better here" in task.remarks(said | {"naive_bayes": better})[0]
    assert "always answering 'a', the commonest class" in task.remarks(said | {"accuracy": unsure})[0]


def test_wrong_data(write):
    good = write("good.jsonl", ROWS)
    cases = [
        (None, None, "give --train FILE"),
        (good, good, r"--dev is the file of --train, .*good\.jsonl: leave it out"),
        (write("two.jsonl", ROWS[:2]), None, "too few examples to hold any out; give --dev FILE"),
        (write("one.jsonl", [("a", 1), ("b", "1")]), good, r"one\.jsonl holds one class only, '1'"),
        (good, write("new.jsonl", [("x", 1), ("y", 2)]), r"new\.jsonl:2: no .* has the label '2', only '0', '1'"),
        (good, write("empty.jsonl", [("x", 1), (" ", 1)]), r"empty\.jsonl:2: 'text' is empty"),
        (write("name.jsonl", ROWS, text="body"), good, r"name\.jsonl:1 has no field 'text', only 'body', 'label'"),
        (write("null.jsonl", [("a", None)]), good, r"null\.jsonl:1: 'label' is empty"),
        (write("ids.jsonl", [(f"text {i}", i) for i in range(1001)]), good, r"ids\.jsonl: 'label' has 1,001 different"),
        (write("n.jsonl", [(f"text {i}", i) for i in range(40)]), good, "another one in every line.* --task regress"),
        (good, write("all.jsonl", [("bad", 0)]), r"all examples of the class '0' of .*good\.jsonl are held"),
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
    assert measured.keys() == {"accuracy", "macro_f1", "calibration_error"}
    baselines = task.baselines(examples("b", "a", "a", "b"))
    assert baselines["majority"].value == 0.5  # "b", the commonest in training
    assert baselines["naive_bayes"].value == 0.75  # the number in the text tells 0 b, 1 a, 2 b, 3 b
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
    row = {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert json.loads(json.dumps(details)) == {
        "by_class": {"a": row, "b": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}},
        "confusion": {"a": {"a": 1}, "b": {"a": 1, "b": 1}},
        "worst_mistakes": [{"texts": ["text 1"], "label": "b", "answer": "a", "probability": 0.8}],
    }


# ---- how much each class counts --------------------------------------------------------------------


@pytest.mark.parametrize("option", ["balanced", "b=3,a = 0.5"])
def test_class_weights_are_those_of_torch(write, option):
    """The loss of a step, whatever it is cut into, is torch's weighted mean, and so is its gradient."""
    rows = [("1", "a"), ("2", "b"), ("3", "b"), ("4", "b"), ("5", "c")]
    options = Options(write("a.jsonl", rows), write("b.jsonl", [("6", "a")]), class_weights=option)
    task = Classify(options, seed=0)
    weights = {"balanced": [5 / 3, 5 / 9, 5 / 3], "b=3,a = 0.5": [0.5, 3, 1]}[option]
    model = shake(SequenceClassifier(bert_config(), task.classes)).eval()
    batches = [
        batch_of(*packed(sequences((3, 5, 2), seed)), labels=torch.tensor(labels))
        for seed, labels in enumerate([[0, 1, 2], [1, 1, 0]])
    ]
    count = sum(map(task.count, batches))
    loss = sum(backward(model, b, w) for b, w in zip(batches, task.weights(model, batches, count), strict=True))
    found = gradients(model)
    logits = torch.cat([model(b.tokens, b.packing, b.segments) for b in batches])
    labels = torch.cat([b.labels for b in batches])
    truth = F.cross_entropy(logits, labels, weight=torch.tensor(weights, dtype=torch.float64))
    truth.backward()
    assert float(loss) == pytest.approx(truth.item(), rel=1e-6)
    assert_same(gradients(model), found, tolerance=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("bad=1,worse=2", "no training example is of class 'worse', only '0', '1'"),
        ("1", "expected balanced, or NAME=WEIGHT"),
        ("", "expected balanced, or NAME=WEIGHT"),
        ("0=-1", "'-1' is no weight"),
        ("0=inf", "'inf' is no weight"),
        ("0=much", "'much' is no weight"),
        ("0=1,1=2, 0=5", "'0' is there twice"),
    ],
)
def test_class_weights_that_are_none(write, option, message):
    option = option.replace("bad", "0")
    with pytest.raises(UserError, match="--class-weights .*: " + message.replace(".", r"\.")):
        Classify(Options(write("a.jsonl", ROWS), write("b.jsonl", ROWS[:1]), class_weights=option), seed=0)


def test_class_weights_say_by_what_a_training_is_judged(write):
    """By the plain accuracy the best look would be that at which the weights had changed least."""
    rows = [("1", "a"), ("2", "b"), ("3", "b"), ("4", "b")]
    task = Classify(Options(write("a.jsonl", rows), write("b.jsonl", [("6", "a")]), class_weights="balanced"), seed=0)
    truth, answers = examples("a", "b", "b", "b"), [Prediction("b", 0.9)] * 4
    measured = {**task.measure(truth, answers), **task.baselines(truth)}
    assert score_of(task, measured) == pytest.approx(1 / 2)
    assert measured["accuracy"].value == 3 / 4
    assert measured["majority"].value == pytest.approx(1 / 2)  # as the headline counts
    assert task.remarks(measured)
    answers = [Prediction("a", 0.9), *[Prediction("b", 0.9)] * 2, Prediction("a", 0.9)]
    assert score_of(task, task.measure(truth, answers)) == pytest.approx(5 / 6)


def test_a_weighted_training_begins_with_weighted_odds(write):
    """p(class) · weight, as it minimises the weighted loss."""
    rows = [(f"{i} {'good' if i % 3 else 'bad'}", "ab"[i % 3 == 0]) for i in range(60)]
    starts = []
    for option in (None, "b=5"):
        task = Classify(Options(write("a.jsonl", rows), write("b.jsonl", rows[:9]), class_weights=option), seed=0)
        tokenizer = task.tokenizer()
        torch.manual_seed(0)
        model = task.new_model(tokenizer, Namespace(layers=1, width=32, heads=2, dropout=0.0))
        task.adapt(model, tokenizer)
        corpus = Namespace(table=DocumentTable([task.documents(e, tokenizer, None) for e in task.splits.train]))
        assert task.counts_first
        task.begin(model, corpus, None)
        starts.append(evaluate.read(model.eval(), tokenizer, [("good",), ("bad and good",)]))
    odds = starts[1][:, 1] - starts[1][:, 0] - (starts[0][:, 1] - starts[0][:, 0])
    assert odds == pytest.approx(math.log(5), abs=1e-4)


# ---- whether probabilities mean what they say ------------------------------------------------------


@pytest.mark.parametrize("kind", [Classify, MultiLabel])
def test_the_temperature_goes_into_the_last_product(write, kind, monkeypatch):
    """Answers stay, and the probabilities are those of softmax(logits / T), or σ(logits / T)."""
    rng = np.random.default_rng(0)
    logits = 5 * rng.standard_normal((300, 3))
    drawn = (logits / 8 + rng.gumbel(size=logits.shape)).argmax(axis=1)  # with less certainty than they claim
    rows = [(f"text {i}", f"c{k}") for i, k in enumerate(drawn)]
    problem = "multi" if kind is MultiLabel else "single"
    task = Classify(Options(write("a.jsonl", rows), write("b.jsonl", rows[::2]), problem=problem, calibrate=True), 0)
    assert type(task) is kind
    model = (MultiLabelClassifier if problem == "multi" else SequenceClassifier)(bert_config(), task.classes)
    monkeypatch.setattr(evaluate, "read", lambda *_: logits[::2])
    before = [parameter.clone() for parameter in model.classifier.parameters()]
    task.calibrate(model, None)
    assert task.temperature > 4
    for old, new in zip(before, model.classifier.parameters(), strict=True):
        torch.testing.assert_close(new, old / task.temperature)
    labels = np.array([task.label_of(example) for example in task.splits.dev])

    def nats(t):
        scaled = torch.from_numpy(logits[::2] / t)
        if problem == "single":
            return float(F.cross_entropy(scaled, torch.from_numpy(labels)))
        return float(F.binary_cross_entropy_with_logits(scaled, torch.from_numpy(labels)))

    assert nats(task.temperature) < min(nats(task.temperature * 1.02), nats(task.temperature / 1.02))
    assert "fitted on dev" in task.remarks_on_calibration()[0]
    for bound in TEMPERATURES:  # no answer is wrong, or they are no better than chance
        task.temperature_of = lambda *_, bound=bound: bound
        task.calibrate(model, None)
        assert task.temperature == 1
    assert "left the model as it is" in task.remarks_on_calibration()[0]
