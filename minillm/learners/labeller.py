"""A classifier that learns the labels that examples show: BERT of any family or GPT, pretrained or from scratch."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from kernels import cross_entropy
from minillm.batching import LabelledBatch, LabelledCorpus, cut
from minillm.bert import BERTConfig
from minillm.errors import UserError
from minillm.evaluate import read
from minillm.gpt import GPTConfig
from minillm.heads import SequenceClassifier
from minillm.learners.base import Shape
from minillm.optim import adamw_under_head
from minillm.published import checkpoint
from minillm.published.subwords import learn_wordpiece
from minillm.published.vocabularies import load_tokenizer
from minillm.report import mistakes_table
from minillm.run import Run
from minillm.tasks.base import Recipe
from minillm.tasks.classify import Classify, Guess, Labelled, worst_mistakes
from minillm.tokenizer import read_texts

KINDS = {
    "bert": BERTConfig,
    "gpt": partial(GPTConfig, positions="learned", bias=True),
}  # as BERT and GPT-2 are published
LONGEST = 512  # tokens of a text that a model from scratch reads
VOCABULARY = 8000  # word pieces learned from the training texts


class Labeller:
    def __init__(self, task: Classify, init: Path | None, kind: str | None):
        """`init` is a published model or a run; without one the model is new, of one of KINDS."""
        self.task, self.kind = task, kind or "bert"
        if init and kind:
            raise UserError(f"--model {kind} is for a model from scratch, but --init {init} names one")
        if init:
            path = checkpoint.resolve(init)
            classes = checkpoint.open_checkpoint(path).matching_classes(task.classes) or task.classes
            self.tokenizer, self.classes = load_tokenizer(path), list(classes)
            self.pretrained = checkpoint.load(path, head="classify", classes=classes)
            self.max_seq_len = self.pretrained.config.max_seq_len
        else:
            texts = [text for example in task.splits.train for text in example.texts]
            self.tokenizer, self.classes = learn_wordpiece(texts, VOCABULARY), task.classes
            self.pretrained, self.max_seq_len = None, LONGEST
            if self.kind == "gpt":  # or transformers would hand its GPT-2 segments, and that would add them
                names = {"model_input_names": ["input_ids", "attention_mask"]}
                self.tokenizer.config = {**self.tokenizer.config, **names}
        vocab_size = self.pretrained.config.vocab_size if self.pretrained else self.tokenizer.vocab_size
        read = partial(read_texts, self.tokenizer, vocab_size=vocab_size)
        try:
            ids = read([example.texts for example in task.splits.train], limit=self.max_seq_len)
            whole = read([example.texts for split in vars(task.splits).values() for example in split])
        except UserError as error:
            raise UserError(f"--init {init}: {error}") from None
        self.num_cut = sum(len(tokens) > self.max_seq_len for tokens, _ in whole)
        self.corpus = LabelledCorpus(ids, [self.classes.index(example.label) for example in task.splits.train])

    @property
    def notes(self) -> list[str]:
        if not self.num_cut:
            return self.task.notes
        return [
            *self.task.notes,
            f"{self.num_cut:,} texts are longer than {self.max_seq_len} tokens; their ends are cut",
        ]

    def recipe(self, minutes: float | None) -> Recipe:
        """A published model needs few epochs; one from scratch must be small and drop much not to learn by heart."""
        if self.pretrained:
            config, batch_tokens = self.pretrained.config, self.tokens_of(32)
            shape = config.num_layers, config.width, config.num_heads, batch_tokens
            steps = self.steps(2.5, batch_tokens)
            return Recipe(*shape, lr=1e-4, embedding_lr=1e-3, warmup=0.06, steps=steps, dropout=0.1)
        batch_tokens = self.tokens_of(64)
        steps = self.steps(6, batch_tokens)
        return Recipe(2, 64, 4, batch_tokens, lr=5e-4, embedding_lr=5e-4, warmup=0.06, steps=steps, dropout=0.3)

    def tokens_of(self, num_texts: int) -> int:
        """Of so many texts of average length."""
        return max(1, round(num_texts * float(self.corpus.lengths.mean())))

    def steps(self, num_epochs: float, batch_tokens: int) -> int:
        return round(num_epochs * len(cut(np.arange(len(self.corpus)), self.corpus.lengths, batch_tokens)))

    def make_model(self, shape: Shape) -> SequenceClassifier:
        if self.pretrained:
            return with_dropout(self.pretrained, shape.dropout)
        sizes = {"num_layers": shape.layers, "width": shape.width, "num_heads": shape.heads, "dropout": shape.dropout}
        try:
            config = KINDS[self.kind](vocab_size=self.tokenizer.vocab_size, max_seq_len=self.max_seq_len, **sizes)
        except ValueError as error:
            raise UserError(f"there is no such model: {error}") from None
        return with_dropout(SequenceClassifier(config, self.classes), shape.dropout)

    def optimizers(self, model: SequenceClassifier, shape: Shape) -> list[torch.optim.Optimizer]:
        return adamw_under_head(model, shape.lr, shape.embedding_lr)

    def loss(self, model: SequenceClassifier, batch: LabelledBatch) -> Tensor:
        """− 1/n Σ log p(class | text) over the n texts."""
        logits = model(batch.tokens, batch.packing, batch.segments)
        return cross_entropy(logits, batch.labels, reduction="mean")

    def answer(self, model: SequenceClassifier, examples: Sequence[Labelled]) -> list[Guess]:
        texts = [example.texts for example in examples]
        probabilities = torch.from_numpy(read(model, self.tokenizer, texts)).softmax(dim=-1).numpy()
        best = probabilities.argmax(axis=1)
        return [Guess(self.classes[k], float(p[k])) for k, p in zip(best, probabilities, strict=True)]

    def details(self, examples: Sequence[Labelled], answers: Sequence[Guess]) -> dict[str, Any]:
        return self.task.details(examples, answers)

    def describe(self, run: Run, model: SequenceClassifier, args: Any) -> None:
        run.describe(model, self.tokenizer, args)

    def save(self, run: Run, model: SequenceClassifier) -> None:
        run.save_model(model)

    def table(self, examples: Sequence[Labelled], answers: Sequence[Guess]) -> Table:
        return mistakes_table(worst_mistakes(examples, answers), "the mistakes that it was surest of")

    def next_command(self, run: Run) -> str:
        return f'python -m minillm classify {run.folder} "a text of your own"'


def with_dropout(model: SequenceClassifier, p: float) -> SequenceClassifier:
    """The same classifier with dropout p wherever its family has any."""
    known = {field.name for field in dataclasses.fields(model.config)}
    wanted = {"dropout", "classifier_dropout", "attention_dropout"} & known
    try:
        config = dataclasses.replace(model.config, **dict.fromkeys(wanted, p))
    except ValueError as error:
        raise UserError(f"there is no such model: {error}") from None
    other = SequenceClassifier(config, model.classes)
    other.load_state_dict(model.state_dict())
    return other
