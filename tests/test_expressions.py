"""Expressions: their values against trees of Python's fractions; what is none; solutions, against brute force."""

import ast
import operator
import random
from fractions import Fraction
from itertools import combinations_with_replacement, permutations, product

import pytest

from minillm.expressions import DEEPEST, LONGEST, read_expression, solve

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def tree(rng, size):
    """A number, or (left, sign, right)."""
    if size == 1:
        return rng.choice([0, 1, 2, 3, 10, rng.randint(0, 999_999)])
    left = rng.randint(1, size - 1)
    return tree(rng, left), rng.choice("+-*/"), tree(rng, size - left)


def value(node):
    """ZeroDivisionError."""
    return OPERATIONS[node[1]](value(node[0]), value(node[2])) if isinstance(node, tuple) else Fraction(node)


def numbers(node):
    return numbers(node[0]) + numbers(node[2]) if isinstance(node, tuple) else [node]


def written(node, rng):
    """With a bracket around every operation, some of them twice, and blanks."""
    if not isinstance(node, tuple):
        return rng.choice(["", " "]) + (str(node) if rng.random() < 0.8 else f"({node})")
    inner = f"{written(node[0], rng)}{rng.choice(['', '  '])}{node[1]}{written(node[2], rng)}"
    return rng.choice(["({})", "( {} )", "(({}))"]).format(inner)


def by_python(text):
    """The value of an expression by Python's own grammar, in fractions."""

    def walk(node):
        if isinstance(node, ast.BinOp):
            return OPERATIONS[SIGNS[type(node.op)]](walk(node.left), walk(node.right))
        return Fraction(node.value)

    return walk(ast.parse(text.strip(), mode="eval").body)


def test_values_are_those_of_trees():
    rng, zeros = random.Random(0), 0
    for _ in range(2000):
        node = tree(rng, rng.randint(1, 9))
        text = written(node, rng)
        found = read_expression(text)
        try:
            expected = value(node)
        except ZeroDivisionError:
            zeros += 1
            expected = None
        if len(text) > LONGEST or expected is None:
            assert found is None, text
        else:
            assert found == (expected, tuple(numbers(node))), text
    assert zeros > 20  # or nothing was seen of them


def test_products_come_before_sums_and_the_left_before_the_right():
    """Without brackets, as Python has it."""
    rng, seen = random.Random(1), 0
    for _ in range(1000):
        text = "".join(f"{rng.randint(1, 30)}{rng.choice('+-*/')}" for _ in range(rng.randint(1, 8))) + "7"
        found = read_expression(text)
        assert found is not None
        assert found.value == by_python(text), text
        seen += found.value.denominator > 1
    assert seen > 100


