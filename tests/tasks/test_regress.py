"""Regression: numbers of any scale are learned alike, and the saved model says them as they stand in the data."""

import json

import numpy as np
import pytest
import torch
from scripts import SMALL

import minillm.curves
import train_sft
from minillm.errors import UserError
from minillm.published.checkpoint import open_checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.tasks.regress import Estimate, Options, Rated, Regress

torch.manual_seed(0)


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
        return path

    return write


def rows(count, scale=1.0, offset=0.0, seed=0):
    """Texts of good and bad words; the label says how many more there are of the good ones."""
    rng = np.random.default_rng(seed)
    texts = [rng.choice(["good", "bad", "film"], size=6).tolist() for _ in range(count)]
    return [
        (f"{' '.join(words)} {i}", offset + scale * (words.count("good") - words.count("bad")))
        for i, words in enumerate(texts)
    ]


def test_numbers_are_read_from_texts_and_numbers(write, tmp_path):
    (tmp_path / "a.csv").write_text("text;label\nx;1.5\ny;-2\nz;1e3\n")
    task = Regress(Options(tmp_path / "a.csv", write("b.jsonl", [("w", 3), ("v", "4.5")])), 0)
    assert task.splits.train == [Rated(("x",), 1.5), Rated(("y",), -2.0), Rated(("z",), 1000.0)]
    assert [example.label for example in task.splits.dev] == [3.0, 4.5]
    assert task.notes[-1] == "labels from -2 to 1000, mean 333.2"


def test_every_size_of_label_is_held_out(write):
    task = Regress(Options(write("a.jsonl", [(f"text {i}", i**3) for i in range(200)])), 0)
    dev = sorted(example.label for example in task.splits.dev)
    assert len(dev) == 20
    assert [sum(low**3 <= label < (low + 20) ** 3 for label in dev) for low in range(0, 200, 20)] == [2] * 10


def test_wrong_data(write):
    good = write("good.jsonl", [("a", 1), ("b", 2)])
    for path, sentence in (
        (write("word.jsonl", [("a", "three")]), r"word\.jsonl:1: 'label' is \"three\", but a number was expected"),
        (write("nan.jsonl", [("a", "nan")]), r"nan\.jsonl:1: 'label' is \"nan\""),
        (write("python.jsonl", [("a", "1_000")]), r"python\.jsonl:1: 'label' is \"1_000\""),
        (write("same.jsonl", [("a", 2), ("b", 2.0)]), r"all labels of .*same\.jsonl are 2; there is nothing to learn"),
        (None, "--task regress learns from your own examples"),
    ):
        with pytest.raises(UserError, match=sentence):
            Regress(Options(path, good if path else None), 0)


def test_measures_and_rewards(write):
    task = Regress(Options(write("a.jsonl", [("a", 0), ("b", 2)]), write("b.jsonl", [("c", 1)])), 0)
    examples = [Rated((str(i),), float(i)) for i in range(5)]
    measured = task.measure(examples, [Estimate(float(i)) for i in (0, 1, 2, 3, 6)])
    assert measured["squared_error"].value == pytest.approx(4 / 5)
    assert measured["unexplained"].value == pytest.approx(4 / 10)
    assert measured["spearman"].value == pytest.approx(1.0)
    assert task.baselines(examples)["of_the_mean"].value == pytest.approx((1 + 0 + 1 + 4 + 9) / 5)
    assert task.reward(examples[:2], [Estimate(0.0), Estimate(1.5)]) == {"nearness": [1.0, 0.5]}
    assert task.measure(examples, [Estimate(2.0)] * 5).keys() == {"unexplained", "squared_error"}
    assert "always saying the mean" in task.remarks(task.measure(examples, [Estimate(2.0)] * 5))[0]


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1000.0, 50_000.0), (1e-3, -7.0)])
def test_labels_of_every_scale_are_learned_alike(write, tmp_path, monkeypatch, scale, offset):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    train, dev = write("a.jsonl", rows(120, scale, offset)), write("b.jsonl", rows(40, scale, offset, seed=1))
    shape = SMALL | {"width": 32, "lr": 0.01, "embedding_lr": 0.01, "batch_tokens": 200, "dropout": 0.0}
    options = Options(train, dev)
    run = train_sft.train(
        train_sft.Args(task="regress", steps=80, out=tmp_path / "run", options=options, keep="last", **shape)
    )
    metrics = json.loads(run.path("metrics.json").read_text())
    assert metrics["dev_unexplained"] < 0.2
    # What was saved says the numbers of the data, as a task that only answers finds.
    saved, tokenizer = open_checkpoint(run.folder), load_tokenizer(run.folder)
    task = Regress(Options(dev=dev), 0)
    model = saved.load("score")
    task.adapt(model, tokenizer)
    found = task.measure(task.splits.dev, task.answer(model, tokenizer, task.splits.dev))
    assert found["squared_error"].value == pytest.approx(metrics["dev_squared_error"], rel=1e-2)
    more = train_sft.Args(task="regress", init=run.folder, steps=1, out=tmp_path / "more", options=options)
    again = json.loads(train_sft.train(more).path("metrics.json").read_text())
    assert again["dev_unexplained"] < 0.3  # it goes on from what it knew, and not from numbers of another scale
