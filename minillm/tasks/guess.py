"""Guess a number by turns, `23-37:` → `30` `<` `26` `>` `28`: it is told whether the number is smaller or larger, and
has four guesses.

Who halves what is left always finds one of 15 numbers. The player whose games are imitated guesses at random within
what the hints leave, and finds it in `share_found(15, 4)` of his games, 60.4 %; nobody shows how it is done better.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from minillm import cli
from minillm.batching import Document, answering
from minillm.errors import UserError
from minillm.metrics import Interval, rate
from minillm.rewards import Reward
from minillm.tasks.base import Question, Splits, WritingTask
from minillm.tasks.files import place_of
from minillm.tokenizer import SymbolTokenizer, Tokenizer
from minillm.turns import Environment, Turns

DIGITS = 2
NUMBERS, GUESSES = 15, 4  # of a range; to find one of them: 2^4 − 1 is as many as halving tells apart
LOWER, HIGHER = "<", ">"  # what is replied: than the guess, the number is …
HELD_OUT = 0.15  # share of the ranges that dev has, and test
EXAMPLES = 10_000  # games to imitate, unless told otherwise


@dataclass(frozen=True)
class Options:
    examples: int | None = cli.option(None, f"number of games to learn from (default: {EXAMPLES})")


@dataclass(frozen=True)
class Game(Question):
    low: int  # the first number of its range
    number: int  # the hidden one
    guesses: tuple[int, ...]  # those of somebody who played it

    @property
    def prompt(self) -> str:
        return f"{written(self.low)}-{written(self.low + NUMBERS - 1)}:"

    @property
    def answers(self) -> tuple[str, ...]:
        return (written(self.number),)

    def is_right(self, answer: Turns | str) -> bool:
        """Whether it is among the turns that the rules allow: so many, and none behind one that is no guess."""
        turns = (answer,) if isinstance(answer, str) else answer[:GUESSES]
        return written(self.number) in takewhile(GUESS.fullmatch, turns)

    def reply(self, turns: Turns) -> str | None:
        """A hint; None where the number is found, the guesses are used up, or the last one is none."""
        is_over = self.is_right(turns) or len(turns) >= GUESSES or not GUESS.fullmatch(turns[-1])
        return None if is_over else self.hint(int(turns[-1]))

    def hint(self, guess: int) -> str:
        return LOWER if self.number < guess else HIGHER


GUESS = re.compile(f"[0-9]{{{DIGITS}}}")


def written(number: int) -> str:
    return f"{number:0{DIGITS}}"


def replies(games: Sequence[Game], answers: Sequence[Turns]) -> list[str | None]:
    return [game.reply(turns) for game, turns in zip(games, answers, strict=True)]


class Guess(WritingTask):
    name = "guess"
    headline = "found"
    Options = Options
    environment = Environment(replies, GUESSES)

    def __init__(self, options: Options, seed: int):
        """Dev and test are the same for every seed and number of examples. UserError."""
        count = EXAMPLES if options.examples is None else options.examples
        if count < 1:
            raise UserError(f"--examples {count} must be at least 1")
        places = [(place_of(low), low) for low in range(10**DIGITS - NUMBERS + 1)]
        self.practised = [low for place, low in places if place >= 2 * HELD_OUT]
        dev = [low for place, low in places if place < HELD_OUT]
        test = [low for place, low in places if HELD_OUT <= place < 2 * HELD_OUT]
        by_chance = float(share_found(NUMBERS, GUESSES))
        self.notes = [f"the player to imitate finds {by_chance:.1%} of the numbers, one who halves what is left all"]
        self.splits = Splits([*islice(dealt(self.practised, f"train {seed}"), count)], *map(held_out, (dev, test)))

    def tokenizer(self) -> SymbolTokenizer:
        return SymbolTokenizer(self.name, r"[\s\S]", f"0123456789-:{LOWER}{HIGHER}")

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        if model:
            return super().recipe(model, minutes)
        shape = {"layers": 3, "width": 128, "heads": 4, "dropout": 0.0}
        rates = {"optimizer": "muon", "lr": 0.005, "embedding_lr": 0.005, "warmup": 0.02}
        return {**shape, **rates, "batch_tokens": 2048, "steps": 400}

    def rl_recipe(self, model: nn.Module) -> dict[str, Any]:
        """Leans on no games of the player who is to be outdone."""
        lr = 1e-3 * min(1.0, 128 / model.config.width)
        return {**super().rl_recipe(model), "lr": lr, "beta2": 0.95, "prompts": 64, "sft_share": 0.0}

    def next_command(self, folder: Path) -> str:
        """By chance some guesses win for a while: without a bonus for entropy, others are soon no more tried."""
        return f"{super().next_command(folder)} --entropy 0.02"

    @property
    def num_practised(self) -> int:
        return len(self.practised) * NUMBERS

    def practice(self, seed: int) -> Iterator[Game]:
        """New games, not only those that were played for supervised learning."""
        return dealt(self.practised, f"practice {seed}")

    def max_answer_tokens(self, tokenizer: Tokenizer) -> int:
        """Of a turn: a number, and the token that ends it."""
        return len(tokenizer.encode(written(0))) + 1

    def tokens_needed(self, tokenizer: Tokenizer) -> int:
        return GUESSES * (self.max_answer_tokens(tokenizer) + 1) + len(tokenizer.prompt(self.splits.dev[0].prompt))

    def documents(self, example: Game, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        """A game that somebody played, of which the hints are only read."""
        answer: list[int] = []
        heard: list[tuple[int, list[int]]] = []
        for guess in example.guesses:
            answer += [*tokenizer.encode(written(guess)), tokenizer.end]
            heard.append((len(answer), tokenizer.encode(example.hint(guess))))
        return [answering(tokenizer.prompt(example.prompt), answer, heard[:-1])]

    @property
    def rewards(self) -> dict[str, Reward]:
        return {"found": self.reward}

    def reward(self, examples: Sequence[Game], answers: Sequence[Turns]) -> dict[str, list[float]]:
        """1 if the number was found, else 0."""
        return {"found": [float(e.is_right(a)) for e, a in zip(examples, answers, strict=True)]}

    def measure(self, examples: Sequence[Game], answers: Sequence[Turns]) -> dict[str, Interval]:
        return {"found": rate([e.is_right(a) for e, a in zip(examples, answers, strict=True)])}

    def baselines(self, examples: Sequence[Game]) -> dict[str, Interval]:
        """The player who is imitated."""
        return {"random_player": rate([e.number in e.guesses for e in examples])}


# ---- games -----------------------------------------------------------------------------------------


def dealt(ranges: Sequence[int], seed: str) -> Iterator[Game]:
    """Games without end, of these ranges, each played at random."""
    rng = random.Random(seed)
    while True:
        low = rng.choice(ranges)
        number = low + rng.randrange(NUMBERS)
        yield Game(low, number, played(low, number, rng))


def held_out(ranges: Sequence[int]) -> list[Game]:
    """One game for each number of each of these ranges."""
    rng = random.Random("held out")
    numbers = [(low, low + i) for low in ranges for i in range(NUMBERS)]
    return [Game(low, number, played(low, number, rng)) for low, number in numbers]


def played(low: int, number: int, rng: random.Random) -> tuple[int, ...]:
    """The guesses of a player who takes any number that the hints leave, each as likely as any other."""
    high, guesses = low + NUMBERS - 1, []
    while len(guesses) < GUESSES and number not in guesses:
        guess = rng.randint(low, high)
        guesses.append(guess)
        low, high = (low, guess - 1) if number < guess else (guess + 1, high)
    return tuple(guesses)


@cache
def share_found(numbers: int, guesses: int) -> Fraction:
    """How many of so many equally likely numbers that player finds in so many guesses, on average."""
    if not numbers or not guesses:
        return Fraction(0)
    found = sum(1 + sum(n * share_found(n, guesses - 1) for n in (i, numbers - 1 - i)) for i in range(numbers))
    return Fraction(found) / numbers**2
