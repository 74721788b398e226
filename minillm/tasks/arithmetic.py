"""Additions of two-digit numbers, `83+04=` → `087`, or longer ones: problems without end, and a checker that needs no
teacher.

Numbers are padded with zeros, so that a digit's place says what it is worth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from minillm import cli
from minillm.errors import UserError
from minillm.metrics import Interval, rate
from minillm.tasks.base import Example, Splits, WritingTask
from minillm.tokenizer import SymbolTokenizer

DIGITS, MOST_DIGITS = 2, 9  # of a number, unless told otherwise; one digit makes too few problems to hold some out
HELD_OUT = 1000  # of them each in dev and test
EXAMPLES = 2000  # solved problems, unless told otherwise


@dataclass(frozen=True)
class Options:
    examples: int | None = cli.option(None, "number of solved problems to learn from (default: 2000)")
    digits: int | None = cli.option(None, f"of each number (default: {DIGITS})")
    largest: int | None = cli.option(
        None, "neither learn from, nor practise on, nor hold out problems with a larger number (default: all nines)"
    )
    both_orders: bool = cli.option(
        False, "learn each solved problem with its summands swapped, too: other prompts, no more labels"
    )


class Arithmetic(WritingTask):
    name = "arithmetic"
    headline = "accuracy"
    Options = Options

    @classmethod
    def variant(cls, options: Options | None) -> str:
        digits = options.digits if options else None
        return cls.name if digits in (None, DIGITS) else f"{cls.name}-{digits}-digits"

    def __init__(self, options: Options, seed: int):
        """Dev and test are the same for every seed and number of examples."""
        self.digits = require_digits(options.digits)
        self.notes = [f"numbers of {self.digits} digits"] if self.digits != DIGITS else []
        held_out = list(distinct(problems(np.random.default_rng(0), self.digits), 2 * HELD_OUT))
        self.held_out, self.largest = set(held_out), bound(options.largest, self.digits)
        dev, test = filter(self.is_known, held_out[:HELD_OUT]), filter(self.is_known, held_out[HELD_OUT:])
        train = distinct(self.unseen((seed, 0)), self.how_many(options.examples))
        if options.both_orders:
            train = [*dict.fromkeys(each for pair in train for each in (pair, pair[::-1]) if each not in self.held_out)]
        self.splits = Splits(*([self.solved(problem) for problem in split] for split in (train, dev, test)))

    def how_many(self, examples: int | None) -> int:
        """Problems that are learned from. UserError."""
        count = EXAMPLES if examples is None else examples
        if count < 1:
            raise UserError(f"--examples {count} must be at least 1")
        if count > (most := self.num_practised):
            raise UserError(f"--examples {count} is more than the {most:,} problems that are not held out")
        return count

    def is_known(self, problem: tuple[int, int]) -> bool:
        return max(problem) <= self.largest

    def tokenizer(self) -> SymbolTokenizer:
        return SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789+=")

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        """Stops at 40 %: rewards teach more to a start that still has much to learn, and still generalises."""
        if model:
            return {**super().recipe(model, minutes), "batch_tokens": 1024, "epochs": 20, "until": 0.4}
        shape = {"layers": 3, "width": 128, "heads": 4, "dropout": 0.0}
        rates = {"optimizer": "muon", "lr": 0.005, "embedding_lr": 0.005, "warmup": 0.02}
        return {**shape, **rates, "batch_tokens": 1024, "steps": 400, "until": 0.4}

    def rl_recipe(self, model: nn.Module) -> dict[str, Any]:
        """A start that is often wrong has much to learn, from problems that nobody has solved for it."""
        lr = 5e-4 * min(1.0, 128 / model.config.width)
        return {**super().rl_recipe(model), "lr": lr, "beta2": 0.95, "temperature": 0.5, "sft_share": 0.0}

    def unseen(self, seed: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Problems without end, none of them held out."""
        stream = filter(self.is_known, problems(np.random.default_rng(seed), self.digits))
        return (problem for problem in stream if problem not in self.held_out)

    @property
    def num_practised(self) -> int:
        return (self.largest + 1) ** 2 - sum(map(self.is_known, self.held_out))

    def practice(self, seed: int) -> Iterator[Example]:
        """New problems, not only those that were solved for supervised learning."""
        return map(self.solved, self.unseen((seed, 1)))

    def solved(self, problem: tuple[int, int]) -> Example:
        a, b = problem
        return Example(f"{a:0{self.digits}}+{b:0{self.digits}}=", (f"{a + b:0{self.digits + 1}}",))

    def reward(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[float]]:
        """1 if the answer is right to the last digit, else 0."""
        return {"right": [float(a in e.answers) for e, a in zip(examples, answers, strict=True)]}

    def measure(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Interval]:
        return {"accuracy": rate([right == 1.0 for right in self.reward(examples, answers)["right"]])}


def require_digits(digits: int | None) -> int:
    """How many numbers have. UserError."""
    if digits is not None and not DIGITS <= digits <= MOST_DIGITS:
        raise UserError(f"--digits {digits} must be from {DIGITS} to {MOST_DIGITS}")
    return digits or DIGITS


def bound(largest: int | None, digits: int) -> int:
    """The largest number there is. UserError for one of which too little would be left."""
    most = 10**digits - 1
    if largest is not None and not 9 <= largest <= most:
        raise UserError(f"--largest {largest} must be from 9 to {most}")
    return most if largest is None else largest


def problems(rng: np.random.Generator, digits: int) -> Iterator[tuple[int, int]]:
    """Pairs of summands without end, uniform over all numbers of up to so many digits."""
    while True:
        yield from map(tuple, rng.integers(10**digits, size=(1024, 2)).tolist())


def distinct(stream: Iterator[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """The first `count` different problems of a stream."""
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        found[next(stream)] = None
    return list(found)
