"""An environment of one's own: whatever it may do wrong, with what it goes together, and a training in it from end to
end."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from scripts import FEW, SMALL, read_log, steps_of

import minillm.curves
import minillm.functions
import train_rl
import train_sft
from minillm import watch
from minillm.commands import evaluate as command
from minillm.errors import UserError
from minillm.functions import RewardError
from minillm.tasks import seq2seq
from minillm.tasks.base import Example
from minillm.turns import Turns, open_environment

EXAMPLE = Example("ab", ())

WRONG = {
    "raises": ("def reply(e, a):\n    return [][3]\n", "failed: line 2: IndexError"),
    "count": ("def reply(e, a):\n    return ['a']\n", "returned 1 of 2 replies"),
    "more and more": (
        "import itertools\ndef reply(e, a):\n    return map(str, itertools.count())\n",
        "returned more than 2 of 2 replies",
    ),
    "a text": ("def reply(e, a):\n    return 'ab'\n", "returned str, but a list with a text, or None, for each"),
    "nothing": ("def reply(e, a):\n    pass\n", "returned NoneType, but a list"),
    "numbers": ("def reply(e, a):\n    return [None, 4]\n", "returned 4 for answer 1, but a text, or None"),
    "arguments": ("def reply(a):\n    return ['', '']\n", "failed: TypeError"),
    "leaves": ("import sys\ndef reply(e, a):\n    sys.exit(3)\n", "failed: line 3: SystemExit"),
    "hangs": (
        "def reply(e, a):\n    while True:\n        pass\n",
        "took longer than --reward-seconds 0.2 for 2 answers",
    ),
    "hangs later": (
        "def replies():\n    while True:\n        pass\n    yield ''\ndef reply(e, a):\n    return replies()\n",
        "took longer than --reward-seconds 0.2",
    ),
}


@pytest.mark.parametrize(("code", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_environments(tmp_path, monkeypatch, code, sentence):
    monkeypatch.setattr(minillm.functions, "AGAIN", 0.1)
    path = tmp_path / "game.py"
    path.write_text(code)
    with pytest.raises(RewardError, match=rf"game\.py:reply {sentence}"):
        open_environment(f"{path}:reply", None, 0.2).reply([EXAMPLE] * 2, [Turns(["a"])] * 2)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("no.py:reply", "there is no file no.py to take 'reply' from"),
        ("game", "--environment game: give FILE.py:FUNCTION"),
        ("game:reply", "give FILE.py:FUNCTION"),
    ],
)
def test_environments_that_cannot_be_opened(option, sentence):
    with pytest.raises(UserError, match=sentence):
        open_environment(option, None)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"task": "arithmetic", "environment": "g.py:reply"}, "is for --task seq2seq; --task arithmetic takes none"),
        ({"task": "classify", "environment": "g.py:reply"}, "--task classify takes none"),
        ({"task": "guess", "environment": "g.py:reply"}, "--task guess has one of its own"),
        ({"task": "seq2seq", "turns": 3}, "--turns is of --environment"),
        ({"task": "seq2seq", "environment": "g.py:reply", "turns": 0}, "--turns 0 must be positive"),
        ({"task": "guess", "method": "expert"}, "--method expert learns from answers of one turn"),
        ({"task": "guess", "method": "soft-q", "logged": Path("a.jsonl")}, "--logged learns from answers of one turn"),
        ({"task": "seq2seq", "environment": "g.py:reply", "method": "expert"}, "learns from answers of one turn"),
    ],
)
def test_options_that_do_not_go_together(options, sentence):
    with pytest.raises(UserError, match=sentence):
        train_rl.check(train_rl.Args(**options))


# ---- from end to end ---------------------------------------------------------------------------------

CODE = """
import json
from pathlib import Path

calls = 0

def reply(examples, answers):
    global calls
    calls += 1
    wrong = Path(__file__).parent / "wrong.json"
    if wrong.exists() and str(calls) in json.loads(wrong.read_text()):
        raise ValueError("no such move")
    return [f" {len(a[-1])} more?" if len(a) < 3 else None for a in answers]

def score(examples, answers):
    assert all(isinstance(a, tuple) and len(a.replies) == len(a) - 1 for a in answers)
    return {"e": ["".join(a).count("e") / 20 for a in answers], "turns": [len(a) / 3 for a in answers]}
"""
STEPS = 4
PAIRS = [(f"{a} {b}", a) for a in ("red", "green", "old", "new") for b in ("house", "tree", "door", "bed")]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A run that answers prompts in one turn, and the folder of its game."""
    pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("turns")
    rows = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in PAIRS]
    (folder / "train.jsonl").write_text("\n".join(rows[:12]) + "\n")
    (folder / "dev.jsonl").write_text("\n".join(rows[12:]) + "\n")
    (folder / "game.py").write_text(CODE)
    options = seq2seq.Options(train=folder / "train.jsonl", dev=folder / "dev.jsonl", context=64, max_answer_tokens=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        args = train_sft.Args(
            task="seq2seq", **SMALL, steps=60, lr=0.02, embedding_lr=0.02, options=options, out=folder / "start"
        )
        yield train_sft.train(args, Console(quiet=True)).folder


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)


