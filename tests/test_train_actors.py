"""Classifiers and taggers learn by reward, from end to end: on words of which each tells its class or its tag."""

import json
import random
import signal
from pathlib import Path

import pytest
import scripts
import torch
from safetensors.torch import load_file

import minillm.curves
import train_rl
import train_sft
from minillm import watch
from minillm.session import Session

pytest.importorskip("tokenizers")
OF_CLASS = {"good": ("great", "fine"), "bad": ("awful", "poor"), "other": ("table", "chair")}
OF_TAG = {"ann": "B-who", "bob": "B-who", "rome": "B-where", "oslo": "B-where", "saw": "O", "near": "O"}
COMMON = {"precision": "fp32", "evaluations": 1, "lr": 0.003, "embedding_lr": 0.003, "kernels": "auto"}
STEPS = 6


def write(path, number, seed):
    """Sentences with a class and a tag a word, for both tasks."""
    rng, lines = random.Random(seed), []
    for _ in range(number):
        label = rng.choice([*OF_CLASS])
        words = [rng.choice([*OF_TAG]) for _ in range(rng.randint(2, 4))]
        tags = [OF_TAG[word] for word in words]
        place = rng.randint(0, len(words))
        words.insert(place, rng.choice(OF_CLASS[label]))
        tags.insert(place, "O")
        lines.append(json.dumps({"text": " ".join(words), "label": label, "tokens": words, "tags": tags}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: write(folder / f"{name}.jsonl", size, seed) for seed, (name, size) in enumerate(SIZES.items())}


SIZES = {"train": 200, "dev": 60}
WITH_INTENT = {"fields": "intent=label"}


def main(script=train_rl, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        return scripts.main(script, **{**COMMON, **options})


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_a_classifier_learns_from_right_or_wrong_alone(files, tmp_path, capsys):
    assert main(task="classify", **files, steps=40, out=tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "naive Bayes" in said
    assert said.splitlines()[-1] == f"""next: python -m minillm classify {tmp_path / "run"} "a text of your own\""""
    found = metrics(tmp_path / "run")
    assert found["start_dev_accuracy"] < 0.7 < 0.95 < found["dev_accuracy"]
    assert found["answers"] == 40 * 32 * 4
    steps = [record for record in scripts.read_log(tmp_path / "run") if "lr" in record]
    assert steps[0]["verdict_bits"] > 0.5 > steps[-1]["verdict_bits"]
    assert (tmp_path / "run" / "report.html").exists()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["baselines"] == ["naive_bayes", "majority"]
    assert all(f"dev_{name}" in found for name in report["baselines"])
    assert all(table["rows"] for table in report["tables"]), "an empty table shows nothing"
    assert report["next"].startswith("python -m minillm classify")


@pytest.mark.parametrize(("options", "metric"), [({}, "f1"), (WITH_INTENT, "intent_accuracy")], ids=["tags", "intents"])
def test_a_tagger_learns_from_the_f1_of_its_sentences(files, tmp_path, options, metric):
    assert main(task="tag", **files, **options, steps=40, out=tmp_path / "run") == 0
    found = metrics(tmp_path / "run")
    assert found["dev_f1"] > 0.9
    assert found[f"dev_{metric}"] > found[f"start_dev_{metric}"]


def test_it_goes_on_from_a_run_and_can_be_measured(files, tmp_path, capsys):
    assert main(train_sft, task="classify", **files, steps=30, out=tmp_path / "start") == 0
    more = {"kl": "reward", "baseline": "greedy", "sft_share": 0.3, "reward": "balanced", "lora": 4}
    assert main(task="classify", init=tmp_path / "start", **more, steps=4, out=tmp_path / "run") == 0
    record = scripts.read_log(tmp_path / "run")[1]
    assert abs(record["kl"]) < 1e-4
    assert {"reward", "entropy", "groups_without_variance"} <= record.keys()
    assert json.loads((tmp_path / "run" / "args.json").read_text())["train"] == str(files["train"])


def test_under_lora_the_reference_keeps_the_head_that_it_began_with(files, tmp_path, monkeypatch):
    seen, real = [], watch.look_at

    def look_at(*args):
        """Before with the start as the model, and after with it as the reference."""
        seen.append(copy_of(args[-1].start))
        return real(*args)

    monkeypatch.setattr(watch, "look_at", look_at)
    assert main(task="classify", **files, lora=4, steps=3, out=tmp_path / "run") == 0
    before, after = seen
    assert all(torch.equal(before[name], after[name]) for name in before)
    learned = load_file(tmp_path / "run" / "model.safetensors")
    assert not torch.equal(learned["classifier.weight"], before["classifier.weight"])


def copy_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


KINDS = {"class": {"task": "classify"}, "tags": {"task": "tag", **WITH_INTENT}}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_is_the_one_that_was_not_interrupted(kind, files, tmp_path, monkeypatch):
    options = {
        **KINDS[kind],
        **files,
        "steps": STEPS,
        "prompts": 8,
        "kl": "k3",
        "baseline": "moving-average",
        "evaluations": 2,
    }
    assert main(**options, out=tmp_path / "whole") == 0
    real, calls = Session.set_lr, []

    def set_lr(*args):
        calls.append(args)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "set_lr", set_lr)
        assert main(**options, out=tmp_path / "cut") == 130
    assert scripts.main(train_rl, resume=tmp_path / "cut") == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    logs = [
        [{name: value for name, value in record.items() if name != "seconds"} for record in scripts.read_log(run)]
        for run in (tmp_path / "whole", tmp_path / "cut")
    ]
    assert logs[0] == logs[1]


def test_functions_of_ones_own_get_classes_and_tags(files, tmp_path):
    """As the examples have them: a label, and a tuple of tags that knows the intent."""
    path = Path(tmp_path / "mine.py")
    path.write_text(
        "def of_class(examples, answers):\n"
        "    assert all(type(a) is str for a in answers)\n"
        "    return [float(a == e.label) for e, a in zip(examples, answers)]\n"
        "def of_tags(examples, answers):\n"
        "    assert all(len(a) == len(e.words) for e, a in zip(examples, answers))\n"
        "    assert {a.intent for a in answers} <= {'good', 'bad', 'other'}\n"
        "    return [float(a == e.tags) for e, a in zip(examples, answers)]\n"
    )
    few = {"steps": 1, "prompts": 4, "out": tmp_path / "run"}
    assert main(task="classify", **files, **few, reward=f"{path}:of_class") == 0
    assert main(task="tag", **files, **few | {"out": tmp_path / "tags"}, **WITH_INTENT, reward=f"{path}:of_tags") == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "classify"}, "--task classify learns from your own examples: give --train FILE"),
        ({"task": "classify", "reward": "exact"}, "the task's own are right, balanced; else give FILE.py:FUNCTION"),
        ({"task": "tag", "reward": "runs/x"}, "a model judges texts, and these answers are none"),
        ({"task": "classify", "init": "HERE"}, "HERE"),
        ({"task": "classify", "method": "expert"}, "--method expert is for answers that are written, not for those of"),
        ({"task": "classify", "problem": "multi"}, "--task classify with several labels to a text has no policy"),
        ({"task": "classify", "calibrate": True}, "--calibrate is for train_sft.py"),
        ({"task": "classify", "class_weights": "balanced"}, "--class-weights is for train_sft.py; by reward"),
        ({"task": "classify", "augment": "drop"}, "--augment varies texts whose answers are given, and none are"),
        ({"task": "pronounce", "train": None, "dev": None}, "--task pronounce needs a model to start from"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(options, sentence, files, tmp_path, capsys):
    options = {name: str(tmp_path) if value == "HERE" else value for name, value in options.items()}
    given = {} if options == {"task": "classify"} else files
    assert main(**{**given, **options}, steps=1, out=tmp_path / "run") == 2
    err = capsys.readouterr().err
    assert sentence.replace("HERE", str(tmp_path)) in err
    assert err.count("\n") == 1
