"""Prompts with answers, and conversations, from end to end: the gradient of a step, what a run is, what it answers."""

import dataclasses
import json
import random
import signal

import numpy as np
import pytest
import scripts
import torch
from rich.console import Console
from safetensors.torch import load_file
from tiny import assert_same, gradients, shake

import minillm.__main__
import minillm.curves
import minillm.tasks.chat as chat
import train_sft
from minillm import cli, evaluate
from minillm.batching import Corpus, pack
from minillm.objective import backward
from minillm.published import checkpoint
from minillm.session import Session
from minillm.start import open_start
from minillm.tasks import TASKS

pytest.importorskip("tokenizers")
pytest.importorskip("jinja2")
WORDS = {
    "one": "eins",
    "two": "zwei",
    "red": "rot",
    "dog": "Hund",
    "house": "Haus",
    "old": "alt",
    "a": "ein",
    "no": "kein",
}
FAST = {"layers": 1, "width": 64, "heads": 2, "dropout": 0.0, "lr": 0.01, "embedding_lr": 0.01, "precision": "fp32"}
FAST |= {"batch_tokens": 512, "evaluations": 2, "steps": 220}


def translated(rng):
    words = rng.choices(list(WORDS), k=rng.randint(1, 3))
    return " ".join(words), " ".join(WORDS[word] for word in words)


def row(task, rng):
    """An example: a translation, or a conversation of several."""
    if task == "seq2seq":
        return dict(zip(("prompt", "answer"), translated(rng), strict=True))
    turns = [translated(rng) for _ in range(rng.randint(1, 3))]
    roles = "user", "assistant"
    return {"messages": [{"role": r, "content": text} for turn in turns for r, text in zip(roles, turn, strict=True)]}


