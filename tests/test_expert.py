"""Expert iteration: what it finds, when it tries and when it learns, and that an interruption changes nothing."""

import itertools
import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts
import torch
from safetensors.torch import load_file
from scripts import SMALL

import minillm.curves
import train_rl
import train_sft
from minillm import expert, held_out, watch
from minillm.episodes import Episode
from minillm.errors import UserError
from minillm.expert import Finds, Plan, agreed_threshold, threshold_of
from minillm.rewards import RewardError
from minillm.session import Session
from minillm.tasks.base import Example, Splits

FEW = {"task": "pronounce", "method": "expert", "steps": 6, "rounds": 2, "prompts": 12, "samples": 3}
FEW |= {"batch_tokens": 64, "precision": "fp32", "evaluations": 2, "watch": 4, "dropout": 0.1, "labels": 0.5}


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    monkeypatch.setattr(expert, "ANSWERS", 15)  # so that a round tries in several parts


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    words = scripts.write_words(folder)
    assert (
        scripts.main(train_sft, **words, **SMALL, steps=60, lr=0.03, dropout=0.0, labels=0.5, out=folder / "run") == 0
    )
    return folder / "run"


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """A run that was never interrupted, and all episodes that it judged in practice."""
    judged, real, folder = [], expert.judge, tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        patch.setattr(expert, "ANSWERS", 15)
        patch.setattr(expert, "judge", lambda *args: judged.append(real(*args)) or judged[-1])
        assert scripts.main(train_rl, init=start, **FEW, out=folder / "run") == 0
    return folder / "run", [episode for each in judged for episode in each]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_finds_are_all_different_right_answers_that_were_drawn(whole):
    folder, episodes = whole
    assert len(episodes) == 72 * 3  # two rounds of three steps, each worth twelve prompts
    right = {(e.example.prompt, tuple(e.answer)) for e in episodes if e.said in e.example.answers and not e.is_cut}
    finds = read(folder / "finds.jsonl")
    assert [(each["prompt"], tuple(each["tokens"])) for each in finds] == list(
        dict.fromkeys(
            (e.example.prompt, tuple(e.answer)) for e in episodes if (e.example.prompt, tuple(e.answer)) in right
        )
    )
    assert len(finds) > 3
    log = [record for record in read(folder / "log.jsonl") if "solved" in record]
    assert log[-1]["finds"] == len(finds)
    assert {record["step"] for record in log} == {0, 3}  # before the learning of each round
    assert scripts.steps_of(folder) == list(range(1, 7))


def test_the_rate_of_a_run_rises_and_falls_in_every_round(whole):
    rates = [record["lr"] for record in read(whole[0] / "log.jsonl") if "lr" in record]
    assert rates[:3] == pytest.approx(rates[3:])
    assert rates[0] > 1.5 * rates[1] > 4 * rates[2] > 0


def test_given_answers_are_learned_beside_what_was_found(start, whole, monkeypatch):
    seen, real = [], expert.Corpus
    monkeypatch.setattr(
        expert,
        "Corpus",
        lambda draw, *rest: seen.append([len(d.tokens) for e in draw(0) for d in e]) or real(draw, *rest),
    )
    assert scripts.main(train_rl, init=start, **FEW, out="run") == 0
    given = json.loads((start / "report.json").read_text())["examples"]["train"]
    log = [record for record in read(Path("run/log.jsonl")) if "solved" in record]
    found = [max(r["finds"] for r in log if r["step"] == step) for step in (0, 3)]
    assert [len(each) - given for each in seen] == found
    assert found[1] > found[0] > 0


@pytest.mark.parametrize("call", [1, 2, 3, 5, 7, 9, 11, 14, 17])
def test_an_interruption_changes_nothing(start, whole, monkeypatch, call):
    """In trying, in learning, between the two: the same weights, finds and log."""
    real, calls = Session.set_lr, []

    def set_lr(*args):
        calls.append(args)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "set_lr", set_lr)
        assert scripts.main(train_rl, init=start, **FEW, out="cut") == 130
    with Path("cut/finds.jsonl").open("a") as file:  # as of a process that died after its last checkpoint
        file.write('{"prompt": "torn')
    assert scripts.main(train_rl, resume="cut") == 0
    folder, _ = whole
    assert Path("cut/finds.jsonl").read_text() == (folder / "finds.jsonl").read_text()
    logs = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in read(run / "log.jsonl")]
        for run in (folder, Path("cut"))
    ]
    assert logs[0] == logs[1]
    one, two = (load_file(run / "model.safetensors") for run in (folder, Path("cut")))
    assert all((one[name] == two[name]).all() for name in one)


