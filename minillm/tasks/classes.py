"""The classes of a task: their order, how they are named in a sentence, how much each counts."""

from collections import Counter
from collections.abc import Collection

from minillm import cli
from minillm.errors import UserError

SHOWN = 10  # classes in a sentence


def listed(classes: Collection[str]) -> str:
    return ", ".join(map(repr, in_order(set(classes))[:SHOWN])) + (", …" if len(classes) > SHOWN else "")


def weights_of(option: str | None, counts: Counter[str]) -> dict[str, float]:
    """--class-weights, of classes with their numbers of training examples; empty where it is not given. UserError."""
    if option is None:
        return {}
    if option == "balanced":
        return {name: counts.total() / len(counts) / count for name, count in counts.items()}
    given: dict[str, float] = {}
    for part in option.split(","):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        if not equals:
            raise UserError(f"--class-weights {option}: expected balanced, or NAME=WEIGHT, separated by commas")
        if name in given:
            raise UserError(f"--class-weights {option}: {name!r} is there twice; give each class one weight")
        if name not in counts:
            raise UserError(
                f"--class-weights {option}: no training example is of class {name!r}, only {listed(counts)}"
            )
        given[name] = positive(number, f"--class-weights {option}")
    return {**dict.fromkeys(counts, 1.0), **given}


def positive(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < cli.LARGEST:
        raise UserError(f"{option}: {text!r} is no weight; give each class a number above 0, such as neg=1,pos=3")
    return number


def in_order(classes: set[str]) -> list[str]:
    """Numbers by value, anything else by alphabet."""
    try:
        return sorted(sorted(classes), key=float)
    except ValueError:
        return sorted(classes)
