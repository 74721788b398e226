"""What is watched before and after a training by reward, against direct computation; that watching changes nothing."""

import json
import random
from itertools import combinations

import numpy as np
import pytest
import scripts
import torch
from rich.console import Console
from scripts import FEW, SMALL
from tiny import gpt

import minillm.curves
import train_rl
import train_sft
from minillm import watch
from minillm.batching import answering, pack
from minillm.episodes import Episode
from minillm.metrics import average, difference, mean, pass_at
from minillm.tasks import pronounce
from minillm.tasks.base import Example
from minillm.watch import DRAWN, aside, changes, likelihood, survey


def episodes_of(rng, examples):
    found = []
    for i in range(examples):
        for _ in range(DRAWN):
            logprobs = list(-rng.random(rng.integers(1, 5)))
            answer = " A" if rng.random() < 0.3 else " B"
            e = Episode(Example(f"{i}:", (" A",)), [1], list(range(len(logprobs))), logprobs, answer)
            e.reference, e.reward = [value - 0.1 for value in logprobs], float(rng.random())
            found.append(e)
    return found


def test_pass_at_k_is_the_share_of_all_ways_to_take_k():
    for drawn in range(1, 7):
        for right in range(drawn + 1):
            answers = [i < right for i in range(drawn)]
            for k in range(1, drawn + 1):
                ways = [any(taken) for taken in combinations(answers, k)]
                assert pass_at(k, right, drawn) == pytest.approx(sum(ways) / len(ways))
    for wrong in ((0, 1, 2), (3, 1, 2), (1, 3, 2)):
        with pytest.raises(ValueError, match="answers can be taken"):
            pass_at(*wrong)


def test_a_survey_is_what_it_says():
    episodes = episodes_of(np.random.default_rng(0), 40)
    found = survey(episodes)
    right = np.array([e.said == " A" for e in episodes]).reshape(40, DRAWN)
    logprobs = [sum(e.logprobs) for e in episodes]
    assert found["pass_1"].value == pytest.approx(right.mean())
    assert found["pass_8"].value == pytest.approx(right.any(axis=1).mean())
    assert found["reward"].value == pytest.approx(np.mean([e.reward for e in episodes]))
    assert found["entropy"].value == pytest.approx(-sum(logprobs) / sum(len(e.answer) for e in episodes))
    assert found["kl"].value == pytest.approx(0.1 * np.mean([len(e.answer) for e in episodes]))
    assert all(interval.low < interval.value < interval.high for interval in found.values())
    for e in episodes:
        e.reference = ()
    assert "kl" not in survey(episodes)


def test_the_likelihood_of_given_answers():
    model = gpt()
    documents = [[answering([1, 2], [3, 4, 5])], [answering([2], [6]), answering([2], [7, 8])]]
    total, count = 0.0, 0
    for document in (d for each in documents for d in each):
        total += float(model.loss(pack([document])).detach().sum())
        count += sum(target >= 0 for target in document.targets)
    assert likelihood(model, documents)["given"].value == pytest.approx(total / count)
    assert count == 6


def test_chance_goes_on_as_if_nothing_had_been_drawn():
    def draws():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = draws()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    with aside(7):
        first = torch.rand(3)
        draws()
    assert draws() == expected
    with aside(7):
        assert torch.equal(torch.rand(3), first)


def test_changes_are_paired():
    rng = np.random.default_rng(1)
    base = rng.random(400)
    before = {"a": mean(base * 0.9), "b": average([1.0, 1.0])}
    after = {"a": mean(base * 0.9 + 0.01), "b": average([1.0, 1.0]), "c": mean(base)}
    found = changes(before, after)
    assert found.keys() == {"a", "b"}
    assert found["a"] == difference(after["a"], before["a"])
    assert 0 < found["a"].low < 0.01 < found["a"].high < 0.02 < before["a"].high - before["a"].low
    assert tuple(found["b"]) == (0.0, 0.0, 0.0)


def test_a_run_tells_what_it_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    options, quiet = pronounce.Options(**scripts.write_words(tmp_path)), Console(quiet=True)
    start = train_sft.train(train_sft.Args(out=tmp_path / "a", steps=20, lr=0.03, options=options, **SMALL), quiet)
    common = {"task": "pronounce", "init": start.folder, **FEW, "steps": 2}
    runs = [train_rl.train(train_rl.Args(**common, watch=n, out=tmp_path / str(n)), quiet) for n in (None, 5, 0)]
    weights = [run.path("model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1] == weights[2]  # whatever is watched
    metrics = json.loads(runs[0].path("metrics.json").read_text())
    for name in ("wer", "pass_1", "pass_8", "reward", "entropy", "given"):
        low, value, high = (metrics[f"change_dev_{name}{end}"] for end in ("_low", "", "_high"))
        assert value == pytest.approx(metrics[f"dev_{name}"] - metrics[f"start_dev_{name}"])
        assert low <= value <= high
    assert metrics["dev_kl"] > -0.1
    assert "start_dev_kl" not in metrics
    table = json.loads(runs[0].path("report.json").read_text())["tables"][0]
    assert {row[0] for row in table["rows"]} >= {"WER", "pass@1", "pass@8", "KL to the start"}
    assert "pass@1" in runs[0].path("report.html").read_text()
    assert "dev_pass_1" not in json.loads(runs[2].path("metrics.json").read_text())


def test_of_large_models_fewer_examples_are_watched(monkeypatch):
    class Task:
        splits = type("", (), {"dev": list(range(3000))})

    args = type("", (), {"watch": None})
    assert len(watch.watched(args, Task, gpt(), 30)) == 3000
    monkeypatch.setattr(watch, "AFFORDABLE", 1e3)
    assert len(watch.watched(args, Task, gpt(), 30)) == watch.LEAST
    args.watch = 7
    assert len(watch.watched(args, Task, gpt(), 30)) == 7
