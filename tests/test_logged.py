"""Q-learning on logged answers: its fixed point by enumeration, its batches, its files, and that it goes on exactly."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts
import tiny
import torch
from safetensors.torch import load_file
from scripts import FEW, SMALL
from test_soft_q import ACTOR, ANSWERS, END, TEMPERATURE, Table, distribution, everything, small

import minillm.curves
import train_rl
import train_sft
from minillm import logged
from minillm.commands import rollout
from minillm.episodes import Agent
from minillm.errors import UserError
from minillm.logged import Entry, batch_of, climb, episode_of, to_learn_from
from minillm.session import Session
from minillm.tasks.base import Example, Splits

BETA = 0.25
ENDING = [answer for answer in ANSWERS if answer[-1] == END]  # a log has no others


def args_of(**options):
    return train_rl.Args(method="soft-q", beta=BETA, **{"sft_share": 0.0, **options})


def with_advantages(episodes, less=0.0):
    for episode in episodes:
        episode.advantages = [episode.reward - less] * len(episode.answer)
    return episodes


# ---- what it learns ------------------------------------------------------------------------------


def test_its_fixed_point_is_the_optimum_whoever_gave_the_answers():
    """All answers to both prompts, as often as another policy than the start happens to draw them; taking a number off
    all rewards changes nothing."""
    episodes, start, other, model = everything(), Table(0), Table(7), Table(0)
    shares = distribution(other, episodes).flatten()
    often = 1 + torch.multinomial(shares, 500, replacement=True).bincount(minlength=len(episodes))
    log = with_advantages([e for e, n in zip(episodes, often.tolist(), strict=True) for _ in range(n)], less=0.5)
    assert int(often.max()) > 20 > 1 == int(often.min())
    weights = distribution(start, episodes) * torch.tensor([e.reward / BETA for e in episodes]).exp().view(2, -1)
    truth = weights / weights.sum(1, keepdim=True)
    assert float((distribution(model, episodes) - truth).abs().sum(1).min()) > 0.2  # of at most 2
    agent = Agent(model, start, None, ACTOR, TEMPERATURE)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        return climb(agent, log, args_of())

    optimizer.step(loss)
    assert float((distribution(model, episodes) - truth).abs().sum(1).max()) < 1e-3


@pytest.mark.parametrize("options", [{}, {"sft_share": 0.25}, {"aggregate": "token"}], ids=str)
def test_a_batch_cut_in_any_way_gives_the_same_gradient(options):
    log, gradients, losses = with_advantages(everything()[::3] * 2), [], []
    for micro_tokens in (10_000, 30, 1):
        agent = Agent(model := small(1), small(0), None, ACTOR, TEMPERATURE, micro_tokens)
        losses.append(climb(agent, log, args_of(**options)))
        gradients.append(tiny.gradients(model))
    assert losses[1:] == pytest.approx([losses[0]] * 2)
    tiny.assert_same(gradients[0], gradients[1])
    tiny.assert_same(gradients[0], gradients[2])


def test_given_answers_take_their_share_off():
    log, found = with_advantages(everything()[::3]), []
    for share in (0.0, 0.25):
        loss = climb(Agent(model := small(1), small(0), None, ACTOR, TEMPERATURE), log, args_of(sft_share=share))
        found.append((loss, tiny.gradients(model)))
    assert found[1][0] == pytest.approx(0.75 * found[0][0])
    tiny.assert_same({name: 0.75 * value for name, value in found[0][1].items()}, found[1][1], tolerance=1e-6)


def test_an_epoch_has_each_answer_once():
    for count, size in ((100, 30), (100, 32), (7, 1000), (5, 1)):
        parts = max(1, round(count / size))
        epochs = [[batch_of(step, count, size, 3) for step in range(e * parts, (e + 1) * parts)] for e in range(2)]
        for epoch in epochs:
            assert sorted(i for batch in epoch for i in batch) == list(range(count))
            assert max(map(len, epoch)) - min(map(len, epoch)) <= 1
        assert count < 7 or epochs[0] != epochs[1]
    assert batch_of(1, 100, 30, 0) != batch_of(1, 100, 30, 1)


# ---- what it learns from --------------------------------------------------------------------------


def settings(dev=(), longest=100):
    """Options, a task and an agent, as far as a log needs them."""
    letters = SimpleNamespace(prompt=lambda text: [*map(ord, text)], encode=lambda text: [*map(ord, text)], end=0)
    model = SimpleNamespace(config=SimpleNamespace(max_seq_len=longest))
    task = SimpleNamespace(splits=Splits([], [Example(prompt, ()) for prompt in dev], []), notes=["before"])
    return args_of(logged=Path("f")), task, SimpleNamespace(tokenizer=letters, model=model)


def test_rewards_are_taken_from_their_mean_and_what_is_held_out_is_left_out():
    entries = [Entry("f:1", "a", "x", 1.0), Entry("f:2", "b", "", 4.0), Entry("f:3", "held", "z", 100.0)]
    args, task, agent = settings(dev=["held"])
    one, two = to_learn_from(entries, args, task, agent)
    assert (one.prompt, one.answer, one.advantages, one.reward) == ([97], [120, 0], [-1.5, -1.5], 1.0)
    assert (two.prompt, two.answer, two.advantages) == ([98], [0], [1.5])  # an empty answer is its end
    assert task.notes[0] == "before"
    assert "2 logged answers to 2 prompts, mean reward 2.5; 1 more, whose prompts are held out" in task.notes[1]


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([("a", "x", 2.0), ("b", "y", 2.0)], "all answers of --logged f are rewarded 2: there is nothing to tell"),
        ([("held", "x", 2.0), ("held", "y", 1.0)], "all prompts of --logged f are held out, too"),
        ([("a", "x", 2.0), ("b", "y" * 100, 1.0)], "f:2: prompt and answer take 101 tokens, but .* at most 100"),
    ],
)
def test_a_log_that_teaches_nothing_is_refused(entries, sentence):
    with pytest.raises(UserError, match=sentence):
        to_learn_from([Entry(f"f:{i}", *e) for i, e in enumerate(entries, 1)], *settings(dev=["held"]))


def test_an_answer_may_just_fit():
    assert episode_of(Entry("f:1", "a", "y" * 99, 1.0), settings()[2].tokenizer, 100, 1.0).size == 101


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            ['{"prompt": "a", "answer": "b"}'],
            r"log.jsonl:1 has no field 'reward'.*say what is what with --logged-fields",
        ),
        (['{"prompt": "a", "answer": "b", "reward": "good"}'], "log.jsonl:1: 'reward' is \"good\", but a number"),
        (['{"prompt": "a", "answer": "b", "reward": NaN}'], "log.jsonl:1: 'reward' is NaN, but a number"),
        (['{"prompt": "a", "answer": "b", "reward": 1e20}'], "log.jsonl:1: the reward is 1e.20: give a number below"),
        (['{"prompt": "a", "answer": 3, "reward": 1}'], "log.jsonl:1: 'answer' is 3, but a text"),
        (['{"prompt": " ", "answer": "b", "reward": 1}'], "log.jsonl:1: 'prompt' is empty"),
        (['{"prompt": "a", "answer": "b", "reward": 1}', "no"], "log.jsonl:2 is not JSON"),
        ([], "holds no records"),
    ],
)
def test_wrong_files_are_refused_with_the_line(tmp_path, lines, sentence):
    path = tmp_path / "log.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(UserError, match=sentence):
        logged.read(args_of(logged=path))


def test_fields_and_formats(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("question,more,said,stars\nwhat,now, B ,3\n")
    fields = "prompt=question+more,answer=said,reward=stars"
    (entry,) = logged.read(args_of(logged=path, logged_fields=fields))
    assert (entry.prompt, entry.answer, entry.reward) == ("what\nnow", " B ", 3.0)  # blanks of an answer are its own
    with pytest.raises(UserError, match="--logged-fields price=stars: expected prompt=NAME, answer=NAME, reward=NAME"):
        logged.read(args_of(logged=path, logged_fields="price=stars"))
    assert logged.read(args_of()) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "policy-gradient"}, "--logged is for --method soft-q: --method policy-gradient learns"),
        ({"method": "expert"}, "--logged is for --method soft-q"),
        ({"passes": 2}, "--passes is for answers that the model draws"),
        ({"kl_limit": 1.0}, "--kl-limit is for answers"),
        ({"overlong": "drop"}, "--overlong is for answers"),
        ({"kl": "reward"}, "takes no --kl"),
        ({"logged": None, "logged_fields": "reward=r"}, "--logged-fields says what is what in the file of --logged"),
        ({"task": "classify"}, "--method soft-q is for answers that are written"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(UserError, match=sentence):
        train_rl.check(train_rl.Args(**{"method": "soft-q", "logged": Path("f"), **options}))


# ---- the whole way ---------------------------------------------------------------------------------

RUN = {"method": "soft-q", "steps": 6, **FEW, "watch": 4, "beta": 0.2}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    words = scripts.write_words(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        assert scripts.main(train_sft, **words, **SMALL, steps=120, lr=0.03, out=folder / "run") == 0
    return folder / "run"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)


@pytest.fixture
def log(start):
    """Of the start's own answers."""
    rollout.main(rollout_of(start))
    return Path("log.jsonl")


