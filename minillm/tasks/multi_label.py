"""Classification with several labels at once, `--task classify --problem multi`: which of some classes apply to a text.

Each class is a question of its own, yes or no, answered by yes where its probability is over a half.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from minillm import evaluate, labels, records
from minillm.errors import UserError
from minillm.heads import MultiLabelClassifier
from minillm.metrics import (
    Interval,
    calibration_error,
    fitted_temperature,
    label_macro_f1,
    label_report,
    micro_f1,
    rate,
)
from minillm.naive_bayes import OneAgainstRest
from minillm.records import Record
from minillm.report import cells, shortened, values_of
from minillm.tasks import files
from minillm.tasks.base import Shape, Splits
from minillm.tasks.classes import in_order, listed
from minillm.tasks.classify import WORST, Classify, Options
from minillm.tasks.encoders import LONGEST, new_config
from minillm.tasks.files import Fields
from minillm.tasks.labelled import MOST_CLASSES, SHOWN
from minillm.tokenizer import Tokenizer
from minillm.wording import counted

THRESHOLD = 0.5  # of the probability of a class that applies
SEPARATORS = "|;,"  # between the names in a text, the first that a file has
NONE = "none"  # how a person reads that no class applies


@dataclass(frozen=True)
class MultiLabelled:
    texts: tuple[str, ...]  # one, or a pair
    labels: tuple[str, ...]  # all that apply, maybe none

    @property
    def prompt(self) -> str:
        return " / ".join(self.texts)


class Labels(NamedTuple):
    """What a model says of a text."""

    labels: tuple[str, ...]  # the likeliest first
    probabilities: dict[str, float]  # of all classes


class MultiLabel(Classify):
    headline = "micro_f1"
    head = "multi"
    guess, guessed = "commonest_labels", "labels"

    def __init__(self, options: Options, seed: int):
        """The task from files. Texts that are held out are never trained on, also where the files overlap."""
        if options.class_weights:
            raise UserError("--class-weights is for --problem single: a text of several labels is of no one class")
        self.take(options)
        self.splits, self.classes, self.notes = load(options)
        self.commonest = without_reading([example.labels for example in self.splits.train])
        self.majority = joined(self.commonest)
        self.limit, self.vocab_size = LONGEST, None

    @cached_property
    def naive_bayes(self) -> OneAgainstRest:
        train = self.splits.train
        return OneAgainstRest([example.texts for example in train], [example.labels for example in train])

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> MultiLabelClassifier:
        return MultiLabelClassifier(new_config(self.kind, tokenizer.vocab_size, shape), self.classes)

    def adapt(self, model: MultiLabelClassifier, tokenizer: Tokenizer) -> None:
        """A new head begins with how often each class applies, and not with every second time, which would have to be
        unlearned first (as of rare classes in Lin et al. 2017, arXiv:1708.02002)."""
        super().adapt(model, tokenizer)
        if self.splits.train and not model.head_is_trained and model.classifier.bias is not None:
            counts = self.marks([example.labels for example in self.splits.train]).sum(axis=0)
            rates = (counts + 1) / (len(self.splits.train) + 2)
            model.classifier.bias.data.copy_(torch.from_numpy(np.log(rates / (1 - rates))))

    def label_of(self, example: MultiLabelled) -> list[float]:
        return [float(name in example.labels) for name in self.classes]

    def temperature_of(self, logits: np.ndarray, labels: Sequence[Sequence[float]]) -> float:
        """Of a yes against the no, whose logit is 0."""
        yes = logits.ravel()
        return fitted_temperature(np.stack([np.zeros_like(yes), yes], axis=1), np.array(labels, dtype=np.int64).ravel())

    def answer(
        self, model: MultiLabelClassifier, tokenizer: Tokenizer, examples: Sequence[MultiLabelled]
    ) -> list[Labels]:
        probabilities = evaluate.classify(model, tokenizer, [example.texts for example in examples])
        return [labels_over(THRESHOLD, dict(zip(model.classes, row, strict=True))) for row in probabilities.tolist()]

    def reward(self, examples: Sequence[MultiLabelled], answers: Sequence[Labels]) -> dict[str, list[float]]:
        """F1 of each text's labels; 1 where it has none and none was answered."""
        pairs = [(set(e.labels), set(a.labels)) for e, a in zip(examples, answers, strict=True)]
        return {"f1": [2 * len(t & a) / (len(t) + len(a)) if t or a else 1.0 for t, a in pairs]}

    def measure(self, examples: Sequence[MultiLabelled], answers: Sequence[Labels]) -> dict[str, Interval]:
        truth, found = (self.marks([each.labels for each in rows]) for rows in (examples, answers))
        return {
            "micro_f1": micro_f1(truth, found),
            "macro_f1": label_macro_f1(truth, found),
            "all_labels": rate((truth == found).all(axis=1)),
            "calibration_error": self.calibration_error(truth, answers),
        }

    def calibration_error(self, truth: np.ndarray, answers: Sequence[Labels]) -> Interval:
        """Of what is said of every class, yes or no."""
        said = [[answer.probabilities.get(name, 0.0) for name in self.classes] for answer in answers]
        text = np.repeat(np.arange(len(truth)), len(self.classes))
        return calibration_error(np.ravel(said), truth.ravel(), text)

    def marks(self, sets: Sequence[Collection[str]]) -> np.ndarray:
        """(n, K) bool: which classes are in each."""
        return np.array([[name in names for name in self.classes] for names in sets])

    def baselines(self, examples: Sequence[MultiLabelled]) -> dict[str, Interval]:
        """Micro-F1 of naive Bayes, each class against the rest, and of always saying what does best in training."""
        truth = self.marks([example.labels for example in examples])
        counted = self.marks([self.naive_bayes.answer(example.texts) for example in examples])
        always = self.marks([self.commonest] * len(examples))
        return {"naive_bayes": micro_f1(truth, counted), self.guess: micro_f1(truth, always)}

    def details(self, examples: Sequence[MultiLabelled], answers: Sequence[Labels]) -> dict[str, Any]:
        """Each class by itself, and the worst mistakes."""
        marks = (self.marks([each.labels for each in rows]) for rows in (examples, answers))
        worst = [
            {"texts": example.texts, "labels": example.labels, "answer": answer.labels}
            for example, answer in worst_mistakes(examples, answers)
        ]
        return {"by_class": values_of(label_report(*marks, self.classes)), "worst_mistakes": worst}

    def table(self, examples: Sequence[MultiLabelled], answers: Sequence[Labels]) -> Table:
        table = Table("text", "answer", "truth", title="the texts with most mistakes", title_justify="left")
        for example, answer in worst_mistakes(examples, answers):
            table.add_row(*cells(shortened(example.prompt), joined(answer.labels), joined(example.labels)))
        return table


