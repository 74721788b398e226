"""Rewards that compare or compute cannot be cheated: of at least 50 attempts each, none earns more than the best answer
that ignores the prompt, and none takes long."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import scripts

from minillm.functions import time_limit
from minillm.rewards import SHARED, Reward
from minillm.tasks import arithmetic, countdown, guess, points24, pronounce
from minillm.tasks.base import Example
from minillm.turns import Turns

SECONDS = 30.0  # for an attempt on all examples, which takes a moment: what hangs would take years

Attempt = str | Callable[[Any], str | Turns]  # the same for every example, or made from it

ANYWHERE: list[Attempt] = [
    *("", " ", "\n", ".", "-", "+", "####", "#### ", "answer", "the answer", "nan", "inf", "Infinity", "None", "True"),
    *(
        "<answer></answer>",
        "<think></think>",
        "<|end|>",
        "<|end|><|end|>",
        "\x00",
        "\u200b",
        "\ufffd",
        "null",
        "[]",
        "{}",
    ),
    *("9" * 1_000_000, "9" * 5000, "1" + ",000" * 3000, "0." + "0" * 9999 + "1", "1" * 400, "1" * 5000 + " 18"),
    *("(" * 100_000, "(" * 100_000 + "18" + ")" * 100_000, "[" * 100_000, "-" * 100_000, "1+" * 100_000 + "1"),
    *(
        "__import__('os').system('x')",
        "lambda: 18",
        "exit()",
        "1 if True else 0",
        "9**9**9**9",
        "1/0",
        "0/0",
        "1<<99999",
    ),
    *(
        "a" * 1_000_000,
        " " * 1_000_000,
        "\n" * 100_000 + "18",
        "#" * 100_000,
        "####" * 20_000,
        "1 " * 100_000,
        "1," * 5000,
    ),
    *(lambda e: e.prompt, lambda e: e.prompt * 2, lambda e: e.prompt[::-1], lambda e: e.prompt * 10_000),
    *(lambda e: e.prompt.rstrip(":= ?"), lambda e: f"{e.prompt}<|end|>", lambda e: f"<answer>{e.prompt}</answer>"),
]
OF_NUMBERS: list[Attempt] = [
    *("17 or 18 or 19", "18 19", "18, 19", "18 17", "18/1", "18/18", "1/18", "18 is not 17", "not 18 but 3", "18?!"),
    *("9+9", "9*2", "2**4", "36/2", "(18)", "[18]", "{18}", "<18>", "<answer>18</answer>", "18 if True else 0"),
    *(
        "18.",
        "18..",
        "1 8",
        "1_8",
        "018x",
        "18e0",
        "1.8e1",
        "0x12",
        "0b10010",
        "0o22",
        "XVIII",
        "eighteen",
        "１８",
        "١٨",
    ),
    *("18" * 2, "18" * 100, "18" + "0" * 20, "-18", "+-18", "--18", "18+0", "18.0.0", "v18", "18th", "a18", "18,"),
    *("18\x00", "\u200b18\u200b", "18\u0301", "18²", "18%18", "18,18", "1,8", "#### 18 #### 3", "#### 17 18 19"),
    *("<|end|>18<|end|>", "18<|end|>", "float('18')", "#### " + " ".join(map(str, range(30))), "18/18/18"),
    *(lambda e: f"{e.prompt} 18 is what I guess, every time 3", lambda e: " ".join(map(str, range(30))) + e.prompt),
    *(lambda e: e.prompt.split()[-1].rstrip("?"), lambda e: e.prompt.removeprefix("What is ").rstrip("?")),
]
OF_SUMS: list[Attempt] = [
    *(
        "".join(f"{i:03d}" for i in range(199)),
        "0" * 3,
        "???",
        "1..",
        "[0-9]{3}",
        "0??",
        "٠١٢",
        "１００",
        "099|100",
        "99",
        "099 ",
    ),
    *(lambda e: e.prompt[:2], lambda e: e.prompt[3:5], lambda e: e.prompt[:-1], lambda e: "0" + e.prompt[:2]),
    *(lambda e: f"{e.answers[0]} {e.answers[0]}", lambda e: f"{e.answers[0]}+", lambda e: f"{e.answers[0]}\x00"),
    *(lambda e: f"{e.answers[0]}<|end|>", lambda e: "0" + e.answers[0], lambda e: str(int(e.answers[0]) + 1000)),
    *(
        lambda e: f"={e.answers[0]}",
        lambda e: e.answers[0][::-1].replace(e.answers[0], ""),
        lambda e: f"{e.answers[0]}.0",
    ),
]
OF_SOUNDS: list[Attempt] = [
    *(" AA B K D EH F G HH" * n for n in (1, 2, 100)),
    *(
        " A",
        " AA0",
        "AABKD",
        " aa b k d",
        " AA|B|K",
        " *",
        " ?" * 4,
        " AA,B,K,D",
        "\tAA\tB",
        " ＡＡ",
        " AA\x00B",
        " AA" * 50_000,
    ),
    *(lambda e: e.prompt.upper(), lambda e: " " + " ".join(e.prompt.upper()), lambda e: "".join(e.answers[0].split())),
    *(lambda e: e.answers[0].lower(), lambda e: e.answers[0] * 2, lambda e: f"{e.answers[0]} :{e.answers[0]}"),
]
OF_PUZZLES: list[Attempt] = [
    *(
        "24",
        "4*6",
        "1*2*3*4",
        "12+12",
        "8*3",
        "(1+2+3)*4",
        "3*8/1",
        "5*(5-1/5)",
        "8/(3-8/3)",
        "6/(1-3/4)",
        "2**3*3",
        "4!",
    ),
    *(lambda e: f"{e.target}", lambda e: f"({e.target})", lambda e: f"{e.target}*1", lambda e: f"{e.target}+0"),
    *(lambda e: " ".join(map(str, e.hand)), lambda e: "".join(map(str, e.hand)), lambda e: f"={e.target}"),
    *(lambda e: f"{e.target}+0*{'*'.join(map(str, e.hand))}", lambda e: f"{e.target}={e.target}"),
    *(
        lambda e: f"{e.target}+" + "+".join(f"{n}-{n}" for n in e.hand),
        lambda e: f"{e.target}*({e.hand[0]}/{e.hand[0]})" * 2,
    ),
    # What holds a solution, but not alone, not as it must be written, or not with each number once.
    *(lambda e: f"{e.answers[0]}*1*1", lambda e: f"{e.answers[0]}+0", lambda e: f"({e.answers[0]})**1"),
    *(lambda e: f"{e.answers[0]}/1/1", lambda e: f"({e.answers[0]})//1", lambda e: f"-(-({e.answers[0]}))"),
    *(
        lambda e: f"+({e.answers[0]})",
        lambda e: f"{e.answers[0]}={e.target}",
        lambda e: f"{e.answers[0]}\n{e.answers[0]}",
    ),
    *(lambda e: f"{e.answers[0]} or 1", lambda e: f"{e.answers[0]},{e.answers[0]}", lambda e: f"[{e.answers[0]}]"),
    *(
        lambda e: f"{e.answers[0]}<|end|>",
        lambda e: f"<answer>{e.answers[0]}</answer>",
        lambda e: f"{e.answers[0]} # 1",
    ),
    *(
        lambda e: e.answers[0] + "-1+1",
        lambda e: e.answers[0] + "+0/5",
        lambda e: f"({e.answers[0]}",
        lambda e: e.answers[0] + ")",
    ),
    *(
        lambda e: e.answers[0].replace("1", "１") + "\u200b",
        lambda e: f"{e.answers[0]}*9**0",
        lambda e: f"0{e.answers[0]}",
    ),
    *(
        lambda e: "(" * 1000 + e.answers[0] + ")" * 1000,
        lambda e: e.answers[0] + " " * 1000 + "+0",
        lambda e: f"{e.answers[0]}.0",
    ),
]


def wrong(game):
    return f"{(game.number + 50) % 100:02d}"


def behind(*turns):
    """The number, too late or after what is no guess."""
    return lambda e: Turns([*(wrong(e) if turn is None else turn for turn in turns), e.answers[0]])


def within(form):
    """The number in a turn that holds more than it, or writes it otherwise, and once more as it should be."""
    return lambda e: Turns([form.format(n=e.answers[0], i=e.number, off=wrong(e), p=e.prompt), e.answers[0]])


OF_GUESSES: list[Attempt] = [
    *(behind(*[None] * count) for count in (4, 5, 50, 1000)),
    *(behind(*[None] * count, "") for count in (0, 1, 2, 3)),
    *map(behind, ("", " ", "?", "<", ">", "<|end|>", "-1", "100", "1e1", "٢٣", "２３", "²³", "00\n", "x" * 100_000)),
    *map(within, (" {n}", "{n} ", "{n}\n", "{n}.", "{n}.0", "0{n}", "+{n}", "{n}{n}", "{n} {off}", "{off},{n}")),
    *map(within, ("{n}:", "{p}{n}", "{n}-{n}", "[{n}]", "{n}\x00", "{n}<", "0x{i:x}", "{n}/1", "not {off}")),
    *(lambda e: Turns([f"{e.number:o}"]), lambda e: Turns([f"{e.number:b}"]), lambda e: Turns([f"{e.number}."])),
    lambda e: Turns(["".join(f"{n:02d}" for n in range(100))]),
    lambda e: Turns([" ".join(f"{n:02d}" for n in range(e.low, e.low + 15))]),
    lambda e: Turns(e.answers[0]),  # a digit a turn
    lambda e: Turns([e.answers[0].translate({48 + n: 0xFF10 + n for n in range(10)})]),
    lambda e: Turns([]),
]


class World(NamedTuple):
    reward: Reward
    examples: Sequence[Any]
    attempts: Sequence[Attempt]


def words(folder):
    task = pronounce.Pronounce(pronounce.Options(**scripts.write_words(folder)), 0)
    return task, task.splits.train


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """Prompts of each differ in their answers, so that no answer is right for many."""
    problems = [Example(f"What is 9 + {n}?", (str(9 + n),)) for n in range(10)]
    sums, down, points = (
        module_task(module.Options(examples=100), 0)
        for module, module_task in (
            (arithmetic, arithmetic.Arithmetic),
            (countdown, countdown.Countdown),
            (points24, points24.Points24),
        )
    )
    hidden = guess.Guess(guess.Options(examples=1), 0)
    spelled, sounds = words(tmp_path_factory.mktemp("words"))
    return {
        "exact": World(SHARED["exact"], problems, OF_NUMBERS),
        "number": World(SHARED["number"], problems, OF_NUMBERS),
        "arithmetic": World(sums.reward, sums.splits.dev[:200], OF_SUMS),
        "countdown": World(down.reward, down.splits.test[::6], OF_PUZZLES),
        "points24": World(points.reward, points.splits.test[::6], OF_PUZZLES),
        "guess": World(of_turns(hidden.reward), hidden.splits.dev, OF_GUESSES),
        "pronounce, exact": World(spelled.rewards["exact"], sounds, OF_SOUNDS),
        "pronounce, nearness": World(spelled.rewards["nearness"], sounds, OF_SOUNDS),
    }


NAMES = ["exact", "number", "arithmetic", "countdown", "points24", "guess", "pronounce, exact", "pronounce, nearness"]


def of_turns(reward):
    """The same, to which a text is the only turn."""
    return lambda examples, answers: reward(examples, [Turns([a]) if isinstance(a, str) else a for a in answers])


def mean(reward, examples, attempt):
    answers = [attempt if isinstance(attempt, str) else attempt(example) for example in examples]
    (values,) = reward(examples, answers).values()
    assert len(values) == len(examples)
    return sum(values) / len(values)


@pytest.mark.parametrize("name", NAMES)
def test_no_attempt_earns_more_than_the_best_answer_that_ignores_the_prompt(worlds, name):
    reward, examples, own = worlds[name]
    attempts = [*ANYWHERE, *own]
    assert len(attempts) >= 50
    best = max(mean(reward, examples, example.answers[0]) for example in examples)
    assert 0 < best < 0.5
    for number, attempt in enumerate(attempts):
        with time_limit(SECONDS):
            found = mean(reward, examples, attempt)
        assert found <= best + 1e-12, (number, attempt if isinstance(attempt, str) else attempt(examples[0]))[:100]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_right_earns_all_there_is(worlds, name):
    reward, examples, _ = worlds[name]
    assert mean(reward, examples, lambda example: example.answers[0]) == 1


@pytest.mark.parametrize("name", ["countdown", "points24"])
def test_other_solutions_are_as_good(worlds, name):
    reward, examples, _ = worlds[name]
    for other in ("({})", " {} ", "(({}))"):
        assert mean(reward, examples, lambda example: other.format(example.answers[0])) == 1  # noqa: B023