def rollout_of(start, **options):
    options = {"prompts": 40, "samples": 4, "temperature": 0.8, "precision": "fp32", **options}
    return rollout.Args(model=str(start), out=Path("log.jsonl"), **options)


def rl(**options):
    return scripts.main(train_rl, task="pronounce", **options)


def test_what_a_rollout_writes_can_be_learned_from(start, log):
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert 40 < len(rows) <= 160
    assert {row["reward"] for row in rows} == {0.0, 1.0}
    assert all(row["answer"].startswith(" ") for row in rows if row["reward"])
    assert rl(init=start, logged=log, **RUN, lora=2, sft_share=0.5, keep="best", out="run") == 0
    records = scripts.read_log(Path("run"))
    steps = [record for record in records if "lr" in record]
    assert len(steps) == 6
    assert all(math.isfinite(step["loss"]) and step["gradient_norm"] > 0 for step in steps)
    found = json.loads(Path("run/report.json").read_text())
    assert any(f"{len(rows):,} logged answers to " in note for note in found["notes"])
    assert {"dev_kl", "dev_pass_1", "change_dev_wer"} <= json.loads(Path("run/metrics.json").read_text()).keys()


def test_a_rollout_is_judged_and_comes_again(start, log, monkeypatch):
    monkeypatch.setattr(rollout, "AT_ONCE", 12)
    rollout.main(rollout_of(start, reward=("exact", "length=-0.5")))
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    first = log.read_text()
    rollout.main(rollout_of(start, reward=("exact", "length=-0.5")))
    assert log.read_text() == first
    assert all(row["reward"] in (-0.5 * len(row["answer"]), 1 - 0.5 * len(row["answer"])) for row in rows)
    assert len({row["prompt"] for row in rows}) > 20


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": 0}, "--samples 0 must be positive"),
        ({"temperature": 0.0}, "--temperature 0.0 must be positive"),
        ({"reward": ("nothing",)}, "--reward nothing: the task's own are"),
    ],
)
def test_a_rollout_that_makes_no_sense(start, options, sentence):
    with pytest.raises(UserError, match=sentence):
        rollout.main(rollout_of(start, **options))


