"""A GPT that learns to write the answers that examples show."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from minillm import evaluate
from minillm.batching import Batch, Corpus
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.learners.base import Shape
from minillm.objective import weighted_nll
from minillm.optim import muon
from minillm.report import samples_table
from minillm.run import Run
from minillm.tasks.base import AnswerTask, Example, Recipe, to_documents, tokens_needed


class Writer:
    def __init__(self, task: AnswerTask, init: Path | None):
        self.task, self.init = task, init
        self.notes: list[str] = []
        self.corpus = Corpus(to_documents(task.splits.train, task.tokenizer))

    def recipe(self, minutes: float | None) -> Recipe:
        return self.task.recipe(minutes)

    def make_model(self, shape: Shape) -> GPT:
        if self.init:
            return Run.open(self.init).load_model(self.task)
        try:
            config = GPTConfig(
                vocab_size=self.task.tokenizer.vocab_size,
                max_seq_len=max(128, tokens_needed(self.task)),
                num_layers=shape.layers,
                width=shape.width,
                num_heads=shape.heads,
                dropout=shape.dropout,
            )
        except ValueError as error:
            raise UserError(f"there is no such model: {error}") from None
        return GPT(config)

    def optimizers(self, model: GPT, shape: Shape) -> list[torch.optim.Optimizer]:
        return muon(model, shape.lr, shape.embedding_lr)

    def loss(self, model: GPT, batch: Batch) -> Tensor:
        """− 1/n Σ log p(token | prompt, tokens before) over the n tokens of the answers."""
        return weighted_nll(model, batch, weights=1 / batch.num_targets)

    def answer(self, model: GPT, examples: Sequence[Example]) -> list[str]:
        return evaluate.answer(model, self.task, examples)

    def details(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Any]:
        return {}

    def describe(self, run: Run, model: GPT, args: Any) -> None:
        run.describe(model, self.task.tokenizer, args)

    def save(self, run: Run, model: GPT) -> None:
        run.save_model(model)

    def table(self, examples: Sequence[Example], answers: Sequence[str]) -> Table:
        return samples_table(examples, answers, "held-out examples")

    def next_command(self, run: Run) -> str:
        return f"python train_rl.py --task {self.task.name} --init {run.folder}"
