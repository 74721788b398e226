"""Several processes that train one model: two have the gradient of one, and stop and go on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from scripts import finished, one_thread, records, same_training, torchrun, write_lines

import train_sft
from minillm import ranks
from minillm.batching import Corpus, Document
from minillm.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TINY = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "precision": "fp32", "steps": 3, "evaluations": 2}
RATES = {"optimizer": "adamw", "lr": 0.001, "embedding_lr": 0.001, "clip": 0.3}
PARITY = {**RATES, "batch_tokens": 60, "micro_tokens": 20, **TINY}


# ---- the shares of a step ------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
@pytest.mark.parametrize("micro_tokens", [None, 8, 1000])
def test_shares_are_the_step_and_as_many_batches_each(ranks, micro_tokens):
    rng = np.random.default_rng(0)
    documents = [Document([i] * int(n), [i] * int(n)) for i, n in enumerate(rng.integers(1, 9, size=40))]
    alone, shared = (Corpus(lambda epoch: [[d] for d in documents], seed=3) for _ in range(2))
    for step in range(12):
        whole = torch.cat([b.tokens for b in alone.step(step, 30)])
        parts = [shared.step(step, 30, micro_tokens, rank, ranks) for rank in range(ranks)]
        assert len({len(batches) for batches in parts}) == 1
        batches = [batch for some in parts for batch in some]
        learned = torch.cat([b.tokens for b in batches if not b.is_spare])
        assert torch.equal(learned.sort().values, whole.sort().values)
        assert sum(b.count for b in batches) == len(whole)
        assert all(b.count == 0 for b in batches if b.is_spare)


def test_a_step_of_one_example_leaves_spare_batches_to_the_others():
    corpus = Corpus(lambda epoch: [[Document([1] * 50, [2] * 50)]], seed=0)
    assert [b.is_spare for rank in range(3) for b in corpus.step(0, 10, None, rank, 3)] == [False, True, True]


# ---- two processes -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Of each kind of head and of loss: options of the script, options of the task."""
    folder = tmp_path_factory.mktemp("data")
    words = ["red", "green", "blue", "old", "new", "fast", "slow", "big"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, size=int(n))) for n in rng.integers(1, 12, size=48)]
    rows = {
        "classify": [{"text": text, "label": "odd" if len(text) % 2 else "even"} for text in texts],
        "regress": [{"text": text, "label": len(text)} for text in texts],
        "tag": [
            {"tokens": text.split(), "tags": ["B-x" if word > "m" else "O" for word in text.split()]} for text in texts
        ],
        "seq2seq": [{"prompt": text, "answer": text[::-1]} for text in texts],
        "preference": [{"prompt": f"say {i}", "chosen": t, "rejected": t[:3]} for i, t in enumerate(texts)],
    }
    found = {}
    for task, records_ in rows.items():
        dev = write_lines(folder / f"{task}-dev.jsonl", records_[-8:])
        own = {"train": write_lines(folder / f"{task}.jsonl", records_[:-8]), "dev": dev}
        kind = {"optimizer": "adamw-head"} if task in ("classify", "regress", "tag", "preference") else {}
        found[task] = [{"task": task, **PARITY, **kind}, own]
    found["arithmetic"] = [{"task": "arithmetic", **PARITY}, {}]
    return found


@pytest.fixture(scope="module")
def alone(cases, tmp_path_factory):
    """The folder of what one process made of all cases."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, ROOT / "tests" / "ranks_worker.py", folder / "cases.json", folder]
    subprocess.run([*map(str, command)], env=one_thread(), check=True)
    return folder


@pytest.mark.parametrize("more", [{}, {"shard": True}, {"shard": True, "checkpointing": True}])
def test_two_ranks_learn_what_one_learns(cases, alone, more, tmp_path):
    """Losses, norms of gradients, figures and weights, of every kind of head, with batches cut up and steps that are
    uneven; also where each has a part of the model."""
    plan = tmp_path / "cases.json"
    plan.write_text(json.dumps({name: [{**options, **more}, own] for name, (options, own) in cases.items()}))
    finished(torchrun(ROOT / "tests" / "ranks_worker.py", plan, tmp_path / "two"))
    for name in cases:
        same_training(alone / name, tmp_path / "two" / name, 1e-4)


@pytest.mark.parametrize("more", [[], ["--shard", "--optimizer", "adamw", "--lr", 1e-3, "--keep", "best"]])
def test_two_ranks_stop_at_a_signal_and_go_on_to_the_same_bits(more, tmp_path):
    """With dropout, whose masks are each rank's own; the log too."""
    options = ["--task", "arithmetic", "--layers", 1, "--width", 32, "--heads", 2, "--dropout", 0.1, "--evaluations", 2]
    begin = [ROOT / "train_sft.py", *options, *more, "--steps", 40, "--precision", "fp32", "--out"]
    finished(torchrun(*begin, tmp_path / "whole", stdout=subprocess.DEVNULL))
    stopped = torchrun(*begin, tmp_path / "stopped", stdout=subprocess.DEVNULL)
    log = tmp_path / "stopped" / "log.jsonl"
    while stopped.poll() is None and not (log.exists() and log.read_bytes().count(b"\n") > 5):
        time.sleep(0.05)
    os.kill(stopped.pid, signal.SIGINT)
    stopped.communicate(timeout=300)
    assert stopped.returncode != 0
    assert (tmp_path / "stopped" / "checkpoint.safetensors").exists()
    finished(torchrun(ROOT / "train_sft.py", "--resume", tmp_path / "stopped", stdout=subprocess.DEVNULL))
    assert records(tmp_path / "whole") == records(tmp_path / "stopped")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


def test_a_mistake_of_the_first_rank_ends_them_all(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "something").touch()
    process = torchrun(
        ROOT / "train_sft.py", "--task", "arithmetic", "--out", tmp_path / "taken", stdout=subprocess.DEVNULL
    )
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("is not empty and not a run") == 1
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["something"]


@pytest.mark.parametrize(("wrong", "named"), [("--train", "none.csv"), ("--trian", "--trian")])
def test_a_mistake_that_all_make_is_said_once(wrong, named, tmp_path):
    process = torchrun(ROOT / "train_sft.py", "--task", "classify", wrong, tmp_path / "none.csv")
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said.count("error: ") == said.count(named) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "start them with torchrun"),
        ({"optimizer": "muon"}, "muon needs all of it: give --optimizer adamw"),
        ({"ema": 0.9}, "--shard and --ema exclude each other"),
    ],
)
def test_what_no_rank_can_do_with_its_part(options, said, tmp_path, monkeypatch):
    if options:  # refused before a team is asked for anything
        monkeypatch.setattr(ranks, "joined", lambda: contextlib.nullcontext(ranks.Team(0, 1)))
        monkeypatch.setattr(ranks.Team, "reduced", lambda self, values, how: [*values])
        monkeypatch.setattr(ranks.Team, "exchange", lambda self, value: [value])
    args = train_sft.Args(task="arithmetic", out=tmp_path / "run", shard=True, **{**PARITY, **options})
    with pytest.raises(UserError, match=said):
        train_sft.train(args, Console(quiet=True))
