"""From nothing but rewards: a model that knows nothing solves a bandit and a copying task, by every baseline."""

import json
import random
import string
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from rich.console import Console

import minillm.curves
import train_rl
from minillm.gpt import GPT, GPTConfig
from minillm.metrics import rate
from minillm.policy import BASELINES
from minillm.published import checkpoint
from minillm.tasks import TASKS
from minillm.tasks.base import Example, Splits, WritingTask
from minillm.tokenizer import SymbolTokenizer


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    """In an empty folder, without pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    for task in (Bandit, Copy):
        monkeypatch.setitem(TASKS, task.name, task)


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in BASELINES if name != "leave-one-out"]
EVERY = pytest.mark.parametrize("baseline", ["leave-one-out", "value", *OTHERS])


class Bandit(WritingTask):
    """Ten arms, `?` → `a` to `j`, which pay 1 or nothing: one of them with probability 0.9, the others 0.1 to 0.5."""

    name = "bandit"
    headline = "best_arm"
    best = "d"
    drawn: ClassVar[list[bool]] = []  # whether each answer of the last training is the best arm

    def __init__(self, options, seed):
        self.drawn.clear()
        self.rng = random.Random(seed)
        self.splits = Splits([Example("?", (self.best,))] * 16, [Example("?", (self.best,))], [])

    def tokenizer(self):
        return SymbolTokenizer("bandit", r"[\s\S]", string.ascii_lowercase[:10] + "?")

    def reward(self, examples, answers):
        pays = {arm: 0.9 if arm == self.best else 0.1 + 0.04 * i for i, arm in enumerate(string.ascii_lowercase[:10])}
        if len(answers) == 16 * 8:  # a step's, and no greedy ones
            self.drawn += [answer == self.best for answer in answers]
        return {"paid": [float(self.rng.random() < pays.get(answer, 0.0)) for answer in answers]}

    def measure(self, examples, answers):
        return {"best_arm": rate([answer == self.best for answer in answers])}


class Copy(WritingTask):
    """Four of eight letters, to be said again: `fabd=` → `fabd`. Rewarded by the share of letters that are right."""

    name = "copy"
    headline = "exact"

    def __init__(self, options, seed):
        rng = random.Random(0)
        texts = list({"".join(rng.choices("abcdefgh", k=4)) for _ in range(1000)})
        examples = [Example(f"{text}=", (text,)) for text in sorted(texts)]
        self.splits = Splits(examples[100:], examples[:100], [])

    def tokenizer(self):
        return SymbolTokenizer("copy", r"[\s\S]", "abcdefgh=")

    def reward(self, examples, answers):
        pairs = ((e.answers[0], answer) for e, answer in zip(examples, answers, strict=True))
        return {"letters": [sum(map(str.__eq__, right, answer)) / max(4, len(answer)) for right, answer in pairs]}

    def measure(self, examples, answers):
        return {"exact": rate([answer in e.answers for e, answer in zip(examples, answers, strict=True)])}


SHAPE = {"num_layers": 2, "width": 64, "num_heads": 4, "mlp": "gelu-erf", "positions": "learned"}


def trained(task, **options):
    """A run of a model that knew nothing, and what it reaches on dev."""
    torch.manual_seed(0)
    tokenizer = TASKS[task](None, 0).tokenizer()
    model = GPT(GPTConfig(tokenizer.vocab_size, 128, **SHAPE))
    checkpoint.save(model, Path("scratch"))
    tokenizer.save(Path("scratch"))
    shared = {"init": Path("scratch"), "temperature": 1.0, "precision": "fp32", "lr": 0.003, "evaluations": 1}
    run = train_rl.train(train_rl.Args(task=task, **shared, **options), Console(quiet=True))
    return run, json.loads(run.path("metrics.json").read_text())[f"dev_{TASKS[task].headline}"]


@EVERY
def test_a_bandit(baseline):
    """At the end 99 % of the arms drawn are the best one."""
    trained("bandit", baseline=baseline, steps=160, prompts=16, samples=8)
    assert sum(Bandit.drawn[-5 * 128 :]) >= 0.99 * 5 * 128


QUICK = ("leave-one-out", "value")


@EVERY
def test_copying(baseline):
    """At the end 99 % of the letters are right, also of texts that were not practised."""
    run, exact = trained("copy", baseline=baseline, steps=160, prompts=32, samples=8)
    steps = [record for record in run.read_log() if "reward" in record]
    assert sum(record["reward"] for record in steps[-5:]) / 5 >= 0.99
    assert exact >= 0.95