def train(start, folder, wrong=(), **options):
    """A run whose environment fails at these calls."""
    folder.mkdir()
    (folder / "game.py").write_text(CODE)
    (folder / "wrong.json").write_text(json.dumps([*map(str, wrong)]))
    game = folder / "game.py"
    asked = {"environment": f"{game}:reply", "reward": (f"{game}:score",), "turns": 3, "watch": 2, "steps": STEPS}
    args = {"task": "seq2seq", "init": start, "out": folder / "run", "sft_share": 0.0, **FEW, **asked, **options}
    train_rl.train(train_rl.Args(**args), Console(quiet=True))
    return folder / "run"


def records(run):
    return [{k: v for k, v in record.items() if k != "seconds"} for record in read_log(run)]


def assert_equal_runs(one, two):
    assert records(one) == records(two)
    first, second = (load_file(run / "model.safetensors") for run in (one, two))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        yield train(start, tmp_path_factory.mktemp("whole") / "game")


def test_a_game_of_ones_own_is_played_and_measured(whole, capsys):
    metrics = json.loads((whole / "metrics.json").read_text())
    assert steps_of(whole) == [1, 2, 3, 4]
    assert {"dev_exact", "dev_pass_1", "dev_kl", "change_dev_reward"} <= metrics.keys()
    log = read_log(whole)
    assert all(0 <= record["reward_turns"] <= 1 for record in log if "lr" in record)
    assert any("more?]" in sample["answer"] for r in log for sample in r.get("samples", ()))
    assert json.loads((whole / "args.json").read_text())["turns"] == 3


def test_to_evaluate_it_the_environment_is_named_once_more(whole, tmp_path):
    """It is code, and a run may be a stranger's."""
    with pytest.raises(UserError, match=r"learned to answer by turns: evaluate it with --environment FILE.py:FUNCTION"):
        command.main(command.Args(model=str(whole)))
    environment, answers = f"{whole.parent / 'game.py'}:reply", tmp_path / "answers.jsonl"
    (whole.parent / "wrong.json").unlink(missing_ok=True)
    command.main(command.Args(model=str(whole), environment=environment, predictions=answers, precision="fp32"))
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert len(line["answer"]["replies"]) == len(line["answer"]["turns"]) - 1


def test_a_start_that_had_an_environment_is_told_of(whole, tmp_path):
    """It is not taken over, being code."""
    console = Console(file=io.StringIO(), width=300)
    asked = {"reward": ("exact",), "sft_share": 0.0, "watch": 0, "steps": 1}
    train_rl.train(train_rl.Args(task="seq2seq", init=whole, out=tmp_path / "run", **FEW, **asked), console)
    game = json.loads((whole / "args.json").read_text())["environment"]
    assert f"give --environment {game} for them here, too" in console.file.getvalue()


@pytest.mark.parametrize("call", [2, 7])
def test_it_stops_where_the_environment_fails_and_goes_on_there(start, whole, tmp_path, call):
    """Before its first step, or within one."""
    with pytest.raises(UserError, match=r"game\.py:reply failed: line 12: ValueError: no such move.*--resume"):
        train(start, tmp_path / "game", wrong=[call])
    Path(tmp_path / "game" / "wrong.json").unlink()
    train_rl.train(train_rl.Args(resume=tmp_path / "game" / "run"), Console(quiet=True))
    assert_equal_runs(whole, tmp_path / "game" / "run")


@pytest.mark.parametrize("errors", ["stop", "skip"])
def test_a_look_without_replies_is_left_out(start, whole, tmp_path, monkeypatch, errors):
    real, calls = watch.glance, []

    def glance(*args):
        calls.append(1)
        if len(calls) == 1:
            raise RewardError("no such move")
        return real(*args)

    monkeypatch.setattr(watch, "glance", glance)
    if errors == "stop":
        with pytest.raises(UserError, match=r"no such move; nothing is lost: .*--resume"):
            train(start, tmp_path / "game")
        train_rl.train(train_rl.Args(resume=tmp_path / "game" / "run"), Console(quiet=True))
    else:
        train(start, tmp_path / "game", reward_errors="skip")
    run = tmp_path / "game" / "run"
    assert [r for r in records(run) if "lr" in r] == [r for r in records(whole) if "lr" in r]
    assert sum("dev_exact" in r for r in records(whole)) == 1 + sum("dev_exact" in r for r in records(run))


@pytest.mark.parametrize("options", [{"baseline": "greedy"}, {"baseline": "value"}, {"method": "soft-q"}], ids=str)
def test_other_estimators_learn_from_turns(start, tmp_path, options):
    run = train(start, tmp_path / "game", **options, watch=0, steps=2)
    assert steps_of(run) == [1, 2]
