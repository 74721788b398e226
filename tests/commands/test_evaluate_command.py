"""`evaluate` and `compare` on runs of several tasks: a training's figures once more, and what is said of them."""

import io
import json
import random
import re
import shutil
import sys

import pytest
import scripts
from model_folders import write_bert, write_gpt

import minillm.__main__
import minillm.curves
import train_sft
from minillm import cli
from minillm.commands.compare import in_words
from minillm.heads import SequenceClassifier
from minillm.metrics import Interval

pytest.importorskip("tokenizers")
SMALL = {"layers": 1, "width": 16, "heads": 2, "precision": "fp32", "evaluations": 1}


def reviews(path, number, seed, classes=("bad", "good"), fields=("text", "label")):
    """Texts with a word that mostly tells the class."""
    rng = random.Random(seed)
    lines = []
    for _ in range(number):
        label = rng.choice(classes)
        words = [*rng.choices(["the", "a", "film", "it", "was"], k=rng.randint(1, 6)), label + "ly"]
        true = rng.choice(classes) if rng.random() < 0.2 else label
        lines.append(json.dumps(dict(zip(fields, (" ".join(words), true), strict=True))) + "\n")
    path.write_text("".join(lines))
    return path


LEARNED_FROM = {"seq2seq": "talks", "chat": "talks", "tag": "tags", "preference": "pairs", "regress": "numbers"}
WORDS = ["one", "two", "three", "four", "five", "six", "seven"]
TALKS = [(f"say {a} {b} to {c}", f"{a} {b}") for a in WORDS for b in WORDS for c in ("me", "us")]
TRIPLES = [["see", a, b, c] for a in WORDS for b in WORDS for c in ("me", "us")]


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def trained(folder, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        assert scripts.main(train_sft, out=folder, **{**SMALL, **options}) == 0
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Runs of three tasks, a classifier of which nobody knows where it is from, and files."""
    folder = tmp_path_factory.mktemp("runs")
    files = {"train": reviews(folder / "train.jsonl", 200, 0), "dev": reviews(folder / "dev.jsonl", 80, 1)}
    trained(folder / "good", task="classify", steps=40, lr=0.01, embedding_lr=0.01, **files)
    trained(folder / "poor", task="classify", steps=1, keep="last", model="bert", **files)
    trained(folder / "words", task="pronounce", steps=30, batch_tokens=64, **scripts.write_words(folder))
    (folder / "text.txt").write_text("to be or not to be, that is the question. " * 30)
    trained(folder / "lm", task="lm", train=folder / "text.txt", context=16, steps=5, batch_tokens=64)
    write_lines(folder / "talks.jsonl", (dict(zip(("prompt", "answer"), talk, strict=True)) for talk in TALKS))
    write_lines(folder / "tags.jsonl", ({"tokens": words, "tags": ["O", "B-A", "I-A"]} for *words, _ in TRIPLES))
    pairs = ({"prompt": a, "chosen": f"{b} please", "rejected": b} for a, b in TALKS)
    write_lines(folder / "pairs.jsonl", pairs)
    write_lines(folder / "numbers.jsonl", ({"text": a, "label": 1.5 * len(b)} for a, b in TALKS))
    for task, file in LEARNED_FROM.items():
        trained(folder / task, task=task, train=folder / f"{file}.jsonl", steps=3, batch_tokens=256)
    write_bert(folder / "judge", SequenceClassifier, ["bad", "good"])
    write_gpt(folder / "gpt")
    reviews(folder / "stars.jsonl", 30, 2, fields=("review", "stars"))
    reviews(folder / "strange.jsonl", 30, 3, ("good", "ugly"))
    reviews(folder / "one.jsonl", 20, 4, ("good",))
    return folder


def command(here, *argv):
    """→ exit code, stdout, stderr."""
    streams = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["minillm", *argv])
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        patch.setenv("COLUMNS", "200")
        patch.chdir(here)
        try:
            cli.run(minillm.__main__.main)
        except SystemExit as stop:
            return stop.code, *(stream.getvalue() for stream in streams)
    return 0, *(stream.getvalue() for stream in streams)


def as_json(here, *argv):
    code, out, err = command(here, *argv, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(
    ("run", "file"),
    [("good", "train.jsonl"), ("words", "train.txt"), *((run, f"{file}.jsonl") for run, file in LEARNED_FROM.items())],
)
def test_a_file_that_was_trained_on_is_said_to_be_one(here, run, file):
    code, out, err = command(here, "evaluate", run, "--file", file, "--json")
    assert code == 0, err
    examples = json.loads(out)["examples"]
    (count,) = re.findall(rf"{run} was trained on (\d+) of the {examples} examples of {file}, which flatter ", err)
    assert 0.5 * examples < int(count) <= examples  # the others were held out


def test_a_file_that_was_not_trained_on_is_no_cause_for_a_note(here, tmp_path):
    write_lines(tmp_path / "new.jsonl", [{"text": "nobody wrote that", "label": "good"}])
    for run, file in (("good", tmp_path / "new.jsonl"), ("words", "dev.txt")):
        code, _, err = command(here, "evaluate", run, "--file", str(file))
        assert code == 0
        assert "was trained on" not in err


@pytest.mark.parametrize("run", ["good", "words", "lm", "seq2seq", "chat", "tag", "preference", "regress"])
def test_a_run_is_measured_as_it_was_after_its_training(here, run):
    saved = json.loads((here / run / "metrics.json").read_text())
    found = as_json(here, "evaluate", run, "--precision", "fp32")
    assert found["metrics"]
    for name, figures in found["metrics"].items():
        for key, end in (("value", ""), ("low", "_low"), ("high", "_high")):
            assert figures[key] == pytest.approx(saved[f"dev_{name}{end}"], rel=1e-5)


@pytest.mark.parametrize(("run", "file"), [("good", "dev.jsonl"), ("words", "dev.txt")])
def test_a_file_is_measured_where_the_training_data_is_gone(here, run, file, tmp_path):
    shutil.copytree(here / run, tmp_path / run)
    shutil.copy(here / file, tmp_path / file)
    args = json.loads((tmp_path / run / "args.json").read_text())
    args |= {"train": str(tmp_path / "gone"), "dev": None, "test": None}
    (tmp_path / run / "args.json").write_text(json.dumps(args))
    found = as_json(tmp_path, "evaluate", run, "--file", file, "--precision", "fp32")
    assert found["metrics"] == as_json(here, "evaluate", run, "--precision", "fp32")["metrics"]


def test_predictions_are_written_for_every_example(here, tmp_path):
    out = tmp_path / "answers.jsonl"
    code, printed, err = command(here, "evaluate", "good", "--predictions", str(out), "--precision", "fp32")
    assert code == 0, err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    examples = [json.loads(line) for line in (here / "dev.jsonl").read_text().splitlines()]
    assert [(line["texts"], line["label"]) for line in lines] == [([e["text"]], e["label"]) for e in examples]
    right = sum(line["answer"]["label"] == line["label"] for line in lines) / len(lines)
    assert f"{right:.1%}" in printed
    assert "macro-F1" in printed


def test_predictions_of_other_tasks(here, tmp_path):
    out = tmp_path / "answers.jsonl"
    for run, keys in {
        "words": {"prompt", "answers", "answer"},
        "lm": {"text", "nats", "tokens"},
        "seq2seq": {"prompt", "answers", "answer"},
        "chat": {"messages", "answer"},
        "tag": {"words", "tags", "intent", "answer"},
        "preference": {"prompt", "chosen", "rejected", "answer"},
        "regress": {"texts", "label", "answer"},
    }.items():
        assert command(here, "evaluate", run, "--predictions", str(out))[0] == 0
        assert {frozenset(json.loads(line)) for line in out.read_text().splitlines()} == {frozenset(keys)}


def test_a_published_checkpoint_is_measured(here):
    options = ("--task", "classify", "--file", "stars.jsonl", "--fields", "text=review,label=stars")
    found = as_json(here, "evaluate", "judge", *options)
    assert found["examples"] == 30
    assert 0 <= found["metrics"]["accuracy"]["value"] <= 1


def test_a_file_may_lack_a_class(here):
    """And the model keeps the classifier it has."""
    found = as_json(here, "evaluate", "good", "--file", "one.jsonl")["metrics"]["accuracy"]["value"]
    assert found > 0.6


REFUSED = {
    "no file": (("evaluate", "judge", "--task", "classify"), "give --file FILE"),
    "no task": (("evaluate", "judge", "--file", "dev.jsonl"), "give --task"),
    "another head": (
        ("evaluate", "gpt", "--task", "classify", "--file", "dev.jsonl"),
        "gpt has a head for 'lm', but --task classify needs 'classify'",
    ),
    "a class it does not know": (
        ("evaluate", "good", "--file", "strange.jsonl"),
        "strange.jsonl has the class 'ugly', but good knows only 'bad', 'good'",
    ),
    "missing file": (("evaluate", "good", "--file", "no.jsonl"), "cannot read no.jsonl"),
    "missing model": (("evaluate", "nothing", "--file", "dev.jsonl"), "nothing"),
    "wrong fields": (
        ("evaluate", "good", "--file", "stars.jsonl"),
        "has no field 'label', only 'review', 'stars'; say what is what with --fields",
    ),
    "nothing to read": (
        ("evaluate", "gpt", "--task", "arithmetic", "--file", "dev.jsonl"),
        "--task arithmetic reads no such files: leave --file out",
    ),
    "one model": (("compare", "good"), "compare takes two models, not 1"),
    "other tasks": (("compare", "good", "words"), "good learned classify and words pronounce"),
}


@pytest.mark.parametrize(("argv", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(here, argv, sentence):
    code, out, err = command(here, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_the_better_run_is_found(here):
    code, out, err = command(here, "compare", "good", "poor")
    assert code == 0, err
    assert "good is better by " in out
    assert " points [" in out
    found = as_json(here, "compare", "poor", "good")
    first, second = (each["accuracy"]["value"] for each in found["metrics"])
    difference = found["difference"]["accuracy"]
    assert difference["value"] == pytest.approx(first - second)
    assert difference["low"] < difference["value"] < difference["high"] < 0


def test_the_examples_of_the_test_split_are_the_runs_own(here):
    """They give what the training measured of them; who has none is told."""
    measured = json.loads((here / "words" / "metrics.json").read_text())
    for split in ("dev", "test"):
        found = as_json(here, "evaluate", "words", "--split", split)
        assert found["metrics"]["wer"]["value"] == measured[f"{split}_wer"]
    code, _, err = command(here, "evaluate", "good", "--split", "test")
    assert code == 2
    assert "good has no test examples of its own: give --file FILE" in err
    code, _, err = command(here, "evaluate", "words", "--split", "test", "--file", "dev.jsonl")
    assert code == 2
    assert "leave one out" in err


def test_a_run_is_no_better_than_itself(here):
    code, out, err = command(here, "compare", "words", "words")
    assert code == 0, err
    assert "no difference can be told from 27 examples" in out


def test_runs_with_other_dev_examples_need_a_file(here, tmp_path):
    shutil.copytree(here / "good", tmp_path / "other")
    args = json.loads((tmp_path / "other" / "args.json").read_text())
    (tmp_path / "other" / "args.json").write_text(json.dumps({**args, "dev": str(here / "one.jsonl")}))
    code, _, err = command(here, "compare", "good", str(tmp_path / "other"))
    assert code == 2
    assert "have different examples: give both the same with --file FILE" in err
    assert command(here, "compare", "good", str(tmp_path / "other"), "--file", "dev.jsonl")[0] == 0


def test_differences_in_words():
    names, better = ["a", "b"], Interval(0.012, 0.003, 0.021)
    assert in_words(better, names, 872, "higher") == "a is better by 1.2 points [0.3, 2.1]"
    assert in_words(better, names, 872, "lower") == "b is better by 1.2 points [0.3, 2.1]"
    assert in_words(better.turned(), names, 872, "higher") == "b is better by 1.2 points [0.3, 2.1]"
    assert in_words(better.turned(), names, 872, "lower") == "a is better by 1.2 points [0.3, 2.1]"
    assert in_words(better.turned(), names, 872, "") == "b is higher by 1.2 points [0.3, 2.1]"
    unclear = Interval(1.25, -0.5, 3, ".1f")
    assert in_words(unclear, names, 872, "higher") == "no difference can be told from 872 examples: 1.2 [-0.5, 3.0]"
