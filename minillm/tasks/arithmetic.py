"""Additions of two-digit numbers, `83+04=` → `087`: problems without end, and a checker that needs no teacher.

Numbers are padded with zeros, so that a digit's place says what it is worth.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from minillm.errors import UserError
from minillm.metrics import Interval, rate
from minillm.tasks.base import Example, Recipe, Splits
from minillm.tokenizer import SymbolTokenizer

DIGITS = 2
HELD_OUT = 1000  # problems each in dev and test


class Arithmetic:
    name = "arithmetic"
    headline = "accuracy"
    max_answer_tokens = DIGITS + 2  # a carry and END
    num_examples = 2000  # solved problems that supervised learning gets unless told otherwise

    def __init__(self, num_examples: int, seed: int):
        """`num_examples` solved problems to learn from; dev and test are the same for every seed and number."""
        if num_examples < 1:
            raise UserError(f"--examples {num_examples} must be at least 1")
        if num_examples > (most := 10 ** (2 * DIGITS) - 2 * HELD_OUT):
            raise UserError(f"--examples {num_examples} is more than the {most:,} problems that are not held out")
        held_out = list(distinct(problems(np.random.default_rng(0)), 2 * HELD_OUT))
        self.held_out = set(held_out)
        train = distinct(self.unseen((seed, 0)), num_examples)
        dev, test = held_out[:HELD_OUT], held_out[HELD_OUT:]
        self.splits = Splits([*map(solve, train)], [*map(solve, dev)], [*map(solve, test)])
        self.tokenizer = SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789+=")

    @staticmethod
    def recipe(minutes: float | None) -> Recipe:
        return Recipe(
            layers=3, width=128, heads=4, batch_tokens=1024, lr=0.005, embedding_lr=0.005, steps=400, until=0.4
        )

    def unseen(self, seed: tuple[int, int]) -> Iterator[tuple[int, int]]:
        """Problems without end, none of them held out."""
        return (problem for problem in problems(np.random.default_rng(seed)) if problem not in self.held_out)

    def practice(self, seed: int) -> Iterator[Example]:
        """New problems, not only those that were solved for supervised learning."""
        return map(solve, self.unseen((seed, 1)))

    def reward(self, example: Example, answer: str) -> float:
        """1 if the answer is right to the last digit, else 0."""
        return float(answer in example.answers)

    def measure(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Interval]:
        return {"accuracy": rate([self.reward(e, a) == 1.0 for e, a in zip(examples, answers, strict=True)])}


def problems(rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Pairs of summands without end, uniform over all numbers of up to DIGITS digits."""
    while True:
        yield from map(tuple, rng.integers(10**DIGITS, size=(1024, 2)).tolist())


def distinct(stream: Iterator[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    """The first `count` different problems of a stream."""
    found: dict[tuple[int, int], None] = {}
    while len(found) < count:
        found[next(stream)] = None
    return list(found)


def solve(problem: tuple[int, int]) -> Example:
    a, b = problem
    return Example(f"{a:0{DIGITS}}+{b:0{DIGITS}}=", (f"{a + b:0{DIGITS + 1}}",))