@pytest.fixture(scope="module", params=["seq2seq", "chat"])
def files(request, tmp_path_factory):
    """The name of a task, and options that name its files."""
    folder, rng = tmp_path_factory.mktemp(request.param), random.Random(0)
    for split, count in (("train", 700), ("dev", 40)):
        rows = [row(request.param, rng) for _ in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    return request.param, {split: folder / f"{split}.jsonl" for split in ("train", "dev")}


def main(**options):
    """Run the script's main: → exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        patch.setattr(chat, "LONGEST", 24)
        return scripts.main(train_sft, **options)


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """A finished run."""
    task, paths = files
    folder = tmp_path_factory.mktemp(task) / "run"
    assert main(task=task, **paths, **FAST, out=folder) == 0
    return folder


def opened(run, files):
    """The task, and the model of a run that is to learn it, with its tokenizer."""
    name, paths = files
    task = TASKS[name](TASKS[name].Options(**paths), 0)
    model, tokenizer = open_start(run, task)
    task.adapt(model, tokenizer)
    return task, model, tokenizer


# ---- the gradient of a step ----------------------------------------------------------------------


def test_a_step_cut_in_any_way_has_the_same_gradient(run, files):
    """32 × 1, 1 × 32, in between, in any order."""
    task, model, tokenizer = opened(run, files)
    shake(model)
    documents = [task.documents(example, tokenizer, None) for example in task.splits.train[:32]]
    corpus = Corpus(lambda _: documents, seed=0)

    def gradient(parts):
        count = sum(corpus.table.batch(np.array(part)).count for part in parts)
        loss = sum(backward(model, corpus.table.batch(np.array(part)), 1 / count) for part in parts)
        return loss, gradients(model)

    order = np.random.default_rng(1).permutation(32)
    loss, whole = gradient([range(32)])
    for parts in ([[i] for i in range(32)], [order], [order[:5], order[5:]], np.split(np.arange(32), 4)):
        other, found = gradient(parts)
        assert other.item() == pytest.approx(loss.item(), rel=1e-12)
        assert_same(whole, found)


def test_documents_of_a_row_do_not_see_each_other(run, files):
    """Another answer in one of them changes no logit of the others."""
    task, model, tokenizer = opened(run, files)
    shake(model)
    documents = [document for example in task.splits.train[:5] for document in task.documents(example, tokenizer, None)]
    changed = [*documents[2].tokens[:-1], (documents[2].tokens[-1] + 1) % 200]
    others = [*documents[:2], dataclasses.replace(documents[2], tokens=changed), *documents[3:]]
    one, two = (pack(each) for each in (documents, others))
    first, second = (model(batch.tokens, batch.packing) for batch in (one, two))
    start, stop = one.packing.cu_seqlens[2:4].tolist()
    assert torch.equal(first[:start], second[:start])
    assert torch.equal(first[stop:], second[stop:])
    assert not torch.equal(first[start:stop], second[start:stop])


# ---- what a run is -------------------------------------------------------------------------------


def test_it_learns(run, files):
    metrics = json.loads((run / "metrics.json").read_text())
    log = scripts.read_log(run)
    if files[0] == "seq2seq":
        assert metrics["dev_exact"] > 0.6
        return
    first = next(record for record in log if "dev_nats" in record)
    assert first["step"] == 0  # before anything was learned
    assert metrics["dev_nats"] < first["dev_nats"] / 4
    assert metrics["dev_perplexity"] == pytest.approx(np.exp(metrics["dev_nats"]))
    assert metrics["dev_ended"] == 1.0
    samples = metrics["dev_answers"]
    assert len(samples) == 10
    assert all(sample["before"] != sample["answer"] for sample in samples)
    assert sum(sample["answer"] == sample["truth"] for sample in samples) >= 8


def test_what_was_measured_is_found_again(run, files):
    """By whoever opens the run: prompts are written as they were in training, without anybody saying how."""
    name, paths = files
    model, tokenizer = checkpoint.load(run), open_start(run, TASKS[name](TASKS[name].Options(**paths), 0))[1]
    metrics = json.loads((run / "metrics.json").read_text())
    if name == "chat":
        task, model, tokenizer = opened(run, files)
        answers = task.answer(model, tokenizer, task.splits.dev)
        assert task.measure(task.splits.dev, answers)["nats"].value == pytest.approx(metrics["dev_nats"], rel=1e-5)
        return
    rows = [json.loads(line) for line in paths["dev"].read_text().splitlines()]
    answers = evaluate.write(model, tokenizer, [each["prompt"] for each in rows], 20)
    right = [answer == each["answer"] for answer, each in zip(answers, rows, strict=True)]
    assert np.mean(right) == metrics["dev_exact"]


def test_generate_answers_a_prompt(run, files, monkeypatch, capsys):
    chat = ["--chat"] if files[0] == "chat" else []
    argv = ["minillm", "generate", str(run), "--prompt", "two old", "--temperature", "0", *chat]
    monkeypatch.setattr("sys.argv", argv)
    cli.run(minillm.__main__.main)
    assert capsys.readouterr().out.strip() == "zwei alt"
    monkeypatch.setattr("sys.argv", ["minillm", "answer", str(run), "two old", "a red"])  # which knows how to ask it
    cli.run(minillm.__main__.main)
    assert capsys.readouterr().out.splitlines() == ["zwei alt", "ein rot"]


def test_transformers_sees_the_same_loss(run, files):
    """Its model reads each document alone, without packing."""
    task, model, tokenizer = opened(run, files)
    documents = [document for example in task.splits.dev[:4] for document in task.documents(example, tokenizer, None)]
    sums = evaluate.nats(model, documents)
    losses = torch.nn.CrossEntropyLoss(reduction="sum")
    for document, found in zip(documents, sums, strict=True):
        batch = pack([document])
        logits = model.logits(model(batch.tokens, batch.packing)).float()
        assert found == pytest.approx(losses(logits, batch.targets).item(), rel=1e-4)


def test_interrupted_and_resumed_it_is_the_same_run(files, tmp_path, monkeypatch):
    """Once begun from the command line, once from Python."""
    name, paths = files
    options = {**FAST, "steps": 6, "dropout": 0.1}
    assert main(task=name, **paths, **options, out=tmp_path / "whole") == 0
    real, calls = Session.set_lr, []

    def set_lr(*args):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "set_lr", set_lr)
        assert main(task=name, **paths, **options, out=tmp_path / "cut") == 130
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    monkeypatch.setattr(chat, "LONGEST", 24)
    train_sft.train(train_sft.Args(resume=tmp_path / "cut"), Console(quiet=True))
    one, two = (load_file(tmp_path / each / "model.safetensors") for each in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    one, two = (json.loads((tmp_path / each / "metrics.json").read_text()) for each in ("whole", "cut"))
    for timeless in (one, two):
        timeless.pop("seconds")
    assert one == two


def test_a_run_is_a_start(run, files, tmp_path):
    name, paths = files
    assert main(task=name, **paths, init=run, steps=2, precision="fp32", out=tmp_path / "more") == 0
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "more" / file).read_bytes() == (run / file).read_bytes()