WRONG = [
    *("", " ", "()", "(", ")", "1+", "+1", "-1", "1 2", "1+-2", "1--2", "2(3)", "(2)(3)", "1)", "(1", "((1)", "1+()"),
    *("2**3", "2//3", "7%3", "2^3", "3!", "1e3", "1.5", "1,5", "1_000", "0x10", "0b1", "007", "00", "01+1", "1j", "1L"),
    *("１＋１", "٣", "²", "2×3", "6÷2", "4−1", "½", "∞", "Ⅷ", "1\u200b", "1\x00", "1\n+1", "1\t+1", "1\u00a0+1"),
    *("a", "x+1", "abs(1)", "__import__('os')", "lambda: 1", "[1]", "{1}", "1;2", "1==1", "1<2", "1 if 1 else 2", "1#"),
    *(
        "1000000",
        "9" * 100,
        "1/0",
        "0/0",
        "1/(2-2)",
        "(1)/(0*5)",
        "1+2/(3-3)",
        "1=1",
        "=1",
        "1:",
        "<|end|>",
        "1+1<|end|>",
    ),
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_expression(text):
    assert read_expression(text) is None


def test_bounds():
    deep = "(" * DEEPEST + "5" + ")" * DEEPEST
    assert read_expression(deep).value == 5
    assert read_expression(f"({deep})") is None
    for text in ("(" * 100_000, "(" * 100_000 + "1" + ")" * 100_000, "1+" * 1_000_000 + "1", "9" * 5_000_000):
        assert read_expression(text) is None
    longest = "1+" * (LONGEST // 2 - 1) + "11"
    assert len(longest) == LONGEST
    assert read_expression(longest).value == LONGEST // 2 + 10
    assert read_expression("+" + longest) is None
    assert read_expression("999999*" * 28 + "9").value == 999_999**28 * 9


# ---- solutions ---------------------------------------------------------------------------------------

SHAPES = {
    2: ["{}{}{}"],
    3: ["({}{}{}){}{}", "{}{}({}{}{})"],
    4: [
        *("(({}{}{}){}{}){}{}", "({}{}({}{}{})){}{}", "({}{}{}){}({}{}{})"),
        *("{}{}(({}{}{}){}{})", "{}{}({}{}({}{}{}))"),
    ],
}


def all_values(hand):
    """What each order, each choice of signs and each way to set brackets is worth, by Python's own grammar."""
    found = set()
    codes = [compile(shape.format(*words), "", "eval") for shape, words in shapes(len(hand))]
    for order in set(permutations(hand)):
        names = dict(zip("abcd", map(Fraction, order), strict=False))
        for code in codes:
            try:
                found.add(eval(code, {}, names))  # of letters and signs that stand above
            except ZeroDivisionError:
                continue
    return found


def shapes(size):
    for shape in SHAPES[size]:
        for signs in product("+-*/", repeat=size - 1):
            letters = "abcd"[:size]
            yield shape, [word for pair in zip(letters, [*signs, ""], strict=True) for word in pair if word]


def require_solution(text, hand, target):
    found = read_expression(text)
    assert (found.value, sorted(found.numbers)) == (target, sorted(hand)), text
    assert by_python(text) == target


@pytest.mark.parametrize(("size", "count", "largest"), [(2, 30, 12), (3, 25, 25), (4, 3, 13)])
def test_solutions_are_found_where_there_are_any(size, count, largest):
    rng = random.Random(size)
    for hand in [(0, 0, 7, 24)[-size:], *(tuple(rng.randint(0, largest) for _ in range(size)) for _ in range(count))]:
        reachable = all_values(hand)
        for target in {
            *rng.sample(sorted(reachable), min(10, len(reachable))),
            *map(Fraction, range(0, 60, 7)),
            Fraction(1, 3),
        }:
            text = solve(hand, target)
            assert (text is not None) == (target in reachable), (hand, target)
            if text is not None:
                require_solution(text, hand, target)
                assert text == solve(hand[::-1], target)  # whatever their order


def test_what_is_multiplied_by_zero_may_be_anything():
    assert (3 - 3) * 5 * 7 + 24 == 24
    require_solution(solve((24, 3, 3, 7, 5), 24), (24, 3, 3, 7, 5), 24)
    require_solution(solve((24, 0, 7, 11), 24), (24, 0, 7, 11), 24)


def test_so_many_hands_make_24():
    hands = list(combinations_with_replacement(range(1, 11), 4))
    solved = [hand for hand in hands if solve(hand, 24)]
    assert (len(hands), len(solved)) == (715, 566)  # as is known of the game
    for hand in solved[::25]:
        require_solution(solve(hand, 24), hand, 24)
    assert solve((3, 3, 8, 8), 24) == "8/(3-8/3)"  # there is no other way


@pytest.mark.parametrize(("hand", "target"), [((1, 2, 3), 5), ((2, 3, 4, 5), 26), ((7, 8), 15), ((2, 8, 4), 1)])
def test_brackets_stand_only_where_they_say_something(hand, target):
    text = solve(hand, target)
    for i, opened in enumerate(text):
        if opened == "(":
            depth = 0
            for j in range(i, len(text)):
                depth += {"(": 1, ")": -1}.get(text[j], 0)
                if depth == 0:
                    break
            without = text[:i] + text[i + 1 : j] + text[j + 1 :]
            assert by_python(without) != target, text