def test_lost_finds_are_said(start, monkeypatch, capsys):
    real, calls = Session.set_lr, []
    with monkeypatch.context() as patch:
        patch.setattr(
            Session, "set_lr", lambda *a: calls.append(a) or (len(calls) == 8 and signal.raise_signal(2)) or real(*a)
        )
        assert scripts.main(train_rl, init=start, **FEW, out="cut") == 130
    text = Path("cut/finds.jsonl").read_text()
    for spoiled in (text[: len(text) // 2], "[]\n" * text.count("\n"), ""):
        Path("cut/finds.jsonl").write_text(spoiled)
        assert scripts.main(train_rl, resume="cut") == 2
        assert "finds.jsonl" in capsys.readouterr().err


# ---- its parts -----------------------------------------------------------------------------------


def episode(prompt, answer, is_cut=False):
    return Episode(Example(prompt, ()), [0], answer, [0.0] * len(answer), "".join(map(str, answer)), is_cut)


def test_what_is_kept(tmp_path):
    finds = Finds(tmp_path / "finds.jsonl", 0)
    assert finds.add([episode("a", [1]), episode("a", [1]), episode("a", [2]), episode("b", [1], is_cut=True)]) == 3
    assert finds.add([episode("a", [1]), episode("b", [3])]) == 2
    assert list(finds.found) == [("a", (1,)), ("a", (2,)), ("b", (3,))]
    finds.add([episode("c", [i]) for i in range(50)])
    assert len(finds) == 3 + expert.MOST_FINDS
    again = Finds(tmp_path / "finds.jsonl", 2)  # of which a checkpoint counts two
    assert list(again.found) == list(finds.found)[:2]
    assert len(read(tmp_path / "finds.jsonl")) == 2


def test_what_was_cut_is_no_answer(tmp_path):
    finds = Finds(tmp_path / "finds.jsonl", 0)
    assert finds.add([episode("a", [1], is_cut=True), episode("b", [2], is_cut=True)]) == 0
    assert not finds.found


def test_a_threshold_that_nothing_reaches_ends_in_a_sentence(start, capsys):
    assert scripts.main(train_rl, init=start, **FEW, threshold=7.5, out="run") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "not one of the answers to 36 prompts reached --threshold 7.5, the best was rewarded" in said
    assert not Path("run/metrics.json").exists()


def test_rounds_without_a_find_are_said(start, monkeypatch):
    """Where right is what is rewarded like given answers, and none of the model's own is."""
    monkeypatch.setattr(expert, "threshold_of", lambda *_: 7.5)
    assert scripts.main(train_rl, init=start, **FEW | {"steps": 4, "rounds": 1}, out="run") == 0
    remarks = json.loads(Path("run/report.json").read_text())["remarks"]
    assert any("nothing to learn from: none of the answers was right" in remark for remark in remarks)
    alarms = [(each["alarm"], each["step"]) for each in read(Path("run/log.jsonl")) if "alarm" in each]
    assert ("nothing to learn from", 3) in alarms  # at a look, before the end


def task_of(answers):
    examples = [Example(f"{i}:", (answer,)) for i, answer in enumerate(answers)]
    return SimpleNamespace(splits=Splits(examples, [], []), num_practised=100)


def test_right_is_what_is_rewarded_like_given_answers():
    right = lambda examples, answers: {"r": [float(a in e.answers) for e, a in zip(examples, answers, strict=True)]}  # noqa: E731
    task = task_of([str(i) for i in range(20)])
    assert threshold_of(task, right) == pytest.approx(1.0, abs=1e-5)
    graded = lambda examples, answers: {  # noqa: E731
        "right": right(examples, answers)["r"],
        "length": [-0.01 * len(answer) for answer in answers],
    }
    assert 0.9 < threshold_of(task, graded) < 1.0
    with pytest.raises(UserError, match=r"rewarded no better than answers to other prompts: .* --threshold"):
        threshold_of(task, lambda _, answers: {"length": [float(len(answer)) for answer in answers]})
    with pytest.raises(UserError, match="--threshold"):
        threshold_of(task, lambda _, answers: {"broken": [0.0 for _ in answers]})


def test_all_ranks_keep_what_the_first_calls_right(monkeypatch):
    """A reward that draws numbers of its own says something else to each; one that fails on the first, fails on all."""

    def second(*first_says):
        said = iter(first_says)
        return SimpleNamespace(leads=False, exchange=lambda own: [next(said), own])

    monkeypatch.setattr(expert, "threshold_of", lambda *_: 7.5)
    alone = SimpleNamespace(leads=True, exchange=lambda own: [own])
    assert agreed_threshold(alone, None, None) == 7.5
    assert agreed_threshold(second(None, 0.25), None, None) == 0.25
    with pytest.raises(RewardError, match="no such answer"):
        agreed_threshold(second("no such answer"), None, None)


def args_of(**options):
    return SimpleNamespace(**{"rounds": 3, "samples": 4, "steps": None, "prompts": None, "batch_tokens": 64} | options)


def test_steps_say_how_much_is_tried():
    """Ten prompts for each step of a round, before it learns; never more than there are."""
    plan = Plan(args_of(steps=9, prompts=10, samples=200), task_of("ab"), [])
    assert plan.at_once == 1
    tried, order = 0, []
    for step in range(9):
        while count := plan.to_try(step / 9, tried):
            tried += count
        order.append(tried)
    assert order == [30, 30, 30, 60, 60, 60, 90, 90, 90]
    assert Plan(args_of(steps=90, prompts=10), task_of("ab"), []).prompts == 100


def test_the_start_is_one_of_those_that_are_kept(start, tmp_path, monkeypatch):
    """Under --keep best, where the first look is the best."""
    scores = itertools.chain([1.0], itertools.repeat(0.0))
    for module in (watch, held_out):
        monkeypatch.setattr(module, "score_of", lambda *_: next(scores))
    assert scripts.main(train_rl, init=start, **FEW, keep="best", out=tmp_path / "run") == 0
    began, ended = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "run"))
    assert all(torch.equal(began[name], ended[name]) for name in began)


