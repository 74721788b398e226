"""A reward of one's own that fails in a training: it stops and goes on as if nothing had been, or leaves a step out."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from scripts import FEW, SMALL

import minillm.curves
import minillm.tasks.arithmetic as arithmetic
import train_rl
import train_sft
from minillm import expert, unjudged
from minillm.episodes import Episode, chance_kept, judge
from minillm.errors import UserError
from minillm.files import read_state
from minillm.rewards import RewardError
from minillm.tasks.base import Example

CODE = """
import json
from pathlib import Path

import torch

calls = 0

def score(examples, answers):
    global calls
    calls += 1
    values = [sum(map(ord, answer)) % 5 / 4 + 0.1 * float(torch.rand(())) for answer in answers]
    wrong = Path(__file__).parent / "wrong.json"
    how = json.loads(wrong.read_text()).get(str(calls)) if wrong.exists() else None
    if how == "raises":
        raise ValueError("no such answer")
    return {"NaN": [float("nan")] * len(answers), "count": values[1:]}.get(how, values)
"""
STEPS = 6  # before which one call of the reward looks at what the start draws
FAST = {"task": "arithmetic", **FEW, "steps": STEPS, "watch": 4, "reward": ("my_reward.py:score",)}


@pytest.fixture(scope="module")
def _patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        patch.setattr(arithmetic, "HELD_OUT", 30)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory, _patched):
    options = arithmetic.Options(20)
    out = tmp_path_factory.mktemp("start") / "run"
    return train_sft.train(train_sft.Args(task="arithmetic", **SMALL, steps=5, options=options, out=out)).folder


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """What runs are that no reward interrupts, by their options."""
    folder, made = tmp_path_factory.mktemp("whole"), {}
    (folder / "my_reward.py").write_text(CODE)

    def whole(**options):
        name = f"run{sorted(options.items())}"
        if name not in made:
            args = {**FAST, **options, "reward": (f"{folder / 'my_reward.py'}:score",)}
            made[name] = train_rl.train(train_rl.Args(init=start, out=folder / str(len(made)), **args), quiet())
        return made[name].folder

    return whole


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch, _patched):
    monkeypatch.chdir(tmp_path)
    Path("my_reward.py").write_text(CODE)


def quiet():
    return Console(quiet=True)


def train(start, wrong, **options):
    """A run whose reward goes wrong at these calls."""
    Path("wrong.json").write_text(json.dumps(wrong))
    return train_rl.train(train_rl.Args(init=start, out=Path("run"), **{**FAST, **options}), quiet())


def go_on():
    Path("wrong.json").unlink()
    return train_rl.train(train_rl.Args(resume=Path("run")), quiet())


def saved_step():
    return read_state(Path("run/checkpoint.safetensors"))["progress"]["step"]


def log(folder):
    path = Path(folder, "log.jsonl")
    lines = path.read_text().splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def assert_equal_runs(one, two):
    assert log(one) == log(two)
    first, second = (load_file(Path(run) / "model.safetensors") for run in (one, two))
    assert all((first[name] == second[name]).all() for name in first)


# ---- it stops ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "how", "done", "options", "sentence"),
    [
        (1, "count", 0, {}, "returned 15 values for 16 answers|returned 31 values for 32 answers"),
        (2, "NaN", 0, {"kl": "k2"}, "returned nan for answer 0"),
        (5, "raises", 3, {}, "failed: line 16: ValueError: no such answer"),
        (5, "raises", 3, {"lora": 2}, "no such answer"),
        (7, "raises", 2, {"baseline": "greedy"}, "no such answer"),  # at greedy answers, when the others are judged
    ],
)
def test_it_stops_saved_and_goes_on_at_that_step(start, whole, call, how, done, options, sentence):
    with pytest.raises(UserError, match=rf"my_reward.py:score.*({sentence})") as stop:
        train(start, {call: how}, **options)
    assert "go on with: python train_rl.py --resume run" in str(stop.value)
    assert len([record for record in log("run") if "lr" in record]) == done == saved_step()
    go_on()
    assert_equal_runs(whole(**options), "run")


def test_a_look_that_fails_is_over_and_the_step_behind_it_is_next(start, whole):
    """The fourth step is followed by a look, whose greedy answers the sixth call judges."""
    with pytest.raises(UserError, match=r"go on with: python train_rl\.py --resume run"):
        train(start, {6: "raises"})
    done = saved_step()
    go_on()
    looks = [record for record in log("run") if "dev_accuracy" in record]
    assert "greedy_reward" not in looks[1]
    ours, theirs = ([{k: v for k, v in r.items() if "greedy" not in k} for r in log(run)] for run in ("run", whole()))
    assert [r for r in ours if "lr" in r][:4] == [r for r in theirs if "lr" in r][:4]
    assert [r["step"] for r in ours if "lr" in r] == list(range(1, STEPS + 1))
    assert done == 4


def test_expert_iteration_goes_on_where_it_tried(start, whole, monkeypatch):
    monkeypatch.setattr(expert, "ANSWERS", 15)
    options = {"method": "expert", "rounds": 2, "batch_tokens": 64, "prompts": 4, "threshold": 0.5}
    with pytest.raises(UserError, match="--resume run"):
        train(start, {4: "raises"}, **options)
    assert not [record for record in log("run") if "lr" in record]
    go_on()
    assert_equal_runs(whole(**options), "run")
    finds = [Path(run, "finds.jsonl").read_text() for run in ("run", whole(**options))]
    assert finds[0] == finds[1] > ""


# ---- it goes on ----------------------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_said(start):
    run = train(
        start, {1: "count", 2: "NaN", 5: "raises", 7: "raises"}, reward_errors="skip", baseline="moving-average"
    )
    records = log("run")
    assert [record["step"] for record in records if "lr" in record] == [2, 3, 5, 6]
    skipped = [record for record in records if "skipped" in record]
    assert [record["step"] for record in skipped] == [0, 3]  # the look before and that between are none of them
    assert "returned nan for answer 0" in skipped[0]["skipped"]
    metrics = json.loads(run.path("metrics.json").read_text())
    assert (metrics["skipped"], metrics["steps"], metrics["answers"]) == (2, STEPS, 4 * 16)
    assert any(
        "2 times answers were left out" in remark
        for remark in json.loads(run.path("report.json").read_text())["remarks"]
    )


def test_too_many_in_a_row_stop(start, monkeypatch):
    monkeypatch.setattr(unjudged, "MOST_SKIPPED", 2)
    wrong = dict.fromkeys(range(3, 100), "raises")
    with pytest.raises(UserError, match=r"\(2 before it were left out\).*--resume run"):
        train(start, wrong, reward_errors="skip")
    assert [record["step"] for record in log("run") if "skipped" in record] == [1, 2]
    go_on()
    assert [record["step"] for record in log("run") if "lr" in record] == [1, 4, 5, 6]


def test_its_limit_is_the_options(start, monkeypatch):
    seen, real = [], train_rl.open_rewards
    monkeypatch.setattr(train_rl, "open_rewards", lambda *args: seen.append(args[-1]) or real(*args))
    train(start, {}, steps=1, reward_seconds=7.0)
    assert seen == [7.0]
    with pytest.raises(UserError, match="--reward-seconds 0 must be positive"):
        train_rl.check(train_rl.Args(reward_seconds=0))


def test_a_run_whose_reward_never_judged_is_no_success(start):
    with pytest.raises(UserError, match=r"nothing was learned, as the reward failed in every step.*no such answer"):
        train(start, dict.fromkeys(range(1, 100), "raises"), reward_errors="skip")
    assert not Path("run/metrics.json").exists()


def test_what_expert_iteration_cannot_judge_it_does_not_find(start, monkeypatch):
    monkeypatch.setattr(expert, "ANSWERS", 15)
    options = {"method": "expert", "rounds": 1, "batch_tokens": 64, "prompts": 4, "threshold": 0.0}
    train(start, {2: "raises", 3: "raises"}, reward_errors="skip", steps=3, **options)
    records = log("run")
    assert ["skipped" in record for record in records[1:5]] == [True, True, False, False]
    assert records[-1]["step"] == 3


# ---- its parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
def test_a_reward_that_no_gradient_can_follow(value):
    """Whoever gave it: also a model, or one of the task's own."""
    episode = Episode(Example("", ()), [0], [1], [0.0], "")
    with pytest.raises(RewardError, match="the reward of an answer is"):
        judge(lambda *_: {"a": [value], "b": [1.0]}, [episode])


def test_chance_goes_on_as_it_was_where_a_reward_fails():
    alone = SimpleNamespace(exchange=lambda value: [value])

    def numbers():
        return random.random(), float(np.random.random()), float(torch.rand(()))

    def fail():
        raise RewardError(str(numbers()))

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    with chance_kept(alone):
        first = numbers()
    second = numbers()
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.set_rng_state(before[2])
    with pytest.raises(RewardError, match=str(first[0])), chance_kept(alone):
        fail()
    assert (numbers(), numbers()) == (first, second)


def test_a_row_is_what_the_log_ends_with():
    def in_a_row(*records):
        run = SimpleNamespace(read_log=lambda count: records)
        return unjudged.skipped_last(SimpleNamespace(run=run, progress=SimpleNamespace(records=len(records))))

    skipped, other = {"skipped": "why"}, {"reward": 1.0}
    assert [in_a_row(), in_a_row(other), in_a_row(skipped, other)] == [0, 0, 0]
    assert [in_a_row(skipped), in_a_row(skipped, other, skipped, skipped)] == [1, 2]
