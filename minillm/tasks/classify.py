"""Classification: which class a text, or a pair of texts, belongs to. The data is the user's own, JSONL or CSV."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from torch import nn

from minillm import cli, evaluate, records
from minillm.batching import Document
from minillm.bert import BERTConfig
from minillm.errors import UserError
from minillm.gpt import GPTConfig
from minillm.heads import SequenceClassifier
from minillm.metrics import Interval, macro_f1, rate
from minillm.published.subwords import learn_wordpiece
from minillm.report import mistakes_table
from minillm.tasks.base import Files, Shape, Splits, Task
from minillm.tokenizer import Tokenizer, read_texts

KINDS = {
    "bert": BERTConfig,
    "gpt": partial(GPTConfig, positions="learned", bias=True),
}  # of models from scratch, as BERT and GPT-2 are published
LONGEST = 512  # tokens of a text that a model from scratch reads
VOCABULARY = 8000  # word pieces learned from the training texts
MOST_CLASSES = 1000  # more are no classes; most likely the field is not the label
WORST = 10


@dataclass(frozen=True)
class Options(Files):
    fields: str | None = cli.option(
        None, "names of the fields, e.g. text=review,label=stars, with text2=NAME for pairs"
    )
    model: str | None = cli.option(None, "what a model from scratch is (default: bert)", choices=tuple(KINDS))


@dataclass(frozen=True)
class Labelled:
    texts: tuple[str, ...]  # one, or a pair
    label: str

    @property
    def prompt(self) -> str:
        return " / ".join(self.texts)


class Prediction(NamedTuple):
    label: str
    probability: float


class Classify(Task):
    name = "classify"
    headline = "accuracy"
    lower_is_better = False
    head = "classify"
    is_redrawn = False
    Options = Options

    def __init__(self, options: Options, seed: int):
        """The task from files. Texts that are held out are never trained on, also where the files overlap."""
        self.kind = options.model
        self.splits, self.classes, self.notes = load(options)
        counts = Counter(example.label for example in self.splits.train)
        self.majority = max(self.classes, key=lambda name: counts[name])  # in training: the guess without reading
        self.limit, self.vocab_size = LONGEST, None

    def tokenizer(self) -> Tokenizer:
        texts = [text for example in self.splits.train for text in example.texts]
        tokenizer = learn_wordpiece(texts, VOCABULARY)
        if self.kind == "gpt":  # or transformers would hand its GPT-2 segments, and that would add them
            tokenizer.config = {**tokenizer.config, "model_input_names": ["input_ids", "attention_mask"]}
        return tokenizer

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        """A published model needs few epochs; one from scratch must be small and drop much not to learn by heart."""
        both = {"optimizer": "adamw-head", "warmup": 0.06}
        if model and self.kind:
            raise UserError(
                f"--model {self.kind} is for a model from scratch, but --init brings its own; leave one out"
            )
        if model:
            rates = {"lr": 1e-4, "embedding_lr": 1e-3, "dropout": 0.1}
            return {**both, **rates, "batch_examples": 32, "epochs": 2.5}
        shape = {"layers": 2, "width": 64, "heads": 4, "dropout": 0.3}
        return {**both, **shape, "lr": 5e-4, "embedding_lr": 5e-4, "batch_examples": 64, "epochs": 6.0}

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> SequenceClassifier:
        sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads, "dropout": shape.dropout}
        config = KINDS[self.kind or "bert"](vocab_size=tokenizer.vocab_size, max_seq_len=LONGEST, **sizes)
        return SequenceClassifier(config, self.classes)

    def adapt(self, model: SequenceClassifier, tokenizer: Tokenizer) -> None:
        """Take over the order of the model's classes and what it reads of a text."""
        self.classes, self.limit, self.vocab_size = list(model.classes), model.max_seq_len, model.config.vocab_size
        examples = [example for split in vars(self.splits).values() for example in split]
        num_cut = sum(len(tokens) > self.limit for tokens, _ in self.read(examples, tokenizer, limit=None))
        if num_cut:
            self.notes = [*self.notes, f"{num_cut:,} texts are longer than {self.limit} tokens; their ends are cut"]

    def read(
        self, examples: Sequence[Labelled], tokenizer: Tokenizer, limit: int | None
    ) -> list[tuple[list[int], list[int]]]:
        return read_texts(tokenizer, [example.texts for example in examples], self.vocab_size, limit)

    def documents(self, example: Labelled, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        ((tokens, segments),) = self.read([example], tokenizer, self.limit)
        return [Document(tokens, label=self.classes.index(example.label), segments=segments)]

    def answer(self, model: SequenceClassifier, tokenizer: Tokenizer, examples: Sequence[Labelled]) -> list[Prediction]:
        probabilities = evaluate.classify(model, tokenizer, [example.texts for example in examples])
        best = probabilities.argmax(axis=1)
        return [Prediction(model.classes[k], float(p[k])) for k, p in zip(best, probabilities, strict=True)]

    def reward(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> dict[str, list[float]]:
        return {"right": [float(a.label == e.label) for e, a in zip(examples, answers, strict=True)]}

    def measure(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> dict[str, Interval]:
        """Beside accuracy and macro-F1 what always the same answer, the commonest in training, would get right."""
        truth = [example.label for example in examples]
        return {
            "accuracy": rate([answer.label == label for answer, label in zip(answers, truth, strict=True)]),
            "macro_f1": macro_f1(truth, [answer.label for answer in answers]),
            "majority": rate([label == self.majority for label in truth]),
        }

    def details(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> dict[str, Any]:
        """What else is worth keeping: who is taken for whom, and the worst mistakes."""
        confusion: dict[str, Counter[str]] = {name: Counter() for name in self.classes}
        for example, answer in zip(examples, answers, strict=True):
            confusion[example.label][answer.label] += 1
        worst = [
            {"texts": example.texts, "label": example.label, "answer": answer.label, "probability": answer.probability}
            for example, answer in worst_mistakes(examples, answers)
        ]
        return {"confusion": confusion, "worst_mistakes": worst}

    def table(self, examples: Sequence[Labelled], answers: Sequence[Prediction]) -> Table:
        return mistakes_table(worst_mistakes(examples, answers), "the mistakes that it was surest of")

    def next_command(self, folder: Path) -> str:
        return f'python -m minillm classify {shlex.quote(str(folder))} "a text of your own"'


def worst_mistakes(examples: Sequence[Labelled], answers: Sequence[Prediction]) -> list[tuple[Labelled, Prediction]]:
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


def load(options: Options) -> tuple[Splits, list[str], list[str]]:
    """Splits, classes, and notes for a person. UserError says what is wrong with the files, and where."""
    train, dev, test = options.train, options.dev, options.test
    if train is None or dev is None:
        raise UserError("--task classify learns from your own examples: give --train FILE and --dev FILE")
    names = Fields.parse(options.fields)
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
    twice = len(examples) - len(unseen)
    notes = [f"{twice:,} training texts are held out, too; not trained on"] if twice else []
    return Splits(unseen, *held_out), classes, notes


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
