"""Guessing a number by turns: its rules, its players, what is held out, and that both scripts learn it."""

import json
from collections import Counter
from fractions import Fraction
from itertools import islice, pairwise

import pytest
import scripts

import minillm.curves
import train_rl
import train_sft
from minillm.batching import IGNORE
from minillm.commands import evaluate as command
from minillm.errors import UserError
from minillm.tasks.guess import GUESSES, NUMBERS, Game, Guess, Options, share_found
from minillm.turns import Turns

WORDS = Turns(["30", "26"])


@pytest.fixture(scope="module")
def task():
    return Guess(Options(examples=2000), 0)


def play(game, player):
    """What a player says who knows the bounds and what is left of them, until the environment has no reply."""
    low, high, said, replies = game.low, game.low + NUMBERS - 1, [], []
    while True:
        guess = player(low, high)
        said.append(f"{guess:02d}")
        (reply,) = Guess.environment.reply([game], [Turns(said, replies)])
        if reply is None:
            return Turns(said, replies)
        replies.append(reply)
        low, high = (low, guess - 1) if reply == "<" else (guess + 1, high)


def test_halving_always_finds_it(task):
    games = [*task.splits.dev, *task.splits.test]
    answers = [play(game, lambda low, high: (low + high) // 2) for game in games]
    assert task.reward(games, answers) == {"found": [1.0] * len(games)}
    assert max(map(len, answers)) == GUESSES
    assert Counter(map(len, answers))[1] == len(games) / NUMBERS


def test_a_player_who_goes_up_finds_four(task):
    answers = [play(game, lambda low, _: low) for game in task.splits.dev]
    assert task.measure(task.splits.dev, answers)["found"].value == pytest.approx(GUESSES / NUMBERS)
    assert all(set(turns.replies) <= {">"} for turns in answers)


def test_rules():
    game = Game(23, 28, ())
    assert (game.prompt, game.answers) == ("23-37:", ("28",))
    for turns, reply in (
        (["30"], "<"),
        (["26"], ">"),
        (["99"], "<"),  # beyond the range, but a guess
        (["28"], None),
        (["30", "28"], None),
        (["30", "26", "29"], "<"),
        (["30", "26", "29", "27"], None),  # used up
        ([""], None),
        (["030"], None),
        (["30", "7"], None),
    ):
        assert Guess.environment.reply([game], [Turns(turns)]) == [reply], turns
    assert [game.is_right(Turns(turns)) for turns in (["28"], ["30", "28"], ["30", "26"])] == [True, True, False]
    assert game.is_right("28")
    assert not game.is_right("27")


def of_every_choice(low, high, number, left):
    """The share of games that a player at random wins, by following each of his choices."""
    if not left:
        return Fraction(0)
    won = Fraction(0)
    for guess in range(low, high + 1):
        if guess == number:
            won += 1
        else:
            won += of_every_choice(*((low, guess - 1) if number < guess else (guess + 1, high)), number, left - 1)
    return won / (high - low + 1)


def test_how_often_the_random_player_finds_it():
    for numbers, guesses in ((1, 1), (3, 2), (7, 3), (NUMBERS, 2)):
        of_each = [of_every_choice(0, numbers - 1, number, guesses) for number in range(numbers)]
        assert share_found(numbers, guesses) == sum(of_each) / numbers, (numbers, guesses)
    assert float(share_found(NUMBERS, GUESSES)) == pytest.approx(0.604, abs=0.0005)
    assert share_found(7, 2) < share_found(7, 3) < 1 == share_found(3, 3)


def test_the_games_to_imitate_are_those_of_that_player(task):
    games = task.splits.train
    won = sum(game.number in game.guesses for game in games) / len(games)
    assert won == pytest.approx(float(share_found(NUMBERS, GUESSES)), abs=0.04)
    for game in games:
        assert len(game.guesses) == GUESSES or game.guesses[-1] == game.number
        low, high = game.low, game.low + NUMBERS - 1
        for guess in game.guesses:
            assert low <= guess <= high
            low, high = (low, guess - 1) if game.number < guess else (guess + 1, high)
    firsts = Counter(game.guesses[0] - game.low for game in games)
    assert min(firsts.values()) > 0.5 * len(games) / NUMBERS


def test_no_range_that_is_held_out_is_practised(task):
    lows = [
        {game.low for game in games}
        for games in (*list(vars(task.splits).values())[:3], islice(task.practice(1), 5000))
    ]
    assert lows[0] == lows[3]
    assert not any(lows[i] & lows[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    assert sum(map(len, lows[:3])) == 100 - NUMBERS + 1
    assert min(map(len, lows)) >= 8
    for split in (task.splits.dev, task.splits.test):
        assert Counter(game.low for game in split) == dict.fromkeys({game.low for game in split}, NUMBERS)
        assert len({(game.low, game.number) for game in split}) == len(split)


def test_what_is_held_out_is_the_same_for_every_seed_and_number(task):
    other = Guess(Options(examples=20), 3)
    assert (other.splits.dev, other.splits.test) == (task.splits.dev, task.splits.test)
    assert len(other.splits.train) == 20
    assert other.splits.train != task.splits.train[:20]
    assert task.splits == Guess(Options(examples=2000), 0).splits
    assert list(islice(task.practice(5), 50)) == list(islice(task.practice(5), 50))
    assert list(islice(task.practice(5), 50)) != list(islice(task.practice(6), 50))
    with pytest.raises(UserError, match="--examples 0 must be at least 1"):
        Guess(Options(examples=0), 0)


def test_documents_teach_guesses_and_not_hints(task):
    tokenizer = task.tokenizer()
    hints = {*tokenizer.encode("<>")}
    for game in task.splits.train[:200]:
        (document,) = task.documents(game, tokenizer, None)
        learned = [target for target in document.targets if target != IGNORE]
        assert learned == [i for guess in game.guesses for i in [*tokenizer.encode(f"{guess:02d}"), tokenizer.end]]
        assert not hints & {*learned}
        heard = [token for token in document.tokens if token in hints]
        assert tokenizer.decode(heard) == "".join("<" if game.number < guess else ">" for guess in game.guesses[:-1])
        assert len(document.tokens) <= task.tokens_needed(tokenizer)
        for (_, target), (token, _) in pairwise(zip(document.tokens, document.targets, strict=True)):
            assert target in (IGNORE, token)


def test_both_scripts_play_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    small = {"task": "guess", "examples": 200, "precision": "fp32", "evaluations": 1}
    shape = {"layers": 1, "width": 16, "heads": 2, "lr": 0.02, "embedding_lr": 0.02}
    assert scripts.main(train_sft, out=tmp_path / "sft", **small, **shape, steps=60, batch_tokens=512) == 0
    few = {"prompts": 4, "samples": 4, "watch": 4}
    assert scripts.main(train_rl, init=tmp_path / "sft", out=tmp_path / "rl", **small, **few, steps=2) == 0
    metrics = {run: json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("sft", "rl")}
    assert {"dev_found", "test_found", "dev_random_player"} <= metrics["sft"].keys()
    assert {"start_dev_found", "change_dev_found", "dev_pass_1", "dev_pass_8", "dev_kl", "dev_given"} <= metrics[
        "rl"
    ].keys()
    assert metrics["rl"]["start_dev_found"] == metrics["sft"]["dev_found"]
    assert metrics["rl"]["dev_pass_1"] == pytest.approx(metrics["rl"]["dev_reward"])
    capsys.readouterr()
    command.main(command.Args(model=str(tmp_path / "rl"), json=True, precision="fp32"))
    assert json.loads(capsys.readouterr().out)["metrics"]["found"]["value"] == metrics["rl"]["dev_found"]
