"""What a task is: what its examples look like as documents, how good answers are, and what suits it.

One script trains all tasks by example and one by reward; neither knows any of them by name. `WritingTask` has what all
tasks share whose answers are written, token by token, by a GPT.
"""

import shlex
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from rich.table import Table
from torch import Tensor, nn

from minillm import cli, evaluate
from minillm.batching import Batch, Corpus, Document, answering
from minillm.beam import Beams
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.metrics import Interval
from minillm.objective import Rule
from minillm.players import Player
from minillm.report import samples_table
from minillm.rewards import SHARED, Reward
from minillm.run import Run
from minillm.tokenizer import Tokenizer
from minillm.turns import Environment, Turns, last_turn


class Question:
    """What has right answers, of which some are known."""

    prompt: str
    answers: tuple[str, ...]  # each of them is right

    def is_right(self, answer: str | Turns) -> bool:
        """Whether it, or its last turn, is one of the known ones, but for blanks around it; a subclass may know how to
        judge others."""
        return str(last_turn(answer)).strip() in {each.strip() for each in self.answers}


@dataclass(frozen=True)
class Example(Question):
    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Splits:
    train: list[Any]
    dev: list[Any]
    test: list[Any]  # may be empty
    unlabelled: list[Any] = field(default_factory=list)  # for training, too, but not by their answers: see --labels


@dataclass(frozen=True)
class NoOptions:
    """Of a task that has no flags of its own."""


@dataclass(frozen=True)
class Files:
    """The flags of tasks that learn from files."""

    train: Path | None = cli.option(None, "file to learn from, or hub:OWNER/NAME:SPLIT, a data set of the hub")
    dev: Path | None = cli.option(None, "such a file to watch progress on")
    test: Path | None = cli.option(None, "such a file to score at the very end")
    _: KW_ONLY
    labels: float | None = cli.option(
        None, "share of the training examples whose answers are learned from; rewards judge answers to all of them"
    )


class Shape(Protocol):
    """The options that say what a model from scratch is."""

    layers: int
    width: int
    heads: int
    dropout: float


