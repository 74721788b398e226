"""What train_sft.py asks of whoever learns, so that one loop trains all of them.

A task says what is right: examples, metric, reward. A learner says how a model gets there: what it reads, what it
minimises, how it answers.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from minillm.run import Run
from minillm.tasks.base import Recipe, Task


class Batch(Protocol):
    tokens: Tensor  # (N,) int64

    def to(self, device: torch.device) -> "Batch": ...


class Corpus(Protocol):
    lengths: np.ndarray  # tokens of each example

    def batch(self, indices: np.ndarray) -> Batch: ...


class Shape(Protocol):
    """The options that decide what a model is and how it is trained."""

    layers: int
    width: int
    heads: int
    dropout: float
    lr: float
    embedding_lr: float


class Learner(Protocol):
    task: Task
    corpus: Corpus  # of the training examples
    notes: list[str]  # what a person should know of the data

    def recipe(self, minutes: float | None) -> Recipe:
        """What suits task and data when there are so many minutes to train; None asks for the default."""

    def make_model(self, shape: Shape) -> nn.Module:
        """The model of --init where one was given, else a new one."""

    def optimizers(self, model: nn.Module, shape: Shape) -> list[torch.optim.Optimizer]: ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The scalar to minimise."""

    def answer(self, model: nn.Module, examples: Sequence[Any]) -> list[Any]:
        """The model's answer to each example, in their order. Leaves the model in the mode it found."""

    def details(self, examples: Sequence[Any], answers: Sequence[Any]) -> dict[str, Any]:
        """What belongs into metrics.json beside the metrics."""

    def describe(self, run: Run, model: nn.Module, args: Any) -> None:
        """Writes all of a run that is known before the first step."""

    def save(self, run: Run, model: nn.Module) -> None:
        """Writes the trained model."""

    def table(self, examples: Sequence[Any], answers: Sequence[Any]) -> Table:
        """Some answers, for a person."""

    def next_command(self, run: Run) -> str:
        """What to do with the finished run."""
