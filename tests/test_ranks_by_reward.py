"""Several processes that train one model by reward: two climb the gradient of one, fail together, stop and go on."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from rich.console import Console
from scripts import finished, one_thread, same_training, torchrun, write_lines
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
    found = {"reward": f"{folder / 'reward.py'}:score"}
    for task, lines in rows.items():
        files = {"train": write_lines(folder / f"{task}.jsonl", lines[:-8])}
        files["dev"] = write_lines(folder / f"{task}-dev.jsonl", lines[-8:])
        own = TASKS[task].Options(**{name: Path(path) for name, path in files.items()})
        args = train_sft.Args(task=task, out=folder / task, options=own, batch_tokens=60, **TINY)
        train_sft.train(args, Console(quiet=True))
        found[task] = {"task": task, "init": str(folder / task), "by_reward": True, **FEW}, files
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
        more = {"threshold": 0.9, "steps": 6, "prompts": 3} if method == "expert" else {}
        found[method] = [{**written, "method": method, **more}, files]
    for task in ("classify", "tag"):
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
        same_training(tmp_path / "one" / name, tmp_path / "two" / name, 1e-6)
