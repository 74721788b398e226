"""Rewards: what a person's function may do wrong is said, and which answers the ready ones take for right."""

import json
import signal
from fractions import Fraction

import pytest
import torch

import minillm.functions
from minillm.commands import reward as command
from minillm.errors import UserError
from minillm.final_number import last_number
from minillm.functions import RewardError, time_limit
from minillm.rewards import SHARED, exact, number, open_rewards
from minillm.tasks.base import Example

CPU = torch.device("cpu")
EXAMPLES = [Example("2 + 2 =", ("4",)), Example("10 / 4 =", ("2.5", "5/2"))]


@pytest.fixture
def write(tmp_path):
    def write(code, name="my_reward.py"):
        path = tmp_path / name
        path.write_text(code)
        return path

    return write


def judged(options, answers, own=SHARED, examples=EXAMPLES, **more):
    return open_rewards(options, own, CPU, **more)(examples, answers)


# ---- which, and how much each counts -----------------------------------------------------------------


def test_the_first_of_the_task_is_the_default():
    assert judged([], ["4", "3"]) == {"exact": [1.0, 0.0]}


def test_rewards_add_up_by_parts_with_weights(write):
    path = write("def score(examples, answers):\n    return {'a': [len(x) for x in answers], 'b': [0.5, 1]}\n")
    assert judged(["exact=2", f"{path}:score=-1", "length=0.5"], ["4", "2.5"]) == {
        "exact": [2.0, 2.0],
        "a": [-1.0, -3.0],
        "b": [-0.5, -1.0],
        "length": [0.5, 1.5],
    }


def test_a_function_sees_examples_and_answers(write):
    code = "def f(examples, answers):\n    return [e.prompt + e.answers[0] == a for e, a in zip(examples, answers)]\n"
    assert judged([f"{write(code)}:f"], ["2 + 2 =4", "x"]) == {"f": [1.0, 0.0]}


def test_a_file_may_import_what_stands_beside_it(write):
    write("def half(x):\n    return x / 2\n", "helpful.py")
    path = write("from helpful import half\n\ndef score(examples, answers):\n    return [half(1)] * len(answers)\n")
    assert judged([str(path)], ["", ""]) == {"score": [0.5, 0.5]}


WRONG = {
    "raises": (
        "def score(e, a):\n    x = []\n    return x[3]\n",
        "failed: line 3: IndexError: list index out of range",
    ),
    "NaN": ("def score(e, a):\n    return [0, float('nan')]\n", "part 'score' returned nan for answer 1"),
    "infinite": ("def score(e, a):\n    return [float('inf'), 0]\n", "returned inf for answer 0"),
    "count": ("def score(e, a):\n    return [1]\n", "returned 1 value for 2 answers"),
    "a number": ("def score(e, a):\n    return 1\n", "returned int, but a list"),
    "nothing": ("def score(e, a):\n    pass\n", "returned NoneType, but a list"),
    "too large": (
        "def score(e, a):\n    return [1, 10**5000]\n",
        "returned a number of 16,610 bits for answer 1, but a finite number was expected",
    ),
    "too large a fraction": (
        "from fractions import Fraction\ndef score(e, a):\n    return [1, Fraction(10**400, 3)]\n",
        "for answer 1, but a finite number was expected",
    ),
    "texts": ("def score(e, a):\n    return ['good', 'bad']\n", "returned 'good' for answer 0, but a finite number"),
    "no parts": ("def score(e, a):\n    return {}\n", "returned no reward"),
    "arguments": ("def score(answers):\n    return [1, 1]\n", "failed: TypeError"),
    "leaves": ("import sys\ndef score(e, a):\n    sys.exit(3)\n", "failed: line 3: SystemExit"),
    "hangs": (
        "def score(e, a):\n    while True:\n        pass\n",
        "took longer than --reward-seconds 0.2 for 2 answers",
    ),
    "more and more": (
        "import itertools\ndef score(e, a):\n    return itertools.count()\n",
        "returned more than 2 values for 2 answers",
    ),
    "raises later": ("def score(e, a):\n    return (1 / 0 for _ in a)\n", "failed: line 2: ZeroDivisionError"),
    "is cancelled": (
        "import asyncio\ndef score(e, a):\n    raise asyncio.CancelledError\n",
        "failed: line 3: CancelledError",
    ),
    "hangs, and catches every Exception": (
        "def score(e, a):\n    while True:\n        try:\n            while True:\n                pass\n"
        "        except Exception:\n            pass\n",
        "took longer than --reward-seconds 0.2 for 2 answers",
    ),
    "hangs, and catches all once": (
        "def score(e, a):\n    try:\n        while True:\n            pass\n    except BaseException:\n"
        "        while True:\n            pass\n",
        "took longer than --reward-seconds 0.2",
    ),
    "hangs, and makes something of it": (
        "def score(e, a):\n    try:\n        while True:\n            pass\n    except BaseException:\n"
        "        return [1, 1]\n",
        "took longer than --reward-seconds 0.2",
    ),
    "hangs later": (
        "def values():\n    while True:\n        pass\n    yield 1\ndef score(e, a):\n    return values()\n",
        "took longer than --reward-seconds 0.2",
    ),
    "no such function": ("def other(e, a):\n    return [1, 1]\n", "has no function 'score', only other"),
    "syntax": ("def score(\n", "cannot be run: .*SyntaxError"),
    "import": ("import nothing_of_this_name\n", "cannot be run: line 1: ModuleNotFoundError"),
}


