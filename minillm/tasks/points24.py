"""24 points: make 24 of four cards, `J=10 Q=10 K=10, 3 K 2 Q = 24:` → `10+2*(10-3)`, using each of them exactly once.

J, Q and K count as 10 in training. Of test a part states another rule, under which they count as 11, 12 and 13, and a
part has five cards: whether what was learned is to read the rule, or the answers to it ("SFT memorizes, RL
generalizes", arXiv:2501.17161). There are 715 hands of four values, of which 566 make 24, so dev and test are small.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement, islice

from minillm import cli
from minillm.expressions import solve
from minillm.tasks.puzzles import UNLIKE, Hand, Puzzle, Puzzles

TARGET, CARDS = 24, 4
TEN = {"J": 10, "Q": 10, "K": 10}
CHANGED = {"J": 11, "Q": 12, "K": 13}


@dataclass(frozen=True)
class Options:
    examples: int | None = cli.option(None, "number of solved hands to learn from (default: 10000)")


class Points24(Puzzles):
    name = "points24"
    symbols = "0123456789+-*/() =:,JQK"
    Options = Options

    def __init__(self, options: Options, seed: int):
        hands = combinations_with_replacement(range(1, 11), CARDS)
        super().__init__([*filter(solution, hands)], options.examples, seed)

    def deal(self, hand: Hand, rng: random.Random, rule: Mapping[str, int] = TEN, kind: str = "") -> Puzzle:
        """Any cards of these values, in any order."""
        named = {value: [card for card in rule if rule[card] == value] for value in rule.values()}
        cards = [rng.choice([*([str(n)] if n <= 10 else []), *named.get(n, [])]) for n in rng.sample(hand, len(hand))]
        says = " ".join(f"{card}={value}" for card, value in rule.items())
        return Puzzle(f"{says}, {' '.join(cards)} = {TARGET}:", (solution(hand),), hand, TARGET, kind)

    def ways(self, hand: Hand) -> int:
        return super().ways(hand) * (1 + len(TEN)) ** hand.count(10)

    def unlike(self, rng: random.Random) -> list[Puzzle]:
        faces = (hand for hand in solvable(max(CHANGED.values()), CARDS, rng) if hand[-1] in CHANGED.values())
        longer = solvable(max(TEN.values()), CARDS + 1, rng)
        return [
            *(self.deal(hand, rng, CHANGED, "changed_rule") for hand in islice(faces, UNLIKE)),
            *(self.deal(hand, rng, TEN, "longer") for hand in islice(longer, UNLIKE)),
        ]


def solvable(largest: int, size: int, rng: random.Random) -> Iterator[Hand]:
    """All hands of values up to the largest of which 24 can be made, in an order by chance."""
    hands = list(combinations_with_replacement(range(1, largest + 1), size))
    return filter(solution, rng.sample(hands, len(hands)))


@cache
def solution(hand: Hand) -> str | None:
    return solve(hand, TARGET)
