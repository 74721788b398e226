"""Arithmetic of a bounded grammar: what a text of numbers, + - * / and brackets is worth, and how a number is made of
others. All values are exact rationals, and nothing that a text says is ever run.

    sum      = product, product + product, product - product, …         from left to right
    product  = atom, atom * atom, atom / atom, …
    atom     = number | ( sum )
    number   = 0 or digits 0-9 that do not begin with 0; there are no signs

A text is read in one pass over at most LONGEST characters, so that whatever it holds takes no time worth mentioning.
"""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from itertools import combinations, product
from typing import NamedTuple

LONGEST, DEEPEST = 200, 20  # characters of a text, and brackets around a number
TABLED = 3  # numbers of which all that they make is remembered
TOKEN = re.compile(r"[0-9]+|[^ ]")
NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
OPERATIONS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
SUM, PRODUCT, ATOM = range(3)  # how closely a term holds together
LEVEL = {"+": SUM, "-": SUM, "*": PRODUCT, "/": PRODUCT}


# ---- reading ---------------------------------------------------------------------------------------


class Expression(NamedTuple):
    value: Fraction
    numbers: tuple[int, ...]  # in the order in which they stand


def read_expression(text: str) -> Expression | None:
    """What the text is worth; None where it is not of the grammar, is longer, deeper or larger than its bounds, or
    divides by zero."""
    if len(text) > LONGEST:
        return None
    reader = Reader(TOKEN.findall(text.strip()))
    try:
        value = reader.sum(0)
    except (ValueError, ZeroDivisionError):
        return None
    return Expression(value, tuple(reader.numbers)) if reader.next is None else None


class Reader:
    """A place in a row of tokens, and the numbers before it. Each method reads what is called so, at this depth.
    ValueError where something else stands."""

    def __init__(self, tokens: Sequence[str]):
        self.tokens, self.at = tokens, 0
        self.numbers: list[int] = []

    @property
    def next(self) -> str | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def take(self, wanted: str) -> str:
        """The next token if it is one of these signs, else nothing."""
        if self.next is None or self.next not in wanted:
            return ""
        self.at += 1
        return self.tokens[self.at - 1]

    def sum(self, depth: int) -> Fraction:
        value = self.product(depth)
        while sign := self.take("+-"):
            value = OPERATIONS[sign](value, self.product(depth))
        return value

    def product(self, depth: int) -> Fraction:
        value = self.atom(depth)
        while sign := self.take("*/"):
            value = OPERATIONS[sign](value, self.atom(depth))
        return value

    def atom(self, depth: int) -> Fraction:
        if not self.take("("):
            return self.number()
        if depth == DEEPEST:
            raise ValueError(f"more than {DEEPEST} brackets around a number")
        value = self.sum(depth + 1)
        if not self.take(")"):
            raise ValueError("an open bracket is not closed")
        return value

    def number(self) -> Fraction:
        if self.next is None or not NUMBER.fullmatch(self.next):
            raise ValueError(f"expected a number, not {self.next!r}")
        self.numbers.append(int(self.next))
        self.at += 1
        return Fraction(self.numbers[-1])


# ---- solving ---------------------------------------------------------------------------------------


class Term(NamedTuple):
    """An expression as it is written, without brackets that change nothing."""

    value: Fraction
    text: str
    level: int = ATOM

    def within(self, least: int) -> str:
        """As it stands beside an operation that holds together so closely."""
        return self.text if self.level >= least else f"({self.text})"


def joined(a: Term, sign: str, b: Term) -> Term:
    level = LEVEL[sign]
    right = b.within(level + (sign in "-/"))
    return Term(OPERATIONS[sign](a.value, b.value), f"{a.within(level)}{sign}{right}", level)


def all_joined(a: Term, b: Term) -> Iterator[Term]:
    """What one operation makes of two terms; first what is not negative, so that it is also found first."""
    low, high = sorted((a, b), key=lambda term: term.value)
    yield from (joined(a, "+", b), joined(a, "*", b), joined(high, "-", low))
    yield from (joined(x, "/", y) for x, y in ((high, low), (low, high)) if y.value)
    yield joined(low, "-", high)


def solve(numbers: Sequence[int], target: Fraction | int) -> str | None:
    """An expression of this value in which each number stands once, of two or more, the same for any order of them;
    None where there is none.

    All ways are tried to cut the numbers in two: what the smaller part can be says what the larger one must be.
    """
    found = _solve(tuple(sorted(numbers)), Fraction(target))
    return found.text if found else None


def _solve(numbers: tuple[int, ...], target: Fraction) -> Term | None:
    for few, many in _cuts(numbers):
        for a in _reached(few).values():
            if not (a.value or target):
                return joined(a, "*", next(iter(_reached(many).values())))
            for value in _missing(a.value, target):
                if b := _reached(many).get(value) if len(many) <= TABLED else _solve(many, value):
                    return next(term for term in all_joined(a, b) if term.value == target)
    return None


def _missing(a: Fraction, target: Fraction) -> list[Fraction]:
    """All b of which one operation with a makes the target; of two zeros any would do."""
    sums = [target - a, a - target, target + a]
    return [*sums, target / a, target * a, *([a / target] if target else [])] if a else sums


@lru_cache(2000)
def _reached(numbers: tuple[int, ...]) -> dict[Fraction, Term]:
    """All that a few numbers can make, of equal values the first."""
    found: dict[Fraction, Term] = {}
    if len(numbers) == 1:
        found[Fraction(numbers[0])] = Term(Fraction(numbers[0]), str(numbers[0]))
    for few, many in _cuts(numbers):
        for a, b in product(_reached(few).values(), _reached(many).values()):
            for term in all_joined(a, b):
                found.setdefault(term.value, term)
    return found


@cache
def _cuts(numbers: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways to cut them in two, the smaller part first, equal ways once."""
    places = range(len(numbers))
    chosen = (some for size in range(1, len(numbers) // 2 + 1) for some in combinations(places, size))
    ways = ((tuple(numbers[i] for i in some), tuple(numbers[i] for i in places if i not in some)) for some in chosen)
    return list(dict.fromkeys(ways))
