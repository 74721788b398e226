"""What an equation of a word problem is worth: a reward for which every way to the right number is as good.

    python train_rl.py --task seq2seq --init RUN --train problems.jsonl --fields prompt=question,answer=equation \\
        --reward bench/equations.py:score

Operators stand before what they join, and `number0` is the first number of the question: `- number0 * number1 12.0`.
All values are exact rationals, and nothing that an answer says is ever run.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from minillm.expressions import OPERATIONS

MOST_WORDS = 40  # of an equation; none of MAWPS has more than 15
NUMBER = re.compile(r"[0-9]{1,9}(\.[0-9]{1,20})?", re.ASCII)
GIVEN = re.compile(r"number([0-9]{1,2})", re.ASCII)


def score(examples: Sequence[Any], answers: Sequence[str]) -> list[float]:
    """1 for each equation that is worth what the given one is, else 0."""
    return [
        float(solves(example.prompt, example.answers, each)) for example, each in zip(examples, answers, strict=True)
    ]


def solves(question: str, equations: Sequence[str], answer: str) -> bool:
    """Whether the answer is worth the same as one of the equations."""
    numbers = numbers_of(question)
    value = worth(answer, numbers)
    return value is not None and value in [worth(equation, numbers) for equation in equations]


def numbers_of(question: str) -> list[Fraction]:
    """Those that are a word of it."""
    return [Fraction(word) for word in question.split() if NUMBER.fullmatch(word)]


def worth(equation: str, numbers: Sequence[Fraction]) -> Fraction | None:
    """None of what is no equation, and of what divides by zero."""
    words, values = equation.split(), []
    if len(words) > MOST_WORDS:
        return None
    for word in reversed(words):
        if operation := OPERATIONS.get(word):
            if len(values) < 2:
                return None
            try:
                values.append(operation(values.pop(), values.pop()))
            except ZeroDivisionError:
                return None
        elif (value := number(word, numbers)) is not None:
            values.append(value)
        else:
            return None
    return values[0] if len(values) == 1 else None


def number(word: str, numbers: Sequence[Fraction]) -> Fraction | None:
    """One of the question's, or one that is written out."""
    if given := GIVEN.fullmatch(word):
        place = int(given[1])
        return numbers[place] if place < len(numbers) else None
    return Fraction(word) if NUMBER.fullmatch(word) else None