def labels_over(threshold: float, probabilities: Mapping[str, float]) -> Labels:
    over = [name for name, p in probabilities.items() if p > threshold]
    return Labels(tuple(sorted(over, key=lambda name: -probabilities[name])), dict(probabilities))


def without_reading(sets: Sequence[Sequence[str]]) -> list[str]:
    """The labels that, said of every text, have the highest micro-F1: so many of the commonest ones."""
    counts = Counter(name for names in sets for name in names).most_common()
    hits = np.cumsum([count for _, count in counts])
    if not len(hits):
        return []
    f1 = 2 * hits / (len(sets) * np.arange(1, len(hits) + 1) + hits[-1])
    return [name for name, _ in counts[: int(f1.argmax()) + 1]]


def joined(names: Sequence[str]) -> str:
    return " + ".join(names) or NONE


def worst_mistakes(examples: Sequence[MultiLabelled], answers: Sequence[Labels]) -> list[tuple[MultiLabelled, Labels]]:
    """Where most labels are wrong, of these where their probabilities were furthest from right."""

    def badness(pair: tuple[MultiLabelled, Labels]) -> tuple[int, float]:
        example, answer = pair
        wrong = set(example.labels) ^ set(answer.labels)
        return len(wrong), sum(abs(answer.probabilities.get(name, 0.0) - THRESHOLD) for name in wrong)

    wrong = [pair for pair in zip(examples, answers, strict=True) if badness(pair)[0]]
    return sorted(wrong, key=badness, reverse=True)[:WORST]


