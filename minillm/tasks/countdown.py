"""Countdown: make a target of some numbers, `20 5 2 = 17:` → `2+20-5`, using each of them exactly once.

Of test a part has one number more than the training, as "accuracy longer".
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from minillm import cli
from minillm.errors import UserError
from minillm.expressions import OPERATIONS, solve
from minillm.tasks.puzzles import UNLIKE, Hand, Puzzle, Puzzles, distinct

LARGEST_NUMBER, LARGEST_TARGET = 25, 100
SIZES = range(3, 6)  # how many numbers a problem may have


@dataclass(frozen=True)
class Options:
    examples: int | None = cli.option(None, "number of solved problems to learn from (default: 10000)")
    numbers: int | None = cli.option(None, f"in a problem, from {SIZES[0]} to {SIZES[-1]} (default: 3)")


class Countdown(Puzzles):
    name = "countdown"
    symbols = "0123456789+-*/() =:"
    Options = Options

    def __init__(self, options: Options, seed: int):
        self.size = SIZES[0] if options.numbers is None else options.numbers
        if self.size not in SIZES:
            raise UserError(f"--numbers {self.size} must be from {SIZES[0]} to {SIZES[-1]}")
        hands = combinations_with_replacement(range(1, LARGEST_NUMBER + 1), self.size)
        super().__init__([*hands], options.examples, seed)

    def deal(self, hand: Hand, rng: random.Random, kind: str = "") -> Puzzle:
        numbers, target = rng.sample(hand, len(hand)), None
        while target is None:
            target = worth(numbers, rng)
        prompt = f"{' '.join(map(str, numbers))} = {target}:"
        return Puzzle(prompt, (solve(hand, target),), hand, target, kind)

    def unlike(self, rng: random.Random) -> list[Puzzle]:
        return distinct(self.longer(rng), UNLIKE)

    def longer(self, rng: random.Random) -> Iterator[Puzzle]:
        while True:
            hand = sorted(rng.randint(1, LARGEST_NUMBER) for _ in range(self.size + 1))
            yield self.deal(tuple(hand), rng, "longer")


def worth(numbers: Sequence[int], rng: random.Random) -> int | None:
    """What an expression is worth that chance makes of these numbers; None where that is no target, or where something
    on the way to it is no natural number."""
    left = list(numbers)
    while len(left) > 1:
        i, sign = rng.randrange(len(left) - 1), rng.choice("+-*/")
        a, b = left[i : i + 2]
        if (sign == "-" and a < b) or (sign == "/" and (b == 0 or a % b)):
            return None
        left[i : i + 2] = [a // b if sign == "/" else OPERATIONS[sign](a, b)]
    return left[0] if 1 <= left[0] <= LARGEST_TARGET else None
