"""Countdown, 24 points: problems with solutions, hands that nobody practises, and what is unlike the training."""

import ast
import json
import operator
import random
import re
from fractions import Fraction
from itertools import islice, product

import pytest
import scripts

import minillm.curves
import train_rl
import train_sft
from minillm.errors import UserError
from minillm.tasks import TASKS, countdown, points24
from minillm.tasks.countdown import Countdown
from minillm.tasks.points24 import Points24
from minillm.tasks.puzzles import HELD_OUT, UNLIKE, Puzzle

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
KINDS = [Countdown, Points24]


def made(kind, seed=0, **options):
    return kind(kind.Options(**{"examples": 500, **options}), seed)


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def task(request):
    return made(request.param)


def everything(task, practised=300):
    return [e for split in vars(task.splits).values() for e in split] + list(islice(task.practice(0), practised))


def by_python(text):
    """Its value and its numbers, by Python's own grammar."""
    numbers = []

    def walk(node):
        if isinstance(node, ast.BinOp):
            return OPERATIONS[type(node.op)](walk(node.left), walk(node.right))
        numbers.append(node.value)
        return Fraction(node.value)

    return walk(ast.parse(text, mode="eval").body), sorted(numbers)


def asked(prompt):
    """Numbers and target as a person reads them in a prompt."""
    rule = dict(re.findall(r"([JQK])=(\d+)", prompt))
    cards, target = re.fullmatch(r"(?:J.*, )?([\dJQK ]+) = (\d+):", prompt).groups()
    return sorted(int(rule.get(card, card)) for card in cards.split()), int(target)


def test_every_problem_says_what_is_asked_and_has_a_solution(task):
    for puzzle in everything(task):
        numbers, target = asked(puzzle.prompt)
        assert (numbers, target) == ([*puzzle.hand], puzzle.target)
        (answer,) = puzzle.answers
        assert by_python(answer) == (target, numbers), puzzle
        assert puzzle.is_right(answer)
        assert task.tokenizer().decode(task.tokenizer().encode(puzzle.prompt + answer)) == puzzle.prompt + answer


def solvable(hand, target):
    """By brute force: any two of what is left become one, until one is left."""
    if len(hand) == 1:
        return hand[0] == target
    for i, j in product(range(len(hand)), repeat=2):
        rest = [each for k, each in enumerate(hand) if k not in (i, j)]
        a, b = hand[i], hand[j]
        if i != j and any(solvable([*rest, c], target) for c in (a + b, a - b, a * b, *([a / b] if b else []))):
            return True
    return False


def test_hands_are_left_out_only_where_there_is_no_solution():
    """Of the 715 hands of four values those that are in no split and never dealt."""
    task = made(Points24)
    kept = {*task.practised, *(puzzle.hand for puzzle in [*task.splits.dev, *usual(task.splits.test)])}
    hands = [hand for hand in product(range(1, 11), repeat=4) if hand == tuple(sorted(hand))]
    assert len(hands) == 715
    assert len(kept) == 566
    for hand in random.Random(0).sample([hand for hand in hands if hand not in kept], 8):
        assert not solvable([*map(Fraction, hand)], 24), hand


def usual(puzzles):
    return [puzzle for puzzle in puzzles if not puzzle.kind]


def hands(puzzles):
    return {puzzle.hand for puzzle in puzzles}


def test_no_hand_that_is_held_out_is_practised(task):
    learned = hands([*task.splits.train, *islice(task.practice(1), 5000)])
    dev, test = task.splits.dev, task.splits.test
    assert not learned & hands(dev)
    assert not learned & hands(test)  # what is unlike the training among them
    assert not hands(dev) & hands(test)
    assert len(hands(dev)) == len(dev)  # one problem a hand: the interval is of independent examples
    assert len(hands(usual(test))) == len(usual(test))
    total = len(task.practised) + len(dev) + len(usual(test))
    assert len(dev) / total == pytest.approx(HELD_OUT, abs=0.03)
    assert len(usual(test)) / total == pytest.approx(HELD_OUT, abs=0.03)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_held_out_is_the_same_for_every_seed_and_number(kind):
    one, other = made(kind), made(kind, seed=3, examples=20)
    assert (one.splits.dev, one.splits.test) == (other.splits.dev, other.splits.test)
    assert len(other.splits.train) == 20
    assert other.splits.train != one.splits.train[:20]
    again = made(kind)
    assert one.splits == again.splits
    assert list(islice(one.practice(5), 50)) == list(islice(again.practice(5), 50))
    assert list(islice(one.practice(5), 50)) != list(islice(one.practice(6), 50))


def test_training_problems_differ(task):
    assert len({puzzle.prompt for puzzle in task.splits.train}) == len(task.splits.train) == 500


def test_practice_has_as_many_problems_as_it_says():
    """Each order of a hand's cards is as likely as any other."""
    task = made(Points24)
    task.practised = [(1, 8, 10, 10), (2, 2, 2, 3)]  # 12 orders of four times four cards, and 4 orders
    assert task.num_practised == 12 * 16 + 4
    dealt = [puzzle.prompt for puzzle in islice(task.practice(0), 4000)]
    assert len(set(dealt)) == task.num_practised
    few = sum(prompt.count("2") == 4 for prompt in dealt)  # three cards, and the target
    assert few / 4000 == pytest.approx(4 / 196, abs=0.01)


# ---- what is unlike the training ---------------------------------------------------------------------


