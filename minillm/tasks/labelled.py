"""Texts that are of one class each, from a person's files."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from minillm import labels, records
from minillm.errors import UserError
from minillm.tables import DELIMITERS
from minillm.tasks import files
from minillm.tasks.base import Question, Splits
from minillm.tasks.classes import in_order, listed
from minillm.tasks.files import FEW, Fields
from minillm.wording import counted

MOST_CLASSES = 1000  # more are no classes; most likely the field is not the label
SHOWN = 20  # classes that are listed with their number of examples


@dataclass(frozen=True)
class Labelled(Question):
    texts: tuple[str, ...]  # one, or a pair
    label: str

    @property
    def prompt(self) -> str:
        return " / ".join(self.texts)

    @property
    def answers(self) -> tuple[str, ...]:
        return (self.label,)


def load(options: files.Options) -> tuple[Splits, list[str], list[str]]:
    """Splits, classes, and notes for a person. UserError says what is wrong with the files, and where."""
    fields = Fields(options.fields, ("text", "label", "text2"))

    def read_split(path: Path, train: Sequence[Labelled]) -> list[Labelled]:
        examples = read(path, fields, {example.label for example in train})
        if path == options.train:
            check_classes(Counter(example.label for example in examples), path, fields)
        return examples

    splits, notes = files.load(options, "classify", read_split, lambda e: e.texts, lambda e: e.label)
    classes = {each.label for each in [*splits.train, *splits.unlabelled] or [*splits.dev, *splits.test]}
    if missing := {example.label for example in (*splits.dev, *splits.test)} - classes:
        raise UserError(f"all examples of the class {min(missing)!r} of {options.train} are held out")
    if options.train:
        notes += notes_on(splits.train, Counter(example.label for example in splits.train))
    return splits, in_order(classes), notes


def check_classes(counts: Counter[str], path: Path, fields: Fields) -> None:
    if len(counts) == 1:
        raise UserError(f"{path} holds one class only, {min(counts)!r}; there is nothing to tell apart")
    if len(counts) > MOST_CLASSES:
        name = fields.name("label")
        raise UserError(f"{path}: {name!r} has {len(counts):,} different values; is it the label?")
    if max(counts.values(), default=0) == 1 and len(counts) > FEW:
        name = fields.name("label")
        raise UserError(
            f"{path}: {name!r} is another one in every line; is it the label? --task regress learns numbers"
        )


def notes_on(train: Sequence[Labelled], counts: Counter[str]) -> list[str]:
    """The classes with their sizes, and what of them and of the texts looks like a mistake."""
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(SHOWN))
    more = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    of_text: dict[tuple[str, ...], set[str]] = {}
    for example in train:
        of_text.setdefault(example.texts, set()).add(example.label)
    notes = [f"{len(counts):,} classes: {shown}{more}", *labels.suspicious(counts)]
    if count := sum(map(holds_rows(counts), of_text)):
        them = counted(count, "text holds lines that look", "texts hold lines that look")
        notes.append(f"{them} like rows, with a class at an end: is a quote left open in --train?")
    if contradictory := sum(len(names) > 1 for names in of_text.values()):
        notes.append(f"{counted(contradictory, 'text stands', 'texts stand')} in --train with different labels")
    return notes


def holds_rows(classes: Collection[str]) -> Callable[[tuple[str, ...]], bool]:
    """Whether there are further rows of a table in a text, as where a quote was not closed: lines with a class, and a
    delimiter right beside it."""
    name = '"?(' + "|".join(map(re.escape, classes)) + ')"?'
    row = re.compile(rf"(^{name}[{DELIMITERS}](?=\S)|(?<=\S)[{DELIMITERS}]{name}\r?$)", re.MULTILINE)
    return lambda texts: any("\n" in text and row.search(text) is not None for text in texts)


def read(path: Path, fields: Fields, known: Collection[str] = ()) -> list[Labelled]:
    """The examples of a file; their labels must be among the known ones, if any are."""
    found = records.read(path)
    roles = ["text", "text2"] if fields.has(found[0], "text2") else ["text"]
    if isinstance(found[0].value(fields.name("label")), list):
        place = f"{found[0].place}: {fields.name('label')!r}"
        raise UserError(f"{place} is a list: where a text has several labels, add --problem multi")
    names = records.labels(found, fields.name("label"), known)
    texts = records.each_told(lambda record: tuple(fields.text(record, role) for role in roles), found)
    for record, label in zip(found, names, strict=True):
        if known and label not in known:
            raise UserError(f"{record.place}: no training example has the label {label!r}, only {listed(known)}")
    return list(map(Labelled, texts, names))
