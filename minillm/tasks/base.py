"""What every task provides, so that one script trains all of them by example and one by reward."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from minillm.batching import Document
from minillm.metrics import Interval
from minillm.tokenizer import SymbolTokenizer


@dataclass(frozen=True)
class Example:
    prompt: str
    answers: tuple[str, ...]  # each of them is right


@dataclass(frozen=True)
class Splits:
    train: list[Any]
    dev: list[Any]
    test: list[Any]  # may be empty


@dataclass(frozen=True)
class Recipe:
    """A model and a training that suit a task; every field is an option of train_sft.py."""

    layers: int
    width: int
    heads: int
    batch_tokens: int
    lr: float  # of the matrices in the blocks (Muon), or of an encoder (AdamW)
    embedding_lr: float  # of everything else (AdamW)
    warmup: float = 0.02  # share of the training in which the rates rise
    minutes: float | None = None  # wall-clock budget, or …
    steps: int | None = None  # … a fixed number of steps
    until: float | None = None  # stop early once the mean reward of greedy dev answers reaches this
    dropout: float = 0.0


class Task(Protocol):
    """What is right: examples, and how good answers to them are."""

    name: str
    headline: str  # the metric that counts
    splits: Splits

    def reward(self, example: Any, answer: Any) -> float:
        """How good the answer is, from 0 to 1: all that reinforcement learning is told."""

    def measure(self, examples: Sequence[Any], answers: Sequence[Any]) -> dict[str, Interval]:
        """The task's metrics over examples and the model's answers to them."""


class AnswerTask(Task, Protocol):
    """A task whose answers are written, token by token; its examples are `Example`s."""

    tokenizer: SymbolTokenizer
    max_answer_tokens: int  # where an answer that does not end is cut

    @staticmethod
    def recipe(minutes: float | None) -> Recipe:
        """What suits the task when there are so many minutes to train; None asks for the default."""

    def practice(self, seed: int) -> Iterator[Example]:
        """Training examples to try answers on, without end, in an order fixed by the seed."""


def tokens_needed(task: AnswerTask) -> int:
    """The longest prompt of any split with the longest answer behind it."""
    prompts = (example.prompt for split in vars(task.splits).values() for example in split)
    return max(len(task.tokenizer.encode(prompt)) for prompt in prompts) + task.max_answer_tokens


def to_documents(examples: Sequence[Example], tokenizer: SymbolTokenizer) -> list[Document]:
    """One document for each right answer of each example."""
    return [
        Document(tokenizer.encode(example.prompt), [*tokenizer.encode(answer), tokenizer.end])
        for example in examples
        for answer in example.answers
    ]
