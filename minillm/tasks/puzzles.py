"""Problems that a checker knows to be solved whatever the solution: make a number of others, by + - * / and brackets.

What countdown.py and points24.py share. Both deal hands of numbers: problems without end, each of which has a solution.
What is held out is held out by its hand, whatever the order and the target; of test a part is unlike the training, and
measured by itself.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from torch import nn

from minillm.errors import UserError
from minillm.expressions import read_expression
from minillm.metrics import Interval, rate
from minillm.tasks.base import Example, Splits, WritingTask
from minillm.tasks.files import place_of
from minillm.tokenizer import SymbolTokenizer, Tokenizer

HELD_OUT = 0.15  # share of the hands that dev has, and test
MOST_HELD_OUT = 1000  # problems in either
UNLIKE = 300  # problems of each kind that is unlike the training
EXAMPLES = 10_000  # solved problems, unless told otherwise
SPARE = 4  # tokens that an answer may have beyond the longest known one, such as for brackets

Hand = tuple[int, ...]  # numbers in ascending order


@dataclass(frozen=True)
class Puzzle(Example):
    """`answers` holds one of its solutions; all are right."""

    hand: Hand
    target: int
    kind: str = ""  # how it is unlike the training, if it is

    def is_right(self, answer: str) -> bool:
        found = read_expression(answer)
        return found is not None and found.value == self.target and sorted(found.numbers) == [*self.hand]


class Puzzles(WritingTask):
    """A task whose problems are `Puzzle`s. What is left to write: `name`, `symbols`, `deal` and `unlike`."""

    headline = "accuracy"
    symbols: ClassVar[str]  # of prompts and answers

    def __init__(self, hands: Sequence[Hand], examples: int | None, seed: int):
        """Dev and test are the same for every seed and number of examples: a problem of each of their hands, or of as
        many as are enough. UserError."""
        places = [(place_of(hand), hand) for hand in hands]
        self.practised = [hand for place, hand in places if place >= 2 * HELD_OUT]
        dev = self.one_each([hand for place, hand in places if place < HELD_OUT], "dev")
        test = self.one_each([hand for place, hand in places if HELD_OUT <= place < 2 * HELD_OUT], "test")
        train = distinct(self.dealt(f"train {seed}"), self.how_many(examples))
        self.splits = Splits(train, dev, [*test, *self.unlike(random.Random("unlike"))])

    def how_many(self, examples: int | None) -> int:
        """Problems that are learned from. UserError."""
        count = EXAMPLES if examples is None else examples
        if count < 1:
            raise UserError(f"--examples {count} must be at least 1")
        if count > (most := self.num_practised):
            raise UserError(f"--examples {count} is more than the {most:,} problems that there are for sure")
        return count

    def deal(self, hand: Hand, rng: random.Random) -> Puzzle:
        """A problem of these numbers, which has a solution."""
        raise NotImplementedError

    def unlike(self, rng: random.Random) -> list[Puzzle]:
        """Problems that are unlike the training, UNLIKE of each kind."""
        raise NotImplementedError

    def one_each(self, hands: Sequence[Hand], name: str) -> list[Puzzle]:
        rng = random.Random(name)
        return [self.deal(hand, rng) for hand in rng.sample(hands, min(len(hands), MOST_HELD_OUT))]

    def dealt(self, seed: str) -> Iterator[Puzzle]:
        """Problems without end, none of them of a hand that is held out."""
        rng, weights = random.Random(seed), [*map(self.ways, self.practised)]
        while True:
            yield from (self.deal(hand, rng) for hand in rng.choices(self.practised, weights, k=1024))

    @property
    def num_practised(self) -> int:
        """At least: with other targets there may be more."""
        return sum(map(self.ways, self.practised))

    def ways(self, hand: Hand) -> int:
        """How many prompts there are to a hand and its target: the orders of its numbers."""
        return math.factorial(len(hand)) // math.prod(map(math.factorial, Counter(hand).values()))

    def practice(self, seed: int) -> Iterator[Puzzle]:
        """New problems, not only those that were solved for supervised learning."""
        return self.dealt(f"practice {seed}")

    def tokenizer(self) -> SymbolTokenizer:
        return SymbolTokenizer(self.name, r"[\s\S]", self.symbols)

    @cache  # noqa: B019, a task lives as long as the training
    def max_answer_tokens(self, tokenizer: Tokenizer) -> int:
        """Room for the longest known solution of any split, the token that ends it, and a few more."""
        known = (example.answers[0] for split in vars(self.splits).values() for example in split)
        return max(len(tokenizer.encode(answer)) for answer in known) + 1 + SPARE

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        if model:
            return super().recipe(model, minutes)
        shape = {"layers": 4, "width": 128, "heads": 4, "dropout": 0.0}
        rates = {"optimizer": "muon", "lr": 0.005, "embedding_lr": 0.005, "warmup": 0.02}
        return {**shape, **rates, "batch_tokens": 4096, "steps": 200}

    def rl_recipe(self, model: nn.Module) -> dict[str, Any]:
        return {**super().rl_recipe(model), "beta2": 0.95, "sft_share": 0.0}

    def reward(self, examples: Sequence[Puzzle], answers: Sequence[str]) -> dict[str, list[float]]:
        """1 for an expression that uses each number exactly once and has the value asked for, else 0."""
        return {"right": [float(e.is_right(a)) for e, a in zip(examples, answers, strict=True)]}

    def measure(self, examples: Sequence[Puzzle], answers: Sequence[str]) -> dict[str, Interval]:
        """The share of problems solved, of each kind by itself."""
        verdicts: dict[str, list[bool]] = {}
        for example, answer in zip(examples, answers, strict=True):
            name = f"accuracy_{example.kind}" if example.kind else "accuracy"
            verdicts.setdefault(name, []).append(example.is_right(answer))
        return {name: rate(each) for name, each in verdicts.items()}


def distinct(stream: Iterator[Puzzle], count: int) -> list[Puzzle]:
    """The first `count` different problems of a stream."""
    found: dict[str, Puzzle] = {}
    while len(found) < count:
        puzzle = next(stream)
        found[puzzle.prompt] = puzzle
    return list(found.values())
