"""Several processes that train one model by reward: two climb the gradient of one, fail together, stop and go on."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from rich.console import Console
from scripts import finished, one_thread, records, same_training, torchrun, write_lines
from test_objective import ACTOR, ANSWERS, PROMPTS, TOKENIZER, episodes_of

import train_rl
import train_sft
from minillm.episodes import Agent
from minillm.policy import AGGREGATIONS, KL_LOSSES, UPDATES
from minillm.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
TINY = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "precision": "fp32", "steps": 3, "evaluations": 2}
FEW = {"prompts": 5, "samples": 4, "steps": 3, "micro_tokens": 60, "watch": 8, "evaluations": 2, "precision": "fp32"}
REWARD = """
def score(examples, answers):
    return {"length": [len(a) % 5 / 4 for a in answers], "e": [a.count("e") * 0.3 for a in answers]}
"""


@pytest.mark.parametrize("kl", ["off", *KL_LOSSES])
def test_the_parts_of_all_ranks_are_the_gradient_of_one(kl):
    """For every update, ratio and aggregation, in float64; of answers some of which are alike, or teach nothing."""
    model = tiny.gpt(vocab_size=3, num_layers=1, width=8, num_heads=2).double()
    model.compute_dtype = torch.float64
    episodes = episodes_of(PROMPTS, [[ANSWERS[i] for i in (3, 9, 2, 3, 5)]] * len(PROMPTS))
    for i, episode in enumerate(episodes):
        episode.advantages = [(i % 3 - 1) * 0.7] * len(episode.answer)
        episode.logprobs, episode.reference = ([at - i / 9] * len(episode.answer) for at in (-0.5, -1.5))
    for update, ratio, aggregate in itertools.product(UPDATES, ("token", "sequence"), AGGREGATIONS):
        args = train_rl.Args(kl=kl, update=update, ratio=ratio, aggregate=aggregate, sft_share=0.25, temperature=1.0)
        found = []
        for ranks in (1, 2, 7):
            places = [(rank, ranks) for rank in range(ranks)]
            agents = [Agent(model, model, TOKENIZER, ACTOR, 1.0, 20, *place) for place in places]
            beyond = sum(train_rl.climb(agent, episodes, 0.3, args) for agent in agents)
            found.append((beyond, tiny.gradients(model)))
        for beyond, gradients in found[1:]:
            assert beyond == found[0][0]
            tiny.assert_same(gradients, found[0][1], tolerance=1e-12)


# ---- whole trainings -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A reward, and for each kind of model a start and its task's own options."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "reward.py").write_text(REWARD)
    words = ["red", "green", "blue", "old", "new", "fast", "slow", "big"]
    texts = [" ".join(words[(i * 7 + j * j) % 8] for j in range(1 + i % 5)) for i in range(24)]
    rows = {
        "seq2seq": [{"prompt": text, "answer": text[:6]} for text in texts],
        "classify": [{"text": text, "label": "odd" if len(text) % 2 else "even"} for text in texts],
        "tag": [{"tokens": text.split(), "tags": ["B-x" if w > "m" else "O" for w in text.split()]} for text in texts],
    }
    log = [{"prompt": text, "answer": text[:i], "reward": i} for text in texts[:-8] for i in (1, 3)]
    found = {"reward": f"{folder / 'reward.py'}:score", "log": write_lines(folder / "log.jsonl", log)}
    for task, lines in rows.items():
        files = {"train": write_lines(folder / f"{task}.jsonl", lines[:-8])}
        files["dev"] = write_lines(folder / f"{task}-dev.jsonl", lines[-8:])
        own = TASKS[task].Options(**{name: Path(path) for name, path in files.items()})
        args = train_sft.Args(task=task, out=folder / task, options=own, batch_tokens=60, **TINY)
        train_sft.train(args, Console(quiet=True))
        found[task] = {"task": task, "init": str(folder / task), "by_reward": True, **FEW}, files
    few = {
        "task": "guess",
        "options": TASKS["guess"].Options(50),
        "lr": 0.02,
        "embedding_lr": 0.02,
        "batch_tokens": 512,
    }
    train_sft.train(train_sft.Args(out=folder / "guess", **{**TINY, "steps": 60}, **few), Console(quiet=True))
    found["guess"] = {"task": "guess", "init": str(folder / "guess"), "by_reward": True, **FEW}, {"examples": 50}
    return found


CASES = {
    "none": {"update": "importance", "ratio": "sequence", "passes": 2, "aggregate": "token", "kl": "k2"},
    "moving-average": {"update": "truncated", "passes": 2, "aggregate": "sequence", "kl": "k3", "entropy": 0.01},
    "batch-mean": {"update": "clip", "passes": 2, "minibatches": 2, "kl": "reward", "kl_target": 0.01, "beta": 0.2},
    "leave-one-out": {"sft_share": 0.5, "aggregate": "constant", "lora": 2},
    "group-mean": {"overlong": "penalise", "clip": 0.01},
    "group-standardised": {"overlong": "drop", "aggregate": "token", "prompts": 1},
    "greedy": {"shuffle_advantages": True, "keep": "best"},
    "value": {"update": "clip", "passes": 2, "gae_lambda": 0.9, "value_coefficient": 0.1},
}


@pytest.fixture(scope="module")
def cases(data):
    written, files = data["seq2seq"]
    written = {**written, "reward": [data["reward"]], "lr": 0.003}
    found = {name: [{**written, "baseline": name, **options}, files] for name, options in CASES.items()}
    for method in ("best-of", "soft-q", "expert"):
        more = {"threshold": 0.7, "steps": 6, "prompts": 3} if method == "expert" else {}
        found[method] = [{**written, "method": method, **more}, files]
    found["logged"] = [{**written, "method": "soft-q", "logged": data["log"], "sft_share": 0.3}, files]
    for task in ("classify", "tag", "guess"):
        found[task] = [*data[task]]
    return found


def test_two_ranks_learn_what_one_learns(cases, tmp_path):
    """Every figure of the log and all weights: each baseline, method and kind of model, where answers are given, too,
    and with fewer prompts than ranks."""
    plan = tmp_path / "cases.json"
    plan.write_text(json.dumps(cases))
    command = [sys.executable, ROOT / "tests" / "ranks_worker.py", plan, tmp_path / "one"]
    subprocess.run([*map(str, command)], env=one_thread(), check=True)
    finished(torchrun(ROOT / "tests" / "ranks_worker.py", plan, tmp_path / "two"))
    for name in cases:
        same_training(tmp_path / "one" / name, tmp_path / "two" / name, 1e-9)


# ---- stopped, failed, gone on with ---------------------------------------------------------------

FAILING = """
import os, random, time
from pathlib import Path

