"""Preferences: of two answers to a prompt, which one people chose. The data is the user's own, JSONL, CSV or TSV.

`--method reward` learns to judge: a BERT or a GPT gives every answer a score, and chosen ones a higher one. The other
methods teach a GPT to write like what was chosen, without a judge in between; their losses are in preference.py.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from minillm import cli, evaluate
from minillm.batching import Batch, Corpus, Document
from minillm.errors import UserError
from minillm.heads import ONE_OUTPUT, RewardModel
from minillm.metrics import Interval, average, rate
from minillm.objective import Rule
from minillm.preference import METHODS, log_p, rule
from minillm.published.exchanges import CONTEXT, Composer, Exchange, keep_format
from minillm.published.subwords import learn_vocabulary
from minillm.report import cells, shortened
from minillm.run import REFERENCE, Run
from minillm.tasks import encoders, files
from minillm.tasks.base import Shape, Splits, Task
from minillm.tasks.encoders import FROM_NOTHING, LONGEST, SHAPE, VOCABULARY
from minillm.tasks.pairs import Pair, differs, load, longer, mismatched
from minillm.tokenizer import Tokenizer
from minillm.wording import counted

REWARD = "reward"
BETA = 0.1  # unless told otherwise
LEAST_CONTEXT = 16
WORST = 10


@dataclass(frozen=True)
class Options(encoders.Options):
    method: str | None = cli.option(
        None, "what is learned: a reward model (default), or by a GPT what to write", choices=(REWARD, *METHODS)
    )
    beta: float | None = cli.option(
        None, f"of the other methods: how near the model stays to its start; for orpo, what pairs weigh ({BETA})"
    )
    context: int | None = cli.option(None, f"most tokens of a prompt with an answer (default: {CONTEXT})")


class Judged(NamedTuple):
    """What a model makes of each answer: its score, or by how many nats it has become likelier than at the start."""

    chosen: float
    rejected: float


class Preference(Task):
    name = "preference"
    headline = "accuracy"
    lower_is_better = False
    is_redrawn, counts_examples = False, True
    Options = Options

    def __init__(self, options: Options, seed: int):
        """The task from files. Prompts that are held out are never trained on, also where the files overlap."""
        self.method = options.method or REWARD
        self.is_judge = self.method == REWARD
        check(options, self.is_judge)
        self.beta, self.context, self.kind = options.beta or BETA, options.context or CONTEXT, options.model
        self.head, self.classes = (REWARD, ONE_OUTPUT) if self.is_judge else ("lm", None)
        self.splits, self.notes = load(options)
        self.strangers: list[Document] = []  # answers to other prompts, by which kto knows how far the model is

    # ---- what suits it ----

    def tokenizer(self) -> Tokenizer:
        if not self.is_judge:
            raise UserError(f"--method {self.method} teaches a GPT that can write already: name it with --init")
        texts = [text for pair in self.splits.train for text in (pair.prompt, *pair.answers)]
        return learn_vocabulary(texts, VOCABULARY)

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        """A judge learns as a classifier does. What writes learns slowly, without dropout: log p at the start, which
        it is compared with, has none."""
        encoders.refuse_beside_init(self.kind, model)
        both = {"batch_examples": 16, "evaluations": 8, "keep": "best"}
        if not self.is_judge:
            rates = {"optimizer": "adamw", "lr": 2e-5, "embedding_lr": 2e-5, "warmup": 0.1, "dropout": 0.0}
            return {**both, **rates, "epochs": 2.0}
        rates = {"optimizer": "adamw-head", "warmup": 0.06}
        epochs = partial(encoders.epochs, examples=len(self.splits.train), batch=both["batch_examples"], least=150)
        if model:
            return {**both, **rates, "lr": 6e-5, "embedding_lr": 1e-3, "dropout": 0.1, "epochs": epochs(3.0)}
        return {**both, **rates, **SHAPE, **FROM_NOTHING, "epochs": epochs(6.0)}

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> RewardModel:
        longest = min(LONGEST, self.context)
        return RewardModel(encoders.new_config(self.kind, tokenizer.vocab_size, shape, longest))

    # ---- what is learned ----

    def adapt(self, model: nn.Module, tokenizer: Tokenizer) -> None:
        """Makes documents of all pairs, as far as they fit."""
        if self.context > model.config.max_seq_len and self.context != CONTEXT:
            raise UserError(
                f"--context {self.context} is more than the {counted(model.config.max_seq_len, 'token')} it reads"
            )
        if not self.is_judge:
            keep_format(tokenizer)
        compose = Composer(model, tokenizer, self.context)
        self.can_chat = compose.template is not None
        exchanges = {
            name: [(pair, [compose(pair.prompt, answer) for answer in pair.answers]) for pair in split]
            for name, split in vars(self.splits).items()
        }
        cut, out = (
            sum(any(e.cut == part for e in both) for split in exchanges.values() for _, both in split)
            for part in ("prompt", "answer")
        )
        fitted = {name: self.fitted(split) for name, split in exchanges.items()}
        require_some(self.splits, fitted, compose.limit)
        self.splits = Splits(**fitted)
        if cut:
            which = f"{counted(cut, 'pair is', 'pairs are')} longer than {compose.limit:,} tokens"
            self.notes = [*self.notes, f"{which}; the prompt's beginning is cut"]
        if out:
            what = "whose beginning is cut, too" if self.is_judge else "left out"
            which = f"{counted(out, 'pair has', 'pairs have')} an answer longer than {compose.limit:,} tokens"
            self.notes = [*self.notes, f"{which}, {what}"]
        if self.method == "kto":
            self.strangers = [compose(*texts).written() for texts in mismatched(self.splits.train)]

    def fitted(self, split: Sequence[tuple[Pair, list[Exchange]]]) -> list[Pair]:
        """Pairs with their documents. What begins in its middle can be judged, but is no answer to learn."""
        if self.is_judge:
            return [replace(pair, documents=(c.judged(1), r.judged(0))) for pair, (c, r) in split]
        whole = [(pair, both) for pair, both in split if not any(e.cut == "answer" for e in both)]
        return [replace(pair, documents=tuple(e.written() for e in both)) for pair, both in whole]

    def documents(self, example: Pair, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        """The chosen answer before the rejected one."""
        return list(example.documents)

    def begin(self, model: nn.Module, corpus: Corpus, run: Run) -> None:
        """How likely all answers are to the model as it starts: computed once, so that no second model is needed."""
        if self.is_judge:
            return
        documents = {name: [d for pair in split for d in pair.documents] for name, split in vars(self.splits).items()}
        start = log_p(model, {**documents, "strangers": self.strangers}, run.path(REFERENCE), run.is_unfinished)
        self.splits = Splits(*(with_start(split, start[name]) for name, split in vars(self.splits).items()))
        self.start_of_strangers = start["strangers"]
        corpus.table.labels = start["train"].astype(np.float32)

    def count(self, batch: Batch) -> int:
        """Pairs."""
        return len(batch.packing.lengths) // 2

    def weights(self, model: nn.Module, batches: Sequence[Batch], count: int) -> Sequence[Tensor | float | Rule]:
        if self.is_judge:
            return super().weights(model, batches, count)
        kl = self.kl(model, count) if self.method == "kto" else 0.0
        return [
            partial(rule, batch=batch, method=METHODS[self.method], beta=self.beta, count=count, kl=kl)
            for batch in batches
        ]

    def kl(self, model: nn.Module, count: int) -> float:
        """From the start, as kto estimates it: the mean of log p − log p at the start over answers to other prompts, as
        many as a step has pairs, and not less than 0."""
        drawn = torch.randperm(len(self.strangers))[:count].tolist()
        nats = np.array(evaluate.nats(model, [self.strangers[i] for i in drawn]))
        return max(0.0, float(np.mean(-nats - self.start_of_strangers[drawn])))

    # ---- how good it is ----

    def answer(self, model: nn.Module, tokenizer: Tokenizer, examples: Sequence[Pair]) -> list[Judged]:
        documents = [document for pair in examples for document in pair.documents]
        if self.is_judge:
            values = evaluate.of_documents(model, documents, evaluate.outputs).reshape(-1, 2)
        else:
            if not all(pair.start for pair in examples):
                raise UserError(f"what --method {self.method} has changed can only be measured while it is trained")
            start = np.array([pair.start for pair in examples])
            values = -np.array(evaluate.nats(model, documents)).reshape(-1, 2) - start
        return [Judged(*row) for row in values.tolist()]

    def reward(self, examples: Sequence[Pair], answers: Sequence[Judged]) -> dict[str, list[float]]:
        return {"right": [float(is_right(judged)) for judged in answers]}

    def measure(self, examples: Sequence[Pair], answers: Sequence[Judged]) -> dict[str, Interval]:
        """How often the chosen answer is preferred, also among answers of like length, and by how much; how often the
        longer one is; and of what writes, by how many nats chosen answers have become likelier."""
        alike = [is_right(a) for e, a in zip(examples, answers, strict=True) if not differs(e)]
        sided = [longer(e) * (a.chosen - a.rejected) for e, a in zip(examples, answers, strict=True) if longer(e)]
        measured = {"accuracy": rate([is_right(judged) for judged in answers])}
        measured |= {"of_equal_length": rate(alike)} if alike else {}
        measured |= {"prefers_the_longer": rate([side > 0 for side in sided])} if sided else {}
        measured["margin"] = average([judged.chosen - judged.rejected for judged in answers])
        if not self.is_judge:
            measured["chosen_gain"] = average([judged.chosen for judged in answers])
        return measured

    def baselines(self, examples: Sequence[Pair]) -> dict[str, Interval]:
        """How often the longer answer is the chosen one."""
        return {"longer": rate([longer(pair) > 0 for pair in examples])}

    def remarks(self, measured: dict[str, Interval]) -> list[str]:
        """Where nothing was learned that a look at the lengths, or a coin, does not tell."""
        accuracy, by_length = measured["accuracy"], measured["longer"].value
        if accuracy.low <= (best := max(0.5, by_length, 1 - by_length)):
            if best == 0.5:
                return [f"this is hardly better than a coin: {files.MAY_HELP}"]
            rule = f"always the {'longer' if by_length == best else 'shorter'} answer ({best:.1%})"
            hint = "pairs in which that one is rejected teach more than length"
            return [f"this is hardly better than {rule}: {hint}"]
        return []

    def details(self, examples: Sequence[Pair], answers: Sequence[Judged]) -> dict[str, Any]:
        """The worst mistakes, and how far the probabilities of a judge can be trusted."""
        found: dict[str, Any] = {}
        if self.is_judge:
            margins = np.array([judged.chosen - judged.rejected for judged in answers])
            found["log_loss"] = average(np.logaddexp(0, -margins).tolist())._asdict()  # of a coin: log 2
        found["worst_mistakes"] = [
            {"prompt": e.prompt, "chosen": e.chosen, "rejected": e.rejected, "margin": a.chosen - a.rejected}
            for e, a in worst_mistakes(examples, answers)
        ]
        return found

    def table(self, examples: Sequence[Pair], answers: Sequence[Judged]) -> Table:
        title = "pairs on which it was surest, and wrong"
        table = Table("prompt", "chosen", "", "rejected", "", title=title, title_justify="left")
        for pair, judged in worst_mistakes(examples, answers):
            texts = zip(map(shortened, pair.answers), (f"{value:+.2f}" for value in judged), strict=True)
            table.add_row(*cells(shortened(pair.prompt), *(cell for both in texts for cell in both)))
        return table

    def next_command(self, folder: Path) -> str:
        run = shlex.quote(str(folder))
        if self.is_judge:
            return f'python -m minillm score {run} --prompt "a question" "an answer" "another"'
        return f"python -m minillm chat {run}" if self.can_chat else f'python -m minillm generate {run} --prompt "…"'


def is_right(judged: Judged) -> bool:
    return judged.chosen > judged.rejected


def worst_mistakes(examples: Sequence[Pair], answers: Sequence[Judged]) -> list[tuple[Pair, Judged]]:
    """The wrong ones, the surest first."""
    wrong = [each for each in zip(examples, answers, strict=True) if not is_right(each[1])]
    return sorted(wrong, key=lambda each: each[1].chosen - each[1].rejected)[:WORST]


def with_start(pairs: Sequence[Pair], start: np.ndarray) -> list[Pair]:
    return [replace(pair, start=tuple(both)) for pair, both in zip(pairs, start.reshape(-1, 2).tolist(), strict=True)]


def check(options: Options, is_judge: bool) -> None:
    """UserError for options that make no sense together."""
    if is_judge and options.beta is not None:
        raise UserError(f"--beta {options.beta} is for --method {', '.join(METHODS)}; a reward model has none")
    if not is_judge and options.model:
        raise UserError(f"--model {options.model} is for reward models; --method {options.method} needs --init")
    if options.beta is not None and not 0 < options.beta < float("inf"):
        raise UserError(f"--beta {options.beta} must be above 0")
    if options.context is not None and options.context < LEAST_CONTEXT:
        raise UserError(f"--context {options.context} must be at least {LEAST_CONTEXT}")


def require_some(given: Splits, fitted: Mapping[str, Sequence[Pair]], limit: int) -> None:
    """UserError for a split of which nothing is left."""
    for name, pairs in fitted.items():
        if vars(given)[name] and not pairs:
            raise UserError(f"no pair of --{name} has two answers of at most {limit:,} tokens; raise --context")
