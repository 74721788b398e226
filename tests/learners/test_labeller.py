"""A classifier from end to end: what it learns, what it leaves behind, and that transformers sees the same model."""

import json
import random
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import scripts
import torch
from safetensors.torch import load_file

import minillm.curves
import train_sft
from kernels import backend
from minillm import cli
from minillm.errors import UserError
from minillm.evaluate import read
from minillm.learners import Labeller
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.tasks import load_task

pytest.importorskip("tokenizers")
FAST = {"task": "classify", "precision": "fp32", "lr": 0.003, "embedding_lr": 0.003, "dropout": 0.1, "evaluations": 2}


def write(path, number, seed, labels=("bad", "good")):
    """Sentences with one word that tells the label and some that don't, of many lengths."""
    rng = random.Random(seed)
    words = {labels[0]: ("awful", "poor"), labels[1]: ("great", "fine")}
    lines = []
    for _ in range(number):
        label = rng.choice(labels)
        text = [
            rng.choice(["the", "a", "film", "movie", "it", "was", "quite", "very"]) for _ in range(rng.randint(0, 9))
        ]
        text.insert(rng.randint(0, len(text)), rng.choice(words[label]))
        lines.append(json.dumps({"text": " ".join(text), "label": label}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    sizes = {"train": 240, "dev": 60, "test": 40}
    return {name: write(folder / f"{name}.jsonl", size, seed) for seed, (name, size) in enumerate(sizes.items())}


def main(**options):
    """Run the script's main: → exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        patch.setattr(backend, "_default", "auto")
        patch.setattr(sys, "argv", ["train_sft.py", *scripts.command_line(**options)])
        try:
            cli.run(train_sft.main)
        except SystemExit as stop:
            return stop.code
    return 0


@pytest.fixture(scope="module", params=["bert", "gpt"])
def run(request, tmp_path_factory, files):
    """A finished run of each kind."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert main(**FAST, **files, model=request.param, out=folder, steps=60) == 0
    return folder


def probabilities_of(run, texts, dtype=torch.float32):
    """→ (n, K), the classes"""
    model = checkpoint.load(run, head="classify", dtype=dtype)
    return torch.from_numpy(read(model, load_tokenizer(run), texts)).softmax(dim=-1).numpy(), model.classes


# ---- what it learns, and what it leaves behind ---------------------------------------------------


def test_it_learns(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["dev_accuracy"] > 0.9
    assert metrics["test_macro_f1"] > 0.9
    assert metrics["steps"] == 60


def test_metrics_say_what_there_is_to_say(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for split, size in (("dev", 60), ("test", 40)):
        for name in ("accuracy", "macro_f1", "majority"):
            low, value, high = (metrics[f"{split}_{name}{end}"] for end in ("_low", "", "_high"))
            assert 0 <= low <= value <= high <= 1
        confusion = metrics[f"{split}_confusion"]
        assert sum(sum(row.values()) for row in confusion.values()) == size
        right = sum(row.get(name, 0) for name, row in confusion.items())
        assert right / size == metrics[f"{split}_accuracy"]
        assert len(metrics[f"{split}_worst_mistakes"]) == min(10, size - right)


def test_predictions_are_those_that_were_measured(run, files):
    examples = [json.loads(line) for line in files["dev"].read_text().splitlines()]
    probabilities, classes = probabilities_of(run, [(example["text"],) for example in examples])
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    right = [classes[p.argmax()] == e["label"] for p, e in zip(probabilities, examples, strict=True)]
    assert np.mean(right) == json.loads((run / "metrics.json").read_text())["dev_accuracy"]


def test_probabilities_depend_on_nothing_but_the_text(run):
    texts = [("a great film",), ("awful",), ("it was quite poor the film it was",)]
    together, _ = probabilities_of(run, texts, torch.float64)
    alone = np.concatenate([probabilities_of(run, [text], torch.float64)[0] for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_a_text_that_is_too_long_is_cut(run):
    assert probabilities_of(run, [("great " * 2000,)])[0].shape == (1, 2)


def test_transformers_sees_the_same_model(run):
    transformers = pytest.importorskip("transformers")
    texts = ["a great film", "awful", "it was quite poor the film it was"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(run).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    ours, classes = probabilities_of(run, [(text,) for text in texts])
    for text, row in zip(texts, ours, strict=True):
        theirs = model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert row == pytest.approx(theirs, abs=1e-5)
    assert [model.config.id2label[i] for i in range(2)] == list(classes) == ["bad", "good"]


# ---- the loss ------------------------------------------------------------------------------------


def test_loss_and_gradients_are_those_of_padded_transformers(files, tmp_path, run):
    transformers = pytest.importorskip("transformers")
    learner = Labeller(load_task("classify", files["train"], files["dev"]), run, None)
    model = learner.pretrained  # in evaluation mode: dropout would differ
    batch = learner.corpus.batch(np.array([3, 1, 4, 15, 92]))
    loss = learner.loss(model, batch)
    loss.backward()

    other = transformers.AutoModelForSequenceClassification.from_pretrained(run).eval()
    other.config.pad_token_id = 0
    rows = batch.packing.split(batch.tokens)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < batch.packing.lengths_tensor[:, None]
    found = other(input_ids=ids, attention_mask=mask.long(), labels=batch.labels)
    found.loss.backward()
    assert loss.item() == pytest.approx(found.loss.item(), abs=1e-5)
    with torch.no_grad():  # gradients as if they were weights: saved, they get the names of transformers
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    checkpoint.save(model, tmp_path / "gradients")
    ours = load_file(tmp_path / "gradients" / "model.safetensors")
    theirs = dict(other.named_parameters())
    assert ours.keys() <= theirs.keys()
    for name, gradient in ours.items():
        if theirs[name].grad is not None:
            torch.testing.assert_close(gradient, theirs[name].grad, rtol=1e-3, atol=1e-5, msg=name)


# ---- starting from another model -----------------------------------------------------------------


def test_a_classifier_of_the_same_classes_goes_on(run, files):
    learner = Labeller(load_task("classify", files["train"], files["dev"]), run, None)
    saved = load_file(run / "model.safetensors")
    name = next(name for name in saved if name in ("classifier.weight", "score.weight"))
    torch.testing.assert_close(learner.pretrained.classifier.weight, saved[name], rtol=0, atol=0)
    assert (
        learner.task.measure(learner.task.splits.dev, learner.answer(learner.pretrained, learner.task.splits.dev))[
            "accuracy"
        ].value
        == json.loads((run / "metrics.json").read_text())["dev_accuracy"]
    )


def test_a_classifier_of_other_classes_gets_a_new_head(run, tmp_path, caplog):
    paths = [write(tmp_path / f"{name}.jsonl", 20, seed, ("no", "yes")) for seed, name in enumerate("ab")]
    learner = Labeller(load_task("classify", *paths), run, None)
    assert learner.pretrained.classes == ("no", "yes")
    assert "new, from random numbers: classifier" in caplog.text


def test_dropout_is_what_was_asked_for(run, files):
    learner = Labeller(load_task("classify", files["train"], files["dev"]), run, None)
    shape = train_sft.Args(dropout=0.25)
    model = learner.make_model(shape)
    config = model.config
    assert config.dropout == config.classifier_dropout == config.attention_dropout == 0.25
    assert all(block.dropout == 0.25 for block in model.encoder.blocks)
    saved, now = learner.pretrained.state_dict(), model.state_dict()
    assert all(torch.equal(saved[name], now[name]) for name in saved)


def test_a_kind_is_for_models_from_scratch(run, files):
    with pytest.raises(UserError, match="--model gpt is for a model from scratch, but --init"):
        Labeller(load_task("classify", files["train"], files["dev"]), run, "gpt")


# ---- interruption --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt"])
def test_a_resumed_training_is_the_one_that_was_not_interrupted(kind, files, tmp_path, monkeypatch):
    options = {**FAST, **files, "model": kind, "steps": 8, "batch_tokens": 400}
    assert main(**options, out=tmp_path / "whole") == 0
    real, calls = train_sft.set_lr, []

    def set_lr(*args):
        calls.append(args)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train_sft, "set_lr", set_lr)
        assert main(**options, out=tmp_path / "cut") == 130
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert main(resume=tmp_path / "cut") == 0
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert scripts.steps_of(tmp_path / "cut") == list(range(1, 9))
    with pytest.raises(UserError, match="is finished"):
        train_sft.resumed(train_sft.Args(resume=Path(tmp_path / "cut")))