calls = 0

def score(examples, answers):
    global calls
    calls += 1
    time.sleep(0.05)
    is_wrong = Path(__file__).with_name("wrong").exists()
    if is_wrong and os.environ["RANK"] == "1" and calls == 3:
        raise ValueError("no such answer")
    if is_wrong and len(answers) == 8:
        raise ValueError("none to the examples of dev")
    return [len(answer) % 5 / 4 + 0.1 * random.random() for answer in answers]
"""
CHANCY = ["--update", "clip", "--passes", 2, "--minibatches", 2, "--baseline", "moving-average", "--sft-share", 0.5]


@pytest.fixture(scope="module")
def command(data, tmp_path_factory):
    """Of a training whose reward fails on the second rank while a file `wrong` lies beside it; and that file."""
    written, files = data["seq2seq"]
    folder = tmp_path_factory.mktemp("failing")
    (folder / "reward.py").write_text(FAILING)
    own = ["--train", files["train"], "--dev", files["dev"], "--reward", f"{folder / 'reward.py'}:score"]
    usual = ["--prompts", 5, "--samples", 3, "--watch", 0, "--precision", "fp32", "--evaluations", 2]
    script = [ROOT / "train_rl.py", "--task", "seq2seq", "--init", written["init"]]
    return [*script, *own, *usual, *CHANCY], folder / "wrong"


def test_two_ranks_fail_stop_and_go_on_to_the_same_bits(command, tmp_path):
    """A reward that fails on one rank stops both, and so does a signal; a reward may draw numbers of its own."""
    begin, wrong = command
    finished(torchrun(*begin, "--steps", 20, "--out", tmp_path / "whole", stdout=subprocess.DEVNULL))
    wrong.touch()
    failed = torchrun(*begin, "--steps", 20, "--out", tmp_path / "cut", stdout=subprocess.DEVNULL)
    _, said = failed.communicate(timeout=300)
    assert failed.returncode != 0
    assert (
        f"ValueError: no such answer; nothing is lost: mend it, and go on with: torchrun --nproc-per-node 2 "
        f"train_rl.py --resume {tmp_path / 'cut'}" in said
    )
    assert records(tmp_path / "cut")[-1]["step"] == 2
    wrong.unlink()
    going_on = [ROOT / "train_rl.py", "--resume", tmp_path / "cut"]
    stopped = torchrun(*going_on, stdout=subprocess.DEVNULL)
    while stopped.poll() is None and len(records(tmp_path / "cut")) < 6:
        time.sleep(0.05)
    os.kill(stopped.pid, signal.SIGINT)
    _, said = stopped.communicate(timeout=300)
    assert stopped.returncode != 0
    assert f"interrupted; go on with: torchrun --nproc-per-node 2 train_rl.py --resume {tmp_path / 'cut'}" in said
    finished(torchrun(*going_on, stdout=subprocess.DEVNULL))
    assert records(tmp_path / "whole") == records(tmp_path / "cut")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_two_ranks_leave_out_what_one_cannot_judge(command, tmp_path):
    """A step whose answers the second could not judge, and what the first looked at."""
    begin, wrong = command
    wrong.touch()
    more = ["--reward-errors", "skip", "--steps", 5, "--out", tmp_path / "run"]
    finished(torchrun(*begin, *more, stdout=subprocess.DEVNULL))
    wrong.unlink()
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines if "skipped" in line] == [2]
    assert [line["step"] for line in lines if "reward" in line] == [1, 2, 4, 5]
    assert [line.get("greedy_reward", "none") for line in lines if "samples" in line] == ["none"]
