"""What a training learns from, token by token, and whether it keeps the rules: `train_sft.py --inspect N`.

The rules, each of which somebody's published training code has broken without noticing:

- positions begin at 0 in every document: none goes on with the one that stands before it in the row
- every document has something to learn
- where the next token is learned, the target of a token is the one that follows it
- a prompt has no targets, and what is answered to it has one from its first token on
- an answer ends with a token that ends it, which is learned, too
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from minillm.batching import IGNORE, Batch, Corpus
from minillm.errors import UserError
from minillm.heads import ONE_OUTPUT
from minillm.report import without_control_characters
from minillm.start import prepare
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer
from minillm.wording import counted


class Row(NamedTuple):
    """A token as it stands in a batch."""

    position: int
    token: int
    target: int


class Seen(NamedTuple):
    """A document as it stands in a batch."""

    rows: list[Row]
    label: Any  # None where it has none
    weight: float  # of each target and of the label
    num_read: int  # tokens at its beginning that are a prompt


def inspect(args: Any, task: Task, console: Console) -> None:
    """Prints the documents of the first `args.inspect` examples of a training, and checks those of a whole epoch.

    UserError for the first rule that is broken, its document being printed last.
    """
    args, _, tokenizer, corpus = prepare(args, task)
    shown = args.inspect
    for number, (example, documents) in enumerate(examples_of(args, task, tokenizer, corpus)):
        for document in documents:
            fault = next(faults(document, task, tokenizer), None)
            if number < shown or fault:
                console.print(table_of(document, task, tokenizer, f"example {example}", fault))
            if fault:
                raise UserError(f"example {example}, token {fault[0]}: {fault[1]}")
    kept = counted(number + 1, "example keeps", "examples keep")
    console.print(f"{kept} the rules: targets, ends and positions are as they should be")


def examples_of(args: Any, task: Task, tokenizer: Tokenizer, corpus: Corpus) -> Iterator[tuple[int, list[Seen]]]:
    """The examples in the order of the first epoch: the number of each in the training data, and its documents."""
    for step in range(corpus.steps_per_epoch(args.batch_tokens)):
        batches = corpus.step(step, args.batch_tokens, args.micro_tokens)
        count = sum(map(task.count, batches)) or 1
        documents = (d for batch in batches for d in documents_of(batch, task.importance(batch) / count))
        for example in corpus.steps[step].tolist():
            num_read = task.num_read(task.splits.train[example], tokenizer)
            size = int(corpus.table.documents.sizes[example])
            yield example, [next(documents)._replace(num_read=num_read) for _ in range(size)]


def documents_of(batch: Batch, weights: Tensor | float) -> Iterator[Seen]:
    """Of a batch whose targets weigh so much: all the same, or where there are labels alone, one each."""
    rows = list(map(Row, batch.packing.positions.tolist(), batch.tokens.tolist(), batch.targets.tolist()))
    labels = batch.labels.tolist() or [None] * len(batch.packing.lengths)
    bounds = pairwise(batch.packing.cu_seqlens.tolist())
    each = weights.tolist() if isinstance(weights, Tensor) else [weights] * len(labels)
    for (start, stop), label, weight in zip(bounds, labels, each, strict=True):
        yield Seen(rows[start:stop], label, weight, num_read=0)


def faults(document: Seen, task: Task, tokenizer: Tokenizer) -> Iterator[tuple[int, str]]:
    """The tokens at which a rule is broken, and which."""
    rows, answers = document.rows, document.num_read > 0
    is_learned = [row.target != IGNORE for row in rows]
    if not any(is_learned) and document.label is None:
        yield 0, "nothing is learned from this document"
    for i, row in enumerate(rows):
        if row.position != i:
            yield i, f"its position is {row.position}, so that documents are not told apart"
        if task.head == "lm" and is_learned[i] and i + 1 < len(rows) and row.target != rows[i + 1].token:
            yield i, f"its target is {row.target}, but the token that follows is {rows[i + 1].token}"
        if i < document.num_read - 1 and is_learned[i]:
            yield i, "it is a part of the prompt, but has a target"
        if answers and i == document.num_read - 1 and not is_learned[i]:
            yield i, "the answer begins here, but has no target"
        ends = is_learned[i] and not (i + 1 < len(rows) and is_learned[i + 1])
        if answers and ends and row.target not in tokenizer.stops:
            yield i, "the answer ends here, but with no token that ends it"


# ---- for a person ----------------------------------------------------------------------------------


def table_of(
    document: Seen, task: Task, tokenizer: Tokenizer, title: str, fault: tuple[int, str] | None = None
) -> Table:
    """A row a token: green where something is learned, red where a rule is broken."""
    label = (
        "" if document.label is None else f", label {name_of_label(document.label, task)}, weight {document.weight:.2g}"
    )
    table = Table("", "id", "token", "target", "", "weight", title=title + label, title_justify="left")
    for i, row in enumerate(document.rows):
        cells = [str(row.position), str(row.token), name_of(row.token, tokenizer), "", "", "0"]
        if is_learned := row.target != IGNORE:
            cells[3:] = str(row.target), name_of_target(row.target, task, tokenizer), f"{document.weight:.2g}"
        style = "bold red" if fault and fault[0] == i else "green" if is_learned else "dim"
        table.add_row(*(Text(without_control_characters(cell)) for cell in cells), style=style)
    return table


def name_of(token: int, tokenizer: Tokenizer) -> str:
    """A token as Python writes texts, so that blanks are seen; a control token by its name."""
    name = next((name for name, i in tokenizer.control.items() if i == token), None)
    return name or repr(tokenizer.decode([token]))


def name_of_target(target: int, task: Task, tokenizer: Tokenizer) -> str:
    return str(task.classes[target]) if task.head == "tag" else name_of(target, tokenizer)


def name_of_label(label: Any, task: Task) -> str:
    classes = task.sequence_classes or task.classes  # of a tagger, the latter are those of the words
    if isinstance(label, list):  # a yes or no for each class
        return " + ".join(name for name, applies in zip(classes, label, strict=True) if applies) or "none"
    is_class = isinstance(label, int) and classes and classes != ONE_OUTPUT  # else a number, or which of a pair won
    return str(classes[label]) if is_class else str(label)
