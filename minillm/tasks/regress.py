"""Regression: a number for a text, or for a pair of texts, such as how alike they are.

What is minimised is the squared error in units of the labels' standard deviation, so that the recipe does not depend on
what they measure. The finished model says numbers as they stand in the data, in transformers, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table

from minillm import evaluate, records
from minillm.batching import Corpus
from minillm.errors import UserError
from minillm.heads import ONE_OUTPUT, Scorer
from minillm.metrics import Interval, mean_squared_error, pearson, spearman, unexplained
from minillm.report import cells, shortened
from minillm.run import Run
from minillm.tasks import files
from minillm.tasks.base import Shape, Splits
from minillm.tasks.classify import WORST, Classify
from minillm.tasks.encoders import LONGEST, Options, new_config
from minillm.tasks.files import Fields
from minillm.tokenizer import Tokenizer

BINS = 10  # of labels, each of which gives its share to what is held out


@dataclass(frozen=True)
class Rated:
    texts: tuple[str, ...]  # one, or a pair
    label: float

    @property
    def prompt(self) -> str:
        return " / ".join(self.texts)


class Estimate(NamedTuple):
    value: float


class Regress(Classify):
    name = "regress"
    headline = "unexplained"
    lower_is_better = True
    head = "score"
    Options = Options

    def __init__(self, options: Options, seed: int):
        """The task from files. Texts that are held out are never trained on, also where the files overlap."""
        self.kind, self.classes = options.model, list(ONE_OUTPUT)
        self.splits, self.notes = load(options)
        self.limit, self.vocab_size = LONGEST, None
        labels = np.array([example.label for example in self.splits.train] or [0.0])
        self.mean, self.spread = float(labels.mean()), float(labels.std()) or 1.0
        self.is_standard = False  # whether the model speaks in standard deviations from the mean, as it is taught

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> Scorer:
        return Scorer(new_config(self.kind, tokenizer.vocab_size, shape))

    def adapt(self, model: Scorer, tokenizer: Tokenizer) -> None:
        """A head that has learned numbers already is told them in standard deviations, too."""
        super().adapt(model, tokenizer)
        if self.splits.train and model.head_is_trained and model.classifier.bias is not None:
            with torch.no_grad():
                model.classifier.weight.div_(self.spread)
                model.classifier.bias.sub_(self.mean).div_(self.spread)
            self.is_standard = True

    def begin(self, model: Scorer, corpus: Corpus, run: Run) -> None:
        self.is_standard = True
        if model.classifier.bias is None:  # of a GPT: what it says is a multiple of the deviation, the mean included
            raise UserError("a GPT has no bias to say numbers with; --task regress takes a BERT")

    def end(self, model: Scorer) -> None:
        """Puts deviation and mean into the last product."""
        with torch.no_grad():
            model.classifier.weight.mul_(self.spread)
            model.classifier.bias.mul_(self.spread).add_(self.mean)
        self.is_standard = False

    def label_of(self, example: Rated) -> float:
        return (example.label - self.mean) / self.spread

    def answer(self, model: Scorer, tokenizer: Tokenizer, examples: Sequence[Rated]) -> list[Estimate]:
        values = evaluate.read(model, tokenizer, [example.texts for example in examples])[:, 0]
        values = values * self.spread + self.mean if self.is_standard else values
        return list(map(Estimate, values.tolist()))

    def reward(self, examples: Sequence[Rated], answers: Sequence[Estimate]) -> dict[str, list[float]]:
        """1 for the right number, 0 from one standard deviation of the training labels on."""
        errors = [abs(a.value - e.label) / self.spread for e, a in zip(examples, answers, strict=True)]
        return {"nearness": [max(0.0, 1.0 - error) for error in errors]}

    def measure(self, examples: Sequence[Rated], answers: Sequence[Estimate]) -> dict[str, Interval]:
        """The share of the variance that is left, the squared error, both correlations, as far as they are defined."""
        truth, found = [example.label for example in examples], [answer.value for answer in answers]
        if len(set(truth)) == 1:  # of one value there is no variance to explain
            return {"unexplained": Interval(1.0, 0.0, np.inf), "squared_error": mean_squared_error(truth, found)}
        measured = {"unexplained": unexplained(truth, found), "squared_error": mean_squared_error(truth, found)}
        if len(set(found)) > 1 and len(truth) > 3:
            measured |= {"pearson": pearson(truth, found), "spearman": spearman(truth, found)}
        return measured

    def baselines(self, examples: Sequence[Rated]) -> dict[str, Interval]:
        """The squared error of always saying the mean of training."""
        truth = [example.label for example in examples]
        return {"of_the_mean": mean_squared_error(truth, [self.mean] * len(truth))}

    def remarks(self, measured: dict[str, Interval]) -> list[str]:
        if measured["unexplained"].high >= 1:
            return [f"this is hardly better than always saying the mean of the training labels: {files.MAY_HELP}"]
        return []

    def details(self, examples: Sequence[Rated], answers: Sequence[Estimate]) -> dict[str, Any]:
        worst = worst_errors(examples, answers)
        return {"worst_errors": [{"texts": e.texts, "label": e.label, "answer": a.value} for e, a in worst]}

    def table(self, examples: Sequence[Rated], answers: Sequence[Estimate]) -> Table:
        table = Table("text", "answer", "truth", title="the largest errors", title_justify="left")
        for example, answer in worst_errors(examples, answers):
            table.add_row(*cells(shortened(example.prompt), f"{answer.value:.4g}", f"{example.label:.4g}"))
        return table


def worst_errors(examples: Sequence[Rated], answers: Sequence[Estimate]) -> list[tuple[Rated, Estimate]]:
    pairs = zip(examples, answers, strict=True)
    return sorted(pairs, key=lambda pair: -abs(pair[0].label - pair[1].value))[:WORST]


def load(options: Options) -> tuple[Splits, list[str]]:
    """Splits, and notes for a person. UserError says what is wrong with the files, and where."""
    fields = Fields(options.fields, ("text", "label", "text2"))
    found = read(options.train, fields) if options.train else []
    edges = np.quantile([example.label for example in found], np.linspace(0, 1, BINS + 1)[1:-1]) if found else []
    if found and len({example.label for example in found}) == 1:
        raise UserError(f"all labels of {options.train} are {found[0].label:g}; there is nothing to learn")
    splits, notes = files.load(
        options,
        "regress",
        lambda path, _: read(path, fields),
        lambda example: example.texts,
        lambda example: int(np.searchsorted(edges, example.label)),
    )
    if splits.train:
        labels = np.array([example.label for example in splits.train])
        notes.append(f"labels from {labels.min():.4g} to {labels.max():.4g}, mean {labels.mean():.4g}")
    return splits, notes


def read(path: Path, fields: Fields) -> list[Rated]:
    found = records.read(path)
    roles = ["text", "text2"] if fields.has(found[0], "text2") else ["text"]

    def example(record: records.Record) -> Rated:
        return Rated(tuple(fields.text(record, role) for role in roles), record.number(fields.name("label")))

    return records.each_told(example, found)
