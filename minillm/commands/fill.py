"""Fills in the words that are masked in a text, by what stands before and behind them.

  python -m minillm fill bert-base-uncased "The capital of France is [MASK]."
  python -m minillm fill answerdotai/ModernBERT-base "[MASK] is the [MASK] of Denmark." --top 3
  python -m minillm fill MODEL --file texts.txt --json            a text a line → a line of JSON each

[MASK] stands for whatever the model calls its mask. Every mask is filled by itself, as if the others stayed masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kernels import Packing
from minillm import cli
from minillm.commands.common import MODEL, as_json, load_reader, open_model, texts_of
from minillm.device import PRECISIONS
from minillm.errors import NOT_FINITE, UserError
from minillm.heads import MaskedLM
from minillm.report import cells, shortened
from minillm.tokenizer import Tokenizer, read_texts
from minillm.wording import counted

MASK = "[MASK]"


@dataclass(frozen=True, kw_only=True)
class Args:
    model: str = cli.argument(MODEL)
    text: tuple[str, ...] = cli.argument(f"a text with one or more {MASK}", default=())
    file: Path | None = cli.option(None, "file with a text a line; - is the standard input")
    top: int = cli.option(5, "candidates for every mask, the likeliest first")
    json: bool = cli.option(False, "print a line of JSON for each text")
    precision: str = cli.option("fp32", "of weights and activations", choices=PRECISIONS)


def main(args: Args) -> None:
    cli.require_positive(args, "top")
    texts = texts_of(args.text, args.file, "TEXT")
    model, tokenizer = load_reader(open_model(args.model, "mlm", "fill"), "mlm", args.precision)
    for text in texts:
        masks = candidates(model, tokenizer, text, args.top) if text.strip() else []  # a row for every line of a file
        if args.json:
            print(as_json(text=text, masks=masks))
        else:
            Console(soft_wrap=True).print(candidates_table(text, masks))


@torch.inference_mode()
def candidates(model: MaskedLM, tokenizer: Tokenizer, text: str, top: int) -> list[list[dict[str, Any]]]:
    """For each mask the likeliest tokens: id, text, probability. UserError without a mask, or for too long a text."""
    names = {i: name for name, i in tokenizer.control.items()}
    if tokenizer.mask is None:
        raise UserError("the vocabulary of this model names no mask")
    masked = text.replace(MASK, names[tokenizer.mask])
    ((ids, segments),) = read_texts(tokenizer, [(masked,)], model.config.vocab_size, control=True)
    places = [place for place, i in enumerate(ids) if i == tokenizer.mask]
    if not places:
        raise UserError(f"there is no {MASK} in {shortened(text, 60)!r}: write it where a word is to be filled in")
    if len(ids) > (limit := model.config.max_seq_len):
        raise UserError(f"the text has {counted(len(ids), 'token')}, but this model reads at most {limit}; shorten it")
    device = model.output.weight.device
    tokens, kinds = torch.tensor(ids, device=device), torch.tensor(segments, device=device)
    at = torch.tensor(places, device=device)
    hidden = model(tokens, Packing.from_lengths([len(ids)], device), kinds, at)
    if not hidden.isfinite().all():
        raise UserError(NOT_FINITE)
    likeliest = model.logits(hidden).double().softmax(dim=-1).topk(min(top, model.config.vocab_size), dim=-1)
    return [
        [{"id": i, "text": names.get(i) or tokenizer.decode([i]), "probability": p} for i, p in zip(*rows, strict=True)]
        for rows in zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
    ]


def candidates_table(text: str, masks: Sequence[Sequence[dict[str, Any]]]) -> Table:
    """A candidate a row, two columns a mask."""
    table = Table(*[""] * (2 * len(masks)), title=cells(shortened(text))[0], title_justify="left", show_header=False)
    for row in zip(*masks, strict=True):
        table.add_row(*cells(*(cell for each in row for cell in (each["text"].strip(), f"{each['probability']:.1%}"))))
    return table
