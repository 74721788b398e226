"""Classification: which class a text, or a pair of texts, belongs to. The data is the user's own, JSONL or CSV."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minillm import records
from minillm.errors import UserError
from minillm.metrics import Interval, macro_f1, rate
from minillm.tasks.base import Splits

MOST_CLASSES = 1000  # more are no classes; most likely the field is not the label
WORST = 10


@dataclass(frozen=True)
class Labelled:
    texts: tuple[str, ...]  # one, or a pair
    label: str

    @property
    def prompt(self) -> str:
        return " / ".join(self.texts)


class Guess(NamedTuple):
    """What a classifier answers."""

    label: str
    probability: float


class Classify:
    name = "classify"
    headline = "accuracy"

    def __init__(self, splits: Splits, classes: Sequence[str], notes: Sequence[str] = ()):
        """`notes` are for a person to read."""
        self.splits, self.classes, self.notes = splits, list(classes), list(notes)
        counts = Counter(example.label for example in splits.train)
        self.majority = max(self.classes, key=lambda name: counts[name])  # in training: the guess without reading

    def reward(self, example: Labelled, answer: Guess) -> float:
        return float(answer.label == example.label)

    def measure(self, examples: Sequence[Labelled], answers: Sequence[Guess]) -> dict[str, Interval]:
        """Beside accuracy and macro-F1 what always the same answer, the commonest in training, would get right."""
        truth = [example.label for example in examples]
        return {
            "accuracy": rate([answer.label == label for answer, label in zip(answers, truth, strict=True)]),
            "macro_f1": macro_f1(truth, [answer.label for answer in answers]),
            "majority": rate([label == self.majority for label in truth]),
        }

    def details(self, examples: Sequence[Labelled], answers: Sequence[Guess]) -> dict[str, Any]:
        """What else is worth keeping: who is taken for whom, and the worst mistakes."""
        confusion: dict[str, Counter[str]] = {name: Counter() for name in self.classes}
        for example, answer in zip(examples, answers, strict=True):
            confusion[example.label][answer.label] += 1
        worst = [
            {"texts": example.texts, "label": example.label, "answer": answer.label, "probability": answer.probability}
            for example, answer in worst_mistakes(examples, answers)
        ]
        return {"confusion": confusion, "worst_mistakes": worst}


def worst_mistakes(examples: Sequence[Labelled], answers: Sequence[Guess]) -> list[tuple[Labelled, Guess]]:
    """The wrong answers that the classifier was surest of, the surest first."""
    wrong = [pair for pair in zip(examples, answers, strict=True) if pair[0].label != pair[1].label]
    return sorted(wrong, key=lambda pair: -pair[1].probability)[:WORST]


# ---- the data ------------------------------------------------------------------------------------


class Fields(NamedTuple):
    """How the fields of a file are called."""

    text: str = "text"
    label: str = "label"
    text2: str | None = None  # the second text of a pair

    @classmethod
    def parse(cls, option: str | None) -> "Fields":
        """From `text=review,label=stars`."""
        names: dict[str, str] = {}
        for part in option.split(",") if option else ():
            role, equals, name = (piece.strip() for piece in part.partition("="))
            if role not in cls._fields or not equals or not name or role in names:
                raise UserError(f"--fields {option}: expected text=NAME,label=NAME, and text2=NAME for pairs of texts")
            names[role] = name
        fields = cls(**names)
        if len(set(fields)) < len(fields):
            raise UserError(f"--fields {option}: text, label and text2 must be different fields of the file")
        return fields


def load(train: Path | None, dev: Path | None, test: Path | None, fields: str | None) -> Classify:
    """The task from files. UserError says what is wrong with them, and where.

    Texts that are held out are never trained on, also where the files overlap.
    """
    if train is None or dev is None:
        raise UserError("--task classify learns from your own examples: give --train FILE and --dev FILE")
    names = Fields.parse(fields)
    examples = read(train, names)
    classes = in_order({example.label for example in examples})
    if len(classes) == 1:
        raise UserError(f"{train} holds one class only, {classes[0]!r}; there is nothing to tell apart")
    if len(classes) > MOST_CLASSES:
        raise UserError(f"{train}: {names.label!r} has {len(classes):,} different values; is it the label?")
    held_out = [read(path, names, known=classes) if path else [] for path in (dev, test)]
    seen = {example.texts for split in held_out for example in split}
    unseen = [example for example in examples if example.texts not in seen]
    if {example.label for example in unseen} != set(classes):
        raise UserError(f"all examples of a class of {train} are held out by --dev or --test; give other texts")
    notes = (
        [f"{twice:,} training texts are held out, too; not trained on"]
        if (twice := len(examples) - len(unseen))
        else []
    )
    return Classify(Splits(unseen, *held_out), classes, notes)


def read(path: Path, names: Fields, known: Sequence[str] = ()) -> list[Labelled]:
    """The examples of a file; their labels must be among the known ones, if any are."""
    roles = [names.text] if names.text2 is None else [names.text, names.text2]
    examples = []
    for record in records.read(path):
        label = record.label(names.label)
        if known and label not in known:
            among = ", ".join(map(repr, known[:10])) + (", …" if len(known) > 10 else "")
            raise UserError(f"{record.place}: no training example has the label {label!r}, only {among}")
        examples.append(Labelled(tuple(map(record.text, roles)), label))
    return examples


def in_order(classes: set[str]) -> list[str]:
    """Numbers by value, anything else by alphabet."""
    try:
        return sorted(sorted(classes), key=float)
    except ValueError:
        return sorted(classes)