def test_longer_problems_have_one_number_more(task):
    size = len(task.splits.dev[0].hand)
    for puzzle in everything(task):
        assert len(puzzle.hand) == size + (puzzle.kind == "longer"), puzzle
    assert sum(puzzle.kind == "longer" for puzzle in task.splits.test) == UNLIKE


def test_the_changed_rule_is_stated_and_counts():
    task = made(Points24)
    changed = [puzzle for puzzle in task.splits.test if puzzle.kind == "changed_rule"]
    assert len(changed) == UNLIKE
    for puzzle in changed:
        assert puzzle.prompt.startswith("J=11 Q=12 K=13, ")
        assert re.search("[JQK]", puzzle.prompt.partition(", ")[2])
        assert max(puzzle.hand) > 10
        old = sorted(min(10, number) for number in puzzle.hand)
        assert not puzzle.is_right("+".join(map(str, old)))
        text = points24.solution(tuple(old))
        assert text is None or not puzzle.is_right(text)  # what was right under the old rule
    for puzzle in everything(task):
        if puzzle.kind != "changed_rule":
            assert puzzle.prompt.startswith("J=10 Q=10 K=10, ")
            assert max(puzzle.hand) <= 10


def test_faces_are_as_frequent_as_tens():
    cards = " ".join(p.prompt.partition(", ")[2] for p in islice(made(Points24).practice(0), 3000))
    counts = [len(re.findall(rf"\b{card}\b", cards)) for card in ("10", "J", "Q", "K")]
    assert max(counts) / min(counts) < 1.15


def test_each_kind_is_measured_by_itself():
    task = made(Points24)
    examples = [
        Puzzle("", ("8*3*1*1",), (1, 1, 3, 8), 24, kind)
        for kind in ("", "", "", "", "longer", "longer", "changed_rule")
    ]
    right, wrong = "(8)*3/1/1", "8*3"
    found = task.measure(examples, [right, right, right, wrong, wrong, right, wrong])
    assert {name: each.value for name, each in found.items()} == {
        "accuracy": 0.75,
        "accuracy_longer": 0.5,
        "accuracy_changed_rule": 0.0,
    }
    assert task.measure(examples[:1], [right]).keys() == {task.headline}
    assert task.reward(examples[:2], [right, wrong]) == {"right": [1.0, 0.0]}
    assert task.rewards["exact"](examples[:2], [right, wrong]) == {"exact": [1.0, 0.0]}  # any solution, not the known


def test_answers_have_room(task):
    tokenizer = task.tokenizer()
    longest = max(len(tokenizer.encode(puzzle.answers[0])) for puzzle in everything(task))
    assert longest < task.max_answer_tokens(tokenizer) <= 2 * longest


def test_both_scripts_measure_what_is_unlike_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr(points24, "UNLIKE", 20)
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    small = {"task": "points24", "examples": 50, "precision": "fp32", "evaluations": 1, "steps": 1}
    assert scripts.main(train_sft, out=tmp_path / "sft", **small, layers=1, width=16, heads=2) == 0
    few = {"prompts": 4, "samples": 2, "watch": 4}
    assert scripts.main(train_rl, init=tmp_path / "sft", out=tmp_path / "rl", **small, **few) == 0
    names = ["accuracy", "accuracy_changed_rule", "accuracy_longer"]
    for run, prefixes in (("sft", ["test"]), ("rl", ["test", "start_test", "change_test"])):
        measured = json.loads((tmp_path / run / "metrics.json").read_text())
        for prefix in prefixes:
            assert {f"{prefix}_{name}" for name in names} <= measured.keys()
    assert "dev_accuracy_longer" not in measured


# ---- options -----------------------------------------------------------------------------------------


def test_countdown_of_more_numbers():
    size = 4
    task = made(Countdown, numbers=size, examples=50)
    assert {len(puzzle.hand) for puzzle in [*task.splits.train, *task.splits.dev]} == {size}
    assert len(task.splits.dev) <= 1000
    for puzzle in [*task.splits.train, *task.splits.test[-20:]]:
        assert by_python(puzzle.answers[0]) == (puzzle.target, [*puzzle.hand])


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (Countdown, {"examples": 0}, "--examples 0 must be at least 1"),
        (Points24, {"examples": -1}, "--examples -1 must be at least 1"),
        (Points24, {"examples": 20_000}, "--examples 20000 is more than the 14,439 problems"),
        (Countdown, {"numbers": 2}, "--numbers 2 must be from 3 to 5"),
        (Countdown, {"numbers": 6}, "--numbers 6 must be from 3 to 5"),
    ],
)
def test_options_that_make_no_sense(kind, options, sentence):
    with pytest.raises(UserError, match=sentence):
        made(kind, **options)


def test_chance_makes_natural_numbers_on_the_way():
    rng = random.Random(0)
    found = [countdown.worth((6, 4, 3), rng) for _ in range(2000)]
    possible = {6 + 4 + 3, (6 + 4) * 3, 6 * 4 + 3, 6 * 4 * 3, 6 * 4 - 3, 6 + 4 - 3, 6 - 4 + 3, 6 + 4 * 3, 24 // 3}
    possible |= {(6 - 4) * 3, 6 * (4 + 3), 6 * (4 - 3), 6 + (4 - 3), 6 - (4 - 3), 6 // (4 - 3)}
    assert {each for each in found if each} == possible


def test_both_are_tasks():
    assert (TASKS["countdown"], TASKS["points24"]) == (Countdown, Points24)
