"""What every task provides, so that one script trains all of them by example and one by reward."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from minillm.batching import Document
from minillm.metrics import Interval
from minillm.tokenizer import SymbolTokenizer


@dataclass(frozen=True)
class Example:
    prompt: str
    answers: tuple[str, ...]  # each of them is right


@dataclass(frozen=True)
class Splits:
    train: list[Example]
    dev: list[Example]
    test: list[Example]


class Task(Protocol):
    name: str
    headline: str  # the metric that counts
    tokenizer: SymbolTokenizer
    splits: Splits

    def reward(self, example: Example, answer: str) -> float:
        """How good the answer is, from 0 to 1: all that reinforcement learning is told."""

    def measure(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Interval]:
        """The task's metrics over examples and the model's answers to them."""


def to_documents(examples: Sequence[Example], tokenizer: SymbolTokenizer) -> list[Document]:
    """One document for each right answer of each example."""
    return [
        Document(tokenizer.encode(example.prompt), [*tokenizer.encode(answer), tokenizer.end])
        for example in examples
        for answer in example.answers
    ]
