"""Compares the meaning of texts by their embeddings.

What of a text an embedding is made of, its tokens' mean or the first or last one, how much of a text is read, whether
vectors are brought to length 1 and how they are compared are taken from the model's own files, as sentence-transformers
does; without such files it is the mean, of length 1. Some models want words such as "query: " before a text: give them
with it.

python -m minillm embed sentence-transformers/all-MiniLM-L6-v2 "A cat sleeps." "A kitten naps." "Stocks fell."
python -m minillm embed MODEL --file texts.txt --out vectors.npy     a text a line → a float32 array (texts, width)
python -m minillm embed MODEL --file - --json                        a line of JSON for each text
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from minillm import cli
from minillm.commands.common import MODEL, as_json, load_reader, note, note_what_is_cut, open_model, texts_of
from minillm.device import PRECISIONS
from minillm.errors import UserError
from minillm.evaluate import read
from minillm.files import replacing
from minillm.report import cells, shortened
from minillm.wording import counted

FEW = 8  # texts of which a table of all cosines fits on a terminal
PIECE = 256  # texts compared with all others at a time


@dataclass(frozen=True, kw_only=True)
class Args:
    model: str = cli.argument(MODEL)
    text: tuple[str, ...] = cli.argument("a text", default=())
    file: Path | None = cli.option(None, "file with a text a line; - is the standard input")
    out: Path | None = cli.option(None, "save the embeddings to this .npy file")
    json: bool = cli.option(False, "print the embeddings instead, a line of JSON for each text")
    precision: str = cli.option("fp32", "of weights and activations", choices=PRECISIONS)


def main(args: Args) -> None:
    texts = texts_of(args.text, args.file, "TEXT")
    if args.out and args.out.suffix != ".npy":
        raise UserError(f"--out {args.out} must be a .npy file")
    model, tokenizer = load_reader(open_model(args.model, "embed", "embed"), "embed", args.precision)
    alone = [(text,) for text in texts]
    note_what_is_cut(model, tokenizer, alone)
    vectors = read(model, tokenizer, alone).astype(np.float32)
    if args.json:
        for text, vector in zip(texts, vectors.tolist(), strict=True):
            print(as_json(text=text, vector=vector))
    if args.out:
        save(args.out, vectors)
    if not args.json and not args.out:
        what, compared = comparable(vectors, model.similarity)
        table = likeness_table if len(texts) <= FEW else nearest_table
        Console(soft_wrap=True).print(table(texts, compared, what))


def save(path: Path, vectors: np.ndarray) -> None:
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)
    note(f"{counted(len(vectors), 'embedding')} of width {vectors.shape[1]} saved to {path}")


def comparable(vectors: np.ndarray, similarity: str) -> tuple[str, np.ndarray]:
    """What the products of the vectors that are returned are called, which say how alike the texts are."""
    if similarity == "dot":
        return "dot product", vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return "cosine", vectors / np.maximum(lengths, np.finfo(np.float32).tiny)


def likeness_table(texts: list[str], vectors: np.ndarray, what: str = "cosine") -> Table:
    """The product of every text's vector with those before it."""
    table = Table("", "text", *(str(i + 1) for i in range(len(texts) - 1)), title=f"{what}s", title_justify="left")
    for i, row in enumerate(vectors @ vectors.T):
        table.add_row(*cells(str(i + 1), shortened(texts[i], 60), *(f"{product:.3f}" for product in row[:i])))
    return table


def nearest_table(texts: list[str], vectors: np.ndarray, what: str = "cosine") -> Table:
    """Of every text the one that is most like it."""
    table = Table("text", "most like it", what)
    for text, (best, product) in zip(texts, nearest(vectors), strict=True):
        table.add_row(*cells(shortened(text, 60), shortened(texts[best], 60), f"{product:.3f}"))
    return table


def nearest(vectors: np.ndarray) -> Iterator[tuple[int, float]]:
    """For each of n vectors the number and the product of the other one with the largest; never all n × n at a time."""
    for start in range(0, len(vectors), PIECE):
        products = vectors[start : start + PIECE] @ vectors.T
        rows = np.arange(len(products))
        products[rows, start + rows] = -np.inf  # itself
        best = products.argmax(axis=1)
        yield from zip(best.tolist(), products[rows, best].tolist(), strict=True)