@pytest.mark.parametrize(("code", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_functions(write, monkeypatch, code, sentence):
    monkeypatch.setattr(minillm.functions, "AGAIN", 0.1)
    path = write(code)
    with pytest.raises(UserError, match=sentence):
        judged([f"{path}:score"], ["a", "b"], seconds=0.2)


def test_who_waits_is_told_for_what_once(write, monkeypatch, capfd):
    monkeypatch.setattr(minillm.functions, "SILENT", 0.02)
    monkeypatch.setattr(minillm.functions, "AGAIN", 0.02)
    path = write("import time\ndef score(e, a):\n    time.sleep(0.1)\n    return [1, 2]\n")
    reward = open_rewards([f"{path}:score"], SHARED, CPU, seconds=50.0)
    for _ in range(2):
        assert reward([Example("", ())] * 2, ["a", "b"]) == {"score": [1.0, 2.0]}
    assert capfd.readouterr().err == f"waiting for {path}:score, which may take 50 seconds, see --reward-seconds\n"


def test_what_fails_at_the_answers_is_told_from_what_cannot_be_used(write):
    assert issubclass(RewardError, UserError)
    with pytest.raises(RewardError):
        judged([f"{write(WRONG['raises'][0])}:score"], ["a", "b"])
    with pytest.raises(UserError) as error:
        judged([f"{write(WRONG['syntax'][0])}:score"], ["a", "b"])
    assert not isinstance(error.value, RewardError)


def test_ctrl_c_is_no_fault_of_the_reward(write):
    with pytest.raises(KeyboardInterrupt):
        judged([f"{write('def score(e, a):' + chr(10) + '    raise KeyboardInterrupt' + chr(10))}:score"], ["a", "b"])


def test_a_clock_that_was_stopped_rings_no_more(monkeypatch):
    before = signal.getsignal(signal.SIGALRM)
    with time_limit(60.0):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_wrong_options(tmp_path):
    for options, sentence in (
        (["nothing"], "--reward nothing: the task's own are exact, number, length"),
        (["exact=much"], "--reward exact=much: expected NAME=WEIGHT"),
        (["exact=nan"], "expected NAME=WEIGHT"),
        ([str(tmp_path / "none.py:score")], r"there is no file .*none\.py"),
        (["exact", "exact"], "two rewards have a part 'exact'"),
    ):
        with pytest.raises(UserError, match=sentence):
            judged(options, ["a", "b"])


# ---- what is right -------------------------------------------------------------------------------------

HONEST = ("18", " 18 ", "= 18", "The answer is 18.", "9 + 9 = 18", "#### 18", "It costs $18.", "1. add\n2. so: 18")


def test_honest_answers_are_right():
    for answer in HONEST:
        assert number([Example("", ("18",))], [answer]) == {"number": [1.0]}, answer
    assert exact([Example("", ("18", "xviii"))] * 3, [" 18\n", "xviii", "XVIII"]) == {"exact": [1.0, 1.0, 0.0]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("1,234", 1234.0), ("1,234,567.5", 1234567.5), ("-3", -3.0), ("+3", 3.0), ("0.50", 0.5), ("12%", 12.0)),
        *(("so 3 eggs", None), ("3 eggs #### 4", 4.0), ("12,34", None), ("1.2.3", None), ("３", None), ("", None)),
        *(("x" * 10_001 + " 3", None), ("5 €", 5.0), ("9" * 19, None), ("1e5", None), ("3.", 3.0)),
        *(("#### 3 eggs", 3.0), ("#### so $3.50 a day.", 3.5), ("#### 3 or 4", None), ("#### ", None), ("5km", None)),
        *(("3/4", Fraction(3, 4)), ("-1/3", Fraction(-1, 3)), ("10/4", None), ("3/1", None), ("3/0", None)),
        *(("−3", -3.0), ("it lost -$5.", -5.0), ("#### −€5", -5.0), ("$-5", -5.0), ("10 − 3 = 7", 7.0)),
        *(("1/2/3", None), ("0.1", Fraction(1, 10)), ("0.10000000000000001", Fraction(10**16 + 1, 10**17))),
        *(("1" + ",000" * 3000, None), ("1" + ",000" * 5, 1e15), ("-0", 0.0)),
        *(("1 1/2", Fraction(3, 2)), ("so −2 3/4 km.", None), ("#### −2 3/4 km", Fraction(-11, 4))),
        *(
            ("-0 1/2", Fraction(-1, 2)),
            ("1 2/4", None),
            ("1 3/2", None),
            ("1,000 1/2", Fraction(2001, 2)),
            ("1 8", 8.0),
        ),
        *(("3-5", None), ("3–5", None), ("3 – 5", None), ("$3-$5", None), ("50%-60%", None), ("#### 3-5", None)),
        *(("9+9", None), ("9 + 9", None), ("3 × 6", None), ("1/2-3/4", None), ("10:30", None), ("1e-5", None)),
        *(("10-3=7", 7.0), ("10 - 3 = 7", 7.0), ("2: 5", 5.0), ("Answer:5", 5.0), ("from 7 to -5", -5.0)),
    ],
)
def test_the_number_at_the_end(text, value):
    assert last_number(text) == value