def test_minutes_are_halved():
    plan = Plan(args_of(), task_of("ab"), [])
    assert [plan.to_try(share, 0) > 0 for share in (0.0, 0.16, 0.17, 0.32, 0.34, 0.49, 0.51, 0.99)] == [
        *(True, True, False, False, True, True, False, False)
    ]
    assert plan.to_try(0.1, 100) == 0  # there are no more prompts
    assert plan.to_try(0.34, 100) > 0


def test_the_rate_rises_and_falls_in_every_round():
    plan = Plan(args_of(steps=6, rounds=2, prompts=1), task_of("ab"), [])
    assert [plan.learned(step / 6, 0.0) for step in range(6)] == pytest.approx([1 / 6, 1 / 2, 5 / 6] * 2)
    plan = Plan(args_of(rounds=2), task_of("ab"), [])
    assert [plan.learned(share, 0.5) for share in (0.25, 0.375, 0.4999, 0.75)] == pytest.approx([0, 0.5, 0.9996, 0])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rounds": 2}, "--rounds is of --method expert, not of --method policy-gradient"),
        ({"method": "expert", "kl": "reward"}, "--kl is of policy gradients, and has no effect with --method expert"),
        ({"method": "expert", "sft_share": 0.5}, "--sft-share is of policy gradients"),
        ({"method": "expert", "rounds": 0}, "--rounds 0 must be positive"),
        ({"method": "expert", "dropout": 1.0}, "--dropout 1.0 must be a share of activations"),
        ({"method": "expert", "threshold": float("nan")}, "--threshold nan must be a number"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(UserError, match=sentence):
        train_rl.check(train_rl.Args(**options))
