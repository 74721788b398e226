"""bench/equations.py and bench/word_problems.py."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "math_mawps"
sys.path.insert(0, str(ROOT / "bench"))
from equations import numbers_of, score, solves, worth  # noqa: E402

from minillm.tasks.base import Example  # noqa: E402

QUESTION = "Ann has 8 apples , an mp3 player , and 2.5 pears on the 1st of May ."


@pytest.mark.parametrize(
    ("equation", "value"),
    [
        ("- number0 number1", Fraction(11, 2)),
        ("- number1 number0", Fraction(-11, 2)),
        ("/ number0 + number1 0.5", Fraction(8, 3)),
        ("- / number0 2 * number1 2.0", Fraction(-1)),
        ("number0", Fraction(8)),
        ("12.0", Fraction(12)),
        ("* 0.1 0.1", Fraction(1, 100)),
    ],
)
def test_an_equation_is_worth_what_it_says(equation, value):
    """The operator before its two operands; numbers are words of the question that are nothing else."""
    numbers = [Fraction(8), Fraction(5, 2)]
    assert worth(equation, numbers) == value
    assert solves(QUESTION, [equation], equation)


NOT_EQUATIONS = {
    "nothing": ["", " "],
    "of too few or too many parts": ["-", "- number0", "number0 number1", "- number0 number1 number0", "- - number0"],
    "in another order": ["number0 - number1", "number0 number1 -"],
    "dividing by zero": ["/ number0 0", "/ number0 - number1 number1"],
    "of numbers that the question has not": ["number2", "number-1", "number99", "number", "number٣"],
    "of numbers written otherwise": ["1e3", "nan", "inf", "-5", "+5", "1/2", "1_000", "0x10", "8.", ".5", "٣", "５"],
    "too long": ["9" * 10, "0." + "3" * 21, "* " * 50 + "1 " * 51],
    "more than an equation": ["- number0 number1 ####", "5.5 5.5", "** 9 9", "__import__('os')", "x", QUESTION],
}


@pytest.mark.parametrize("kind", NOT_EQUATIONS)
def test_what_is_no_equation_is_worth_nothing(kind):
    for answer in NOT_EQUATIONS[kind]:
        assert worth(answer, [Fraction(8), Fraction(5, 2)]) is None
        assert score([Example(QUESTION, ("- number0 number1",))], [answer]) == [0.0]


def test_every_way_to_the_value_counts():
    example = Example(QUESTION, ("+ number0 number1",))
    right = ["+ number0 number1", "+ number1 number0", "10.5", "- * 2 number0 - number0 number1"]
    assert score([example] * 4, right) == [1.0] * 4
    assert score([example] * 2, ["- number0 number1", "10.50001"]) == [0.0] * 2
    assert not solves(QUESTION, ["/ number0 0"], "/ number1 0")  # an example that is broken teaches nothing


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data/math_mawps is not beside the checkout")
def test_the_equations_of_mawps():
    """Each is worth something, and nearly always what the data says."""
    lines = [line for name in ("train", "dev") for line in (SHARED / f"{name}.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    values = [worth(row["equation"], numbers_of(row["question"])) for row in rows]
    assert None not in values
    apart = [abs(float(value) - float(row["answer"])) for value, row in zip(values, rows, strict=True)]
    assert sum(difference > 1e-3 for difference in apart) <= 6


def test_word_problems_in_folds(tmp_path):
    """Every problem is left out once, also if it is there twice; gains are paired; runs are not made twice."""
    for name, numbers in (("train", range(1, 31)), ("dev", range(21, 41))):
        rows = ({"question": f"Ann has {n} and gets {n} more .", "equation": "+ number0 number1"} for n in numbers)
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--data", str(tmp_path), "--folds", "2", "--seeds", "2", "--start-steps", "25", "--minutes", "0.02"]
    command = [sys.executable, str(ROOT / "bench" / "word_problems.py"), *sizes, "--work", str(tmp_path / "work")]
    found = []
    for name in ("first", "again"):
        done = subprocess.run([*command, "--out", str(tmp_path / name)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found.append(json.loads((tmp_path / name).read_text()))
    assert found[0] == found[1]
    assert "step " not in done.stdout
    assert found[0]["problems"] == 40
    files = sorted((tmp_path / "work").glob("*/fold-*/test.jsonl"))
    tests = [json.loads(line)["question"] for file in files for line in file.read_text().splitlines()]
    assert len(tests) == len(set(tests)) == 40
    for way in ("REINFORCE", "expert iteration"):
        gain = found[0][way]["value"] - found[0]["more SFT"]["value"]
        assert found[0][f"{way}, less more SFT"]["value"] == pytest.approx(gain)