def test_a_rollout_to_prompts_without_answers_needs_a_judge(start, monkeypatch):
    """To whom no answer is given, none would be right, and the log would say so."""
    real = rollout.prepare

    def prepare(*args):
        trial = real(*args)
        trial.task.splits = replace(trial.task.splits, unlabelled=[Example("ab:", ())])
        return trial

    monkeypatch.setattr(rollout, "prepare", prepare)
    with pytest.raises(UserError, match="compares with given answers, but some training prompts have none"):
        rollout.main(rollout_of(start))
    rollout.main(rollout_of(start, reward=("length",)))
    assert Path("log.jsonl").exists()


def test_a_task_that_writes_nothing(start, monkeypatch):
    monkeypatch.setattr(rollout, "prepare", lambda *_: SimpleNamespace(task=SimpleNamespace(name="classify")))
    with pytest.raises(UserError, match="learned --task classify, which writes no answers"):
        rollout.main(rollout_of(start))


def test_nothing_is_drawn_while_it_learns(start, log, monkeypatch):
    drawn, real = [], Agent.rollout
    monkeypatch.setattr(Agent, "rollout", lambda self, *args: drawn.append(1) or real(self, *args))
    assert rl(init=start, logged=log, **RUN, out="run") == 0
    assert len(drawn) == 2  # before and after


@pytest.mark.parametrize("options", [{}, {"lora": 2, "sft_share": 0.3}], ids=str)
def test_an_interruption_changes_nothing(start, log, monkeypatch, options, capsys):
    assert rl(init=start, logged=log, **RUN, **options, out="whole") == 0
    calls, real = [], Session.set_lr

    def set_lr(*args):
        calls.append(args)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "set_lr", set_lr)
        assert rl(init=start, logged=log, **RUN, **options, out="cut") == 130
    text = log.read_text()
    log.write_text(text.replace('"reward": 1.0', '"reward": 0.5', 1))
    assert scripts.main(train_rl, resume="cut") == 2
    assert "cut cannot go on, as this has changed since it began: logged answers" in capsys.readouterr().err
    log.write_text(text)
    assert scripts.main(train_rl, resume="cut") == 0
    one, two = (load_file(f"{name}/model.safetensors") for name in ("whole", "cut"))
    assert all((one[name] == two[name]).all() for name in one)
    logs = [[{**r, "seconds": 0} for r in scripts.read_log(Path(name))] for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_a_prompt_that_the_vocabulary_lacks(start, capsys):
    Path("log.jsonl").write_text('{"prompt": "ab:", "answer": " AA", "reward": 1}\n' * 2)
    with Path("log.jsonl").open("a") as file:
        file.write('{"prompt": "Ж:", "answer": " AA", "reward": 0}\n')
    assert rl(init=start, logged="log.jsonl", **RUN, out="run") == 2
    assert "log.jsonl:3: this model does not know what that is written in: the symbol" in capsys.readouterr().err
    assert not Path("run").exists()