class Task(Protocol):
    """Made as `Task(options, seed)`; UserError where the options or the files that they name are wrong."""

    name: ClassVar[str]
    headline: ClassVar[str]  # the metric that counts
    environment: Environment | None = None  # that a model speaks with by turns, where an answer has several
    takes_environment: ClassVar[bool] = False  # whether a person may name one
    lower_is_better: ClassVar[bool]  # of that metric
    head: ClassVar[str]  # the kind of model that learns it, as in published/families: "lm", "classify", …
    Options: ClassVar[type]  # a dataclass of cli.options: the task's own flags
    is_redrawn: ClassVar[bool]  # whether documents differ from epoch to epoch
    counts_examples: ClassVar[bool] = False  # whether a loss is a mean over examples, however long, not over targets
    looks_first: ClassVar[bool] = False  # whether what the model can do before its training is worth a look
    glance: ClassVar[int] = 500  # dev examples that are looked at during training; all of them are at the end
    splits: Splits
    classes: Sequence[str] | None  # for heads that have them: what a new one tells apart
    sequence_classes: Sequence[str] = ()  # of a tagger, which also says of what class the whole is
    notes: Sequence[str]  # what a person should know of the data
    sources: Mapping[str, Sequence[str]] = {}  # what its documents are made of besides, by name
    before: Mapping[str, Any] = {}  # what was logged of it then
    width: int | None = None  # that a model from scratch shall have, where somebody said so

    @classmethod
    def variant(cls, options: Any) -> str:
        """What its runs are called: its name, with options that make another task of it."""
        return cls.name

    def tokenizer(self) -> Tokenizer:
        """For models from scratch only; a checkpoint brings its own."""

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        """What suits the task: values for options of train_sft.py that were not given. `model` is what --init names;
        None asks for a model from scratch. `minutes` is the time there is; None asks for the default."""

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> nn.Module:
        """From scratch. ValueError for a shape that cannot be."""

    def adapt(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        """Take this model and its vocabulary for what follows. UserError where they don't suit the data."""

    def documents(self, example: Any, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        """What is learned from an example. `rng` is given where `is_redrawn`, another one in every epoch."""

    def num_read(self, example: Any, tokenizer: Tokenizer) -> int:
        """How many tokens at the beginning of its documents are a prompt, so that what is learned comes behind them."""
        return 0

    def begin(self, model: nn.Module, corpus: Corpus, run: Run) -> None:
        """Called with the model as it starts, on its device, before the first step; in a run that goes on, its weights
        are still to come. What is to be remembered of the start may be kept in the run, as REFERENCE."""

    def calibrate(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        """Called with the trained model before all that is held out is answered: the last chance to change it."""

    def end(self, model: nn.Module) -> None:
        """Called with the trained model when all that is held out was answered, before it is saved."""

    def importance(self, batch: Batch) -> Tensor | float:
        """How much the losses of a batch count: one number for all, or one each."""
        return 1.0

    def identity(self, example: Any) -> Hashable:
        """What makes two examples the same one, to whoever knows one of them by heart: its question."""
        return example.prompt

    def count(self, batch: Batch) -> float:
        """The sum of their importance, what a step is divided by."""
        return batch.count

    def weights(self, model: nn.Module, batches: Sequence[Batch], count: float) -> Sequence[Tensor | float | Rule]:
        """Of the losses in each batch of a step that counts so many in all, for `objective.backward`."""
        return [self.importance(batch) / (count or 1) for batch in batches]

    def answer(self, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Any]) -> list[Any]:
        """The model's answer to each example, in their order. Leaves the model in the mode it found."""

    def measure(self, examples: Sequence[Any], answers: Sequence[Any]) -> dict[str, Interval]:
        """The task's metrics over examples and the model's answers to them."""

    def baselines(self, examples: Sequence[Any]) -> dict[str, Interval]:
        """What a simple rule reaches on these examples, the same whatever the model learns: to be read beside its
        metrics, at the very end. The names differ from theirs."""
        return {}

    def reward(self, examples: Sequence[Any], answers: Sequence[Any]) -> Mapping[str, Sequence[float]]:
        """How good each answer is: all that reinforcement learning is told. The sum of named parts, from 0 to 1."""

    def details(self, examples: Sequence[Any], answers: Sequence[Any]) -> dict[str, Any]:
        """What belongs into metrics.json beside the metrics."""

    def record(self, example: Any, answer: Any) -> dict[str, Any]:
        """An example and the model's answer, as they stand in a line of JSON: `evaluate --predictions`. Of an example
        that is what its `repr` shows."""
        known = {field.name: vars(example)[field.name] for field in fields(example) if field.repr}
        return {**known, "answer": answer._asdict() if isinstance(answer, tuple) else answer}

    def table(self, examples: Sequence[Any], answers: Sequence[Any]) -> Table:
        """Some answers, for a person."""

    def remarks(self, measured: Mapping[str, Interval]) -> list[str]:
        """What a person should know of the result, metrics and baselines."""
        return []

    def next_command(self, folder: Path) -> str:
        """What to do with a finished run."""


class Judged(Task):
    """A task whose answers can be judged one by one, so that it can be learned by reward, too: see actors.py."""

    def rl_recipe(self, model: nn.Module | None) -> dict[str, Any]:
        """What suits the task: values for options of train_rl.py that were not given. `model` is what --init names;
        None asks for one from scratch, where the task allows that."""
        return recipe_by_reward(model)

    @property
    def rewards(self) -> dict[str, Reward]:
        """What train_rl.py's --reward may name; the first is the default."""
        raise NotImplementedError(f"--task {self.name} has no rewards")

    def said(self, answer: Any) -> Any:
        """Of an answer as `answer` gives it, that which rewards judge."""
        return answer

    @property
    def num_practised(self) -> int:
        """How many different examples `practice` has."""
        return len(self.splits.train) + len(self.splits.unlabelled)

    def practice(self, seed: int) -> Iterator[Any]:
        """Training examples to try answers on, without end, in an order fixed by the seed: shuffled anew each time.
        Those whose answers are not learned from are among them."""
        rng, examples = np.random.default_rng(seed), [*self.splits.train, *self.splits.unlabelled]
        while True:
            yield from (examples[i] for i in rng.permutation(len(examples)))


class WritingTask(Judged):
    """A task whose answers a GPT writes, at once or, with an `environment`, by turns. What is left to write: `name`,
    `headline`, `__init__(options, seed)` with `splits` of `Example`s, `tokenizer`, `recipe`, `measure`, and `reward`,
    if it is to be learned from verdicts."""

    head = "lm"
    lower_is_better = False
    is_redrawn = False
    Options = NoOptions
    classes = None
    notes = ()
    beams: Beams | None = None  # how held-out prompts are answered; None: greedily

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        return recipe_of_writers(model)

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> GPT:
        sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads, "dropout": shape.dropout}
        return GPT(GPTConfig(tokenizer.vocab_size, max(128, self.tokens_needed(tokenizer)), mlp="gelu-erf", **sizes))

    def adapt(self, model: GPT, tokenizer: Tokenizer) -> None:
        config = model.config
        try:
            needed = self.tokens_needed(tokenizer)
        except ValueError as error:  # of a vocabulary of symbols
            raise UserError(f"this model does not know what --task {self.name} is written in: {error}") from None
        if needed > config.max_seq_len:
            raise UserError(
                f"max_seq_len={config.max_seq_len} of the model is too short: a prompt with its answer takes up to "
                f"{needed} tokens"
            )
        if tokenizer.vocab_size > config.vocab_size:
            raise UserError(
                f"the vocabulary has {tokenizer.vocab_size} tokens, but the model knows {config.vocab_size}"
            )

    def documents(self, example: Example, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        """One document for each right answer."""
        prompt = tokenizer.prompt(example.prompt)
        return [answering(prompt, [*tokenizer.encode(answer), tokenizer.end]) for answer in example.answers]

    def num_read(self, example: Example, tokenizer: Tokenizer) -> int:
        return len(tokenizer.prompt(example.prompt))

    @cache  # noqa: B019, a task lives as long as the training
    def max_answer_tokens(self, tokenizer: Tokenizer) -> int:
        """Where an answer that does not end is cut: the longest in training, and the token that ends it. Where nothing
        is learned, it is twice the longest right one."""
        examples, times = (self.splits.train, 1) if self.splits.train else ([*self.splits.dev, *self.splits.test], 2)
        return times * max(len(tokenizer.encode(answer)) for each in examples for answer in each.answers) + 1

    def measure(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Interval]:
        raise NotImplementedError(f"--task {self.name} does not say how good answers are")

    def reward(self, examples: Sequence[Example], answers: Sequence[str]) -> Mapping[str, Sequence[float]]:
        raise UserError(f"--task {self.name} has no reward, so that it can be learned from examples only")

    @cache  # noqa: B019
    def tokens_needed(self, tokenizer: Tokenizer) -> int:
        """The longest prompt of any split with the longest answer behind it."""
        prompts = (example.prompt for split in vars(self.splits).values() for example in split)
        return max(len(tokenizer.prompt(prompt)) for prompt in prompts) + self.max_answer_tokens(tokenizer)

    @property
    def rewards(self) -> dict[str, Reward]:
        """What train_rl.py's --reward may name; the first is the default."""
        return {"own": self.reward, **SHARED}

    def answer(self, model: GPT, tokenizer: Tokenizer, examples: Sequence[Example]) -> list[str] | list[Turns]:
        """RewardError where an environment fails."""
        if self.environment:
            return Player(self, tokenizer).greedy(model, examples, self.beams)
        prompts = [example.prompt for example in examples]
        return evaluate.write(model, tokenizer, prompts, self.max_answer_tokens(tokenizer), self.beams)

    def details(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Any]:
        return {}

    def table(self, examples: Sequence[Example], answers: Sequence[str]) -> Table:
        return samples_table(examples, answers, "held-out examples")

    def next_command(self, folder: Path) -> str:
        return f"python train_rl.py --task {self.name} --init {shlex.quote(str(folder))}"


def recipe_of_writers(model: GPT) -> dict[str, Any]:
    """Of a model that can write already; the rates of AdamW fall with its width (arXiv:2203.03466)."""
    lr = 3e-4 * min(1.0, 128 / model.config.width)
    return {"optimizer": "adamw", "batch_tokens": 2048, "lr": lr, "embedding_lr": lr, "warmup": 0.05, "epochs": 3}


def recipe_by_reward(model: nn.Module) -> dict[str, Any]:
    """What harms no model that can do much already: answers drawn from the policy as it is, and steps that are small,
    heed for long how much gradients disagree, and lean for one half on the answers that are given."""
    rates = {"optimizer": "adamw", "lr": 3e-4 * min(1.0, 128 / model.config.width), "beta2": 0.99, "warmup": 0.1}
    return {**rates, "minutes": 3.0, "prompts": 128, "samples": 8, "temperature": 1.0, "sft_share": 0.5}