# ---- the command -------------------------------------------------------------------------------------


def test_a_reward_is_tried_on_a_file(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    rows = [{"q": "2+2", "a": "it is 4", "truth": ["4", "four"]}, {"q": "3+3", "a": "", "truth": "6"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command.main(command.Args(reward="number", file=path, fields="answer=a,prompt=q", json=True))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["reward"] for line in lines] == [1.0, 0.0]
    command.main(command.Args(reward="length", answer=("abc",)))
    assert "3" in capsys.readouterr().out
    slow = tmp_path / "slow.py"
    slow.write_text("import time\ndef score(e, a):\n    time.sleep(5)\n")
    with pytest.raises(UserError, match=r"took longer than --reward-seconds 0\.1 for 1 answer"):
        command.main(command.Args(reward=f"{slow}:score", answer=("abc",), reward_seconds=0.1))
    with pytest.raises(UserError, match="nothing to reward"):
        command.main(command.Args(reward="length"))
    with pytest.raises(UserError, match="--prompt goes with ANSWER"):
        command.main(command.Args(reward="length", prompt="a question", file=path, fields="answer=a"))


def test_a_reward_that_may_look_at_prompts_is_told_of_none(tmp_path, capsys):
    path = tmp_path / "mine.py"
    path.write_text("def score(e, a):\n    return [float(x.prompt == 'two?') for x in e]\n")
    for prompt, reward in ({"": 0.0, "two?": 1.0}).items():
        command.main(command.Args(reward=f"{path}:score", answer=("2",), prompt=prompt, json=True))
        told = capsys.readouterr()
        assert json.loads(told.out)["reward"] == reward
        assert ("no answer has a prompt" in told.err) == (not prompt)