# ---- the data ------------------------------------------------------------------------------------


def load(options: Options) -> tuple[Splits, list[str], list[str]]:
    """Splits, classes, and notes for a person. UserError says what is wrong with the files, and where."""
    fields = Fields(options.fields, ("text", "label", "text2"))
    counts: Counter[str] = Counter()  # of the examples of --train, by class

    def read_split(path: Path, train: Sequence[MultiLabelled]) -> list[MultiLabelled]:
        examples = read(path, fields, {name for example in train for name in example.labels})
        if path == options.train:
            counts.update(name for example in examples for name in example.labels)
            check(examples, counts, path, fields)
        return examples

    def rarest(example: MultiLabelled) -> str | None:
        """Of its classes, so that what is held out has something of each."""
        return min(example.labels, key=lambda name: (counts[name], name), default=None)

    splits, notes = files.load(options, "classify", read_split, lambda e: e.texts, rarest)
    everything = [example for split in vars(splits).values() for example in split]
    if options.train:
        notes += notes_on(splits.train, counts)
    return splits, in_order({name for example in everything for name in example.labels}), notes


def check(examples: Sequence[MultiLabelled], counts: Counter[str], path: Path, fields: Fields) -> None:
    if len({frozenset(example.labels) for example in examples}) == 1:
        what = joined(examples[0].labels)
        raise UserError(f"{path}: all texts have the same labels, {what!r}; there is nothing to tell apart")
    if len(counts) > MOST_CLASSES:
        name = fields.name("label")
        raise UserError(f"{path}: {name!r} has {len(counts):,} different labels; are these the labels?")


def notes_on(train: Sequence[MultiLabelled], counts: Counter[str]) -> list[str]:
    shown = ", ".join(f"{name} {count:,}" for name, count in counts.most_common(SHOWN))
    more = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    mean = sum(len(example.labels) for example in train) / len(train)
    none = sum(not example.labels for example in train)
    notes = [f"{counted(len(counts), 'class', 'classes')}, {mean:.2f} a text: {shown}{more}"]
    notes += [f"{counted(none, 'training text has', 'training texts have')} no label"] if none else []
    trained = {name for example in train for name in example.labels}
    if missing := counts.keys() - trained:
        notes.append(f"no example of {listed(missing)} is left to learn from: all are held out")
    return [*notes, *labels.suspicious(counts)]


def read(path: Path, fields: Fields, known: Collection[str] = ()) -> list[MultiLabelled]:
    """The examples of a file; their labels must be among the known ones, if any are."""
    found = records.read(path)
    roles = ["text", "text2"] if fields.has(found[0], "text2") else ["text"]
    examples = []
    for record, names in zip(found, label_sets(found, fields.name("label"), known), strict=True):
        if known and (strangers := [name for name in names if name not in known]):
            message = f"no training example has the label {strangers[0]!r}, only {listed(known)}"
            raise UserError(f"{record.place}: {message}")
        examples.append(MultiLabelled(tuple(fields.text(record, role) for role in roles), names))
    return examples


def label_sets(found: Sequence[Record], name: str, known: Collection[str]) -> list[tuple[str, ...]]:
    """The names in a field, each once, as `records.labels` has them."""
    separator = next((s for s in SEPARATORS if any(s in v for r in found if isinstance(v := r.value(name), str))), None)
    parts = [list(parts_of(record, name, separator)) for record in found]
    single = [Record(record.place, {name: part}) for record, each in zip(found, parts, strict=True) for part in each]
    names = iter(records.labels(single, name, known))
    return [tuple(dict.fromkeys(next(names) for _ in each)) for each in parts]


def parts_of(record: Record, name: str, separator: str | None) -> Iterator[Any]:
    value = record.value(name)
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            raise UserError(f"{record.place}: {name!r} begins as a list, but is no list of JSON: {value}") from None
    if isinstance(value, str):
        yield from filter(str.strip, value.split(separator) if separator else [value])
    else:
        yield from value if isinstance(value, list) else [value]
