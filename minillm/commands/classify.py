"""Names the class that a text belongs to, with the probability of every class.

  python -m minillm classify runs/classify-sft "A quiet, wonderful film." "Dull from start to end."
  python -m minillm classify runs/classify-sft --file reviews.txt --json       a text a line → a line of JSON each
  python -m minillm classify MODEL --pairs --file pairs.tsv                    two texts a line, a tab between them

Train one with: python train_sft.py --task classify --init MODEL --train a.jsonl --dev b.jsonl
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from minillm import cli
from minillm.commands.common import MODEL, as_json, load_reader, note_what_is_cut, open_model, texts_of
from minillm.device import PRECISIONS
from minillm.errors import UserError
from minillm.evaluate import Texts, read
from minillm.report import cells, shortened

SHOWN = 5  # classes a text, the likeliest


@dataclass(frozen=True, kw_only=True)
class Args:
    model: str = cli.argument(MODEL)
    text: tuple[str, ...] = cli.argument("a text", default=())
    file: Path | None = cli.option(None, "file with a text a line; - is the standard input")
    pairs: bool = cli.option(False, "every text is a pair of texts with a tab between them")
    json: bool = cli.option(False, "print a line of JSON for each text")
    precision: str = cli.option("fp32", "of weights and activations", choices=PRECISIONS)


def main(args: Args) -> None:
    lines = texts_of(args.text, args.file, "TEXT")
    texts = [pair(line) if args.pairs else (line,) for line in lines]
    model, tokenizer = load_reader(open_model(args.model, "classify", "classify"), "classify", args.precision)
    note_what_is_cut(model, tokenizer, texts)
    probabilities = torch.from_numpy(read(model, tokenizer, texts)).softmax(dim=-1).numpy()
    if not args.json:
        Console(soft_wrap=True).print(classes_table(texts, model.classes, probabilities))
        return
    for text, row in zip(lines, probabilities.tolist(), strict=True):
        by_class = dict(zip(model.classes, row, strict=True))
        best = max(by_class, key=by_class.get)
        print(as_json(text=text, **{"class": best, "probabilities": by_class}))


def pair(line: str) -> Texts:
    texts = tuple(line.split("\t"))
    if len(texts) != 2 or not all(texts):
        raise UserError(f"{line!r} is no pair: with --pairs there is one tab, between two texts")
    return texts


def classes_table(texts: Sequence[Texts], classes: Sequence[str], probabilities: np.ndarray) -> Table:
    """A text a row, its likeliest class first."""
    count = min(SHOWN, len(classes))
    table = Table("text", "class", *[""] * (2 * count - 1))
    for text, row in zip(texts, probabilities, strict=True):
        best = np.argsort(-row, kind="stable")[:count]
        named = [cell for k in best for cell in (classes[k], f"{row[k]:.1%}")]
        table.add_row(*cells(shortened(" / ".join(text), 80), *named))
    return table
