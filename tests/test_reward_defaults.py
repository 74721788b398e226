"""What train_rl.py does where nobody says otherwise: the task's recipe, the start's own optimiser, what judges."""

import dataclasses
import json
from pathlib import Path

import pytest
import scripts
from rich.console import Console
from scripts import FEW, SMALL

import minillm.curves
import train_rl
import train_sft
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.rewards import exact, open_rewards
from minillm.start_by_reward import complete_by_reward, recipe_of_experts
from minillm.tasks import TASKS, arithmetic, pronounce
from minillm.tasks.base import Example


def model_of(width):
    return GPT(GPTConfig(50, 64, num_layers=1, width=width, num_heads=2))


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return pronounce.Pronounce(pronounce.Options(**scripts.write_words(tmp_path_factory.mktemp("words"))), 0)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    options = pronounce.Options(**scripts.write_words(folder))
    args = train_sft.Args(out=folder / "a", steps=1, lr=0.02, embedding_lr=0.03, options=options, **SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        return train_sft.train(args, Console(quiet=True)).folder


def completed(task, model=None, **options):
    options = {"init": Path("somewhere"), **options}
    return complete_by_reward(train_rl.Args(task=task.name, **options), task, model or model_of(64))


def test_pronunciation_does_what_makes_no_model_worse(words):
    args = completed(words)
    assert (args.prompts, args.samples, args.temperature, args.sft_share) == (256, 8, 1.0, 0.5)
    assert (args.optimizer, args.lr, args.embedding_lr, args.beta2) == ("adamw", 3e-4, 3e-4, 0.99)
    assert completed(words, model_of(256)).lr == pytest.approx(1.5e-4)  # AdamW's rates fall with the width
    reward = open_rewards(args.reward, words.rewards, None)
    example = Example("ab:", (" A B",))
    assert reward([example] * 2, [" A B", " A C"]) == exact([example] * 2, [" A B", " A C"]) == {"exact": [1.0, 0.0]}


def test_arithmetic_learns_from_rewards_alone():
    args = completed(arithmetic.Arithmetic(arithmetic.Options(), 0))
    assert (args.lr, args.temperature, args.sft_share, args.prompts) == (5e-4, 0.5, 0.0, 128)


def test_what_is_given_counts(words):
    args = completed(words, lr=0.1, samples=3, temperature=0.7, sft_share=0.0, steps=5)
    assert (args.lr, args.embedding_lr, args.samples, args.temperature) == (0.1, 0.1, 3, 0.7)
    assert (args.sft_share, args.prompts, args.steps, args.minutes) == (0.0, 256, 5, None)
    assert completed(words, lora=2).lr == pytest.approx(3e-3)


@pytest.mark.parametrize(
    ("reward", "share"),
    [((), 0.5), (("exact",), 0.5), (("nearness=2", "length=-0.1"), 0.5), (("my.py:score",), 0.0), (("runs/a",), 0.0)],
)
def test_what_a_stranger_judges_is_not_pulled_towards_known_answers(words, reward, share):
    assert completed(words, reward=reward).sft_share == share


@pytest.mark.parametrize(("given", "share"), [({}, 0.0), ({"sft_share": 0.25}, 0.25)])
def test_nor_is_what_a_log_judges(words, given, share):
    assert completed(words, method="soft-q", beta=0.1, logged=Path("log.jsonl"), **given).sft_share == share


def test_experts_go_on_as_the_start_was_made(start, words):
    args = completed(words, method="expert", init=start)
    assert (args.optimizer, args.lr, args.embedding_lr, args.batch_tokens) == ("muon", 0.01, 0.015, 64)
    assert (args.rounds, args.samples, args.temperature, args.prompts, args.sft_share) == (3, 4, 1.0, None, None)
    train_rl.check(args)
    other = completed(words, method="expert", init=Path("somebody/elses"))
    assert (other.optimizer, other.lr, other.batch_tokens) == ("adamw", 3e-4, 2048)


def test_a_spoiled_start_is_said(start, words, tmp_path):
    options = json.loads((start / "args.json").read_text())
    (tmp_path / "args.json").write_text(json.dumps({**options, "lr": "fast"}))
    with pytest.raises(UserError, match=r"args\.json is spoiled: 'lr' cannot be 'fast'"):
        completed(words, method="expert", init=tmp_path)
    classify = object.__new__(TASKS["classify"])
    with pytest.raises(UserError, match="--task classify writes none"):
        recipe_of_experts(start, classify, model_of(8))


def test_a_run_of_an_earlier_version_goes_on_as_it_was(start, words):
    """Options that came later have the defaults that they had then, not those of today's recipes."""
    saved = dataclasses.replace(completed(words), optimizer=None, embedding_lr=None, beta2=None, resume=start)
    args = complete_by_reward(saved, words, model_of(64))
    assert (args.optimizer, args.embedding_lr, args.beta2) == ("adamw", args.lr, None)


def test_options_are_checked_again_with_what_the_recipe_added(start, tmp_path):
    many = {"task": "pronounce", "init": start, **FEW, "prompts": 2**20, "samples": None, "steps": 1}
    with pytest.raises(UserError, match="too many answers in a step"):
        train_rl.train(train_rl.Args(**many, out=tmp_path / "run"), Console(quiet=True))
    assert not (tmp_path / "run").exists()
