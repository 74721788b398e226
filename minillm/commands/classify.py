"""Names the class that a text belongs to, with the probability of every class; or, of a model that learned several
labels at once (--problem multi), all that apply to it.

  python -m minillm classify runs/classify-sft "A quiet, wonderful film." "Dull from start to end."
  python -m minillm classify runs/classify-sft --file reviews.txt --json       a text a line → a line of JSON each
  python -m minillm classify MODEL --pairs --file pairs.tsv                    two texts a line, a tab between them
  python -m minillm classify MODEL "A quiet film." --explain --html page.html  which words drove it

A model with one output gives a score instead, and unless it learned numbers (--task regress), the sigmoid of it.

Train one with: python train_sft.py --task classify --init MODEL --train a.jsonl --dev b.jsonl
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from minillm import cli
from minillm.commands.common import MODEL, as_json, load_reader, note, note_what_is_cut, open_model, texts_of
from minillm.commands.explanations import Explained, coloured, for_json
from minillm.device import PRECISIONS
from minillm.errors import UserError
from minillm.evaluate import Texts, read
from minillm.explain import Explanation, NothingToExplain, of_class
from minillm.heads import SequenceClassifier
from minillm.published.checkpoint import Checkpoint
from minillm.report import cells, shortened
from minillm.tasks.classify import PAIRS
from minillm.tasks.multi_label import NONE, THRESHOLD, labels_over
from minillm.tokenizer import Tokenizer

SHOWN = 5  # classes a text, the likeliest


@dataclass(frozen=True, kw_only=True)
class Args(Explained):
    model: str = cli.argument(MODEL)
    text: tuple[str, ...] = cli.argument("a text", default=())
    file: Path | None = cli.option(None, "file with a text a line; - is the standard input")
    pairs: bool = cli.option(False, "every text is a pair of texts with a tab between them")
    threshold: float | None = cli.option(
        None, f"of a model for several labels: how likely one must be to apply (default: {THRESHOLD})"
    )
    json: bool = cli.option(False, "print a line of JSON for each text")
    precision: str = cli.option("fp32", "of weights and activations", choices=PRECISIONS)


def main(args: Args) -> None:
    lines = texts_of(args.text, args.file, "TEXT")
    texts = [pair(line) if args.pairs else (line,) for line in lines]
    cli.require_share(args, "threshold", "certainty")
    args.check()
    saved = open_model(args.model, "classify", "classify")
    model, tokenizer = load_reader(saved, saved.head_name, args.precision)
    require_what_it_learned(args, tokenizer)
    note_what_is_cut(model, tokenizer, texts)
    logits = torch.from_numpy(read(model, tokenizer, texts))
    kind = kind_of(saved, model)
    if args.threshold is not None and kind != "labels":
        raise UserError(f"--threshold is for models of several labels; {args.model} says one thing: leave it out")
    threshold = THRESHOLD if args.threshold is None else args.threshold
    answers = [ANSWERS[kind](row, model, threshold) for row in logits]
    reasons = all_reasons(model, tokenizer, texts, answers) if args.explain else []
    args.write_page(args.model, [each for found in reasons for each in found])
    if args.json:
        for i, (line, answer) in enumerate(zip(lines, answers, strict=True)):
            more = {"explanations": list(map(for_json, reasons[i]))} if reasons else {}
            print(as_json(text=line, **answer, **more))
        return
    console = Console(soft_wrap=True)
    console.print(TABLES[kind](lines, answers))
    for each in [each for found in reasons for each in found]:
        console.print(coloured(each))


def all_reasons(
    model: SequenceClassifier, tokenizer: Tokenizer, texts: Sequence[Texts], answers: Sequence[Mapping[str, Any]]
) -> list[list[Explanation]]:
    """Of every text; none, and a note, where one of several has no word. UserError where it is the only one."""
    found: list[list[Explanation]] = []
    for number, (each, answer) in enumerate(zip(texts, answers, strict=True), 1):
        try:
            found.append(reasons_of(model, tokenizer, each, answer))
        except NothingToExplain as error:
            if len(texts) == 1:
                raise
            note(f"text {number}: {error}")
            found.append([])
    return found


def reasons_of(
    model: SequenceClassifier, tokenizer: Tokenizer, texts: Texts, answer: Mapping[str, Any]
) -> list[Explanation]:
    """What drove the class, every label that applies, or the score."""
    names = answer.get("labels", [answer.get("class", model.classes[0])])
    return [of_class(model, tokenizer, texts, model.classes.index(name)) for name in names]


def require_what_it_learned(args: Args, tokenizer: Tokenizer) -> None:
    """UserError for single texts where it learned pairs, or the other way round; of published models nobody knows."""
    learned_pairs = tokenizer.config.get(PAIRS, args.pairs)
    if learned_pairs and not args.pairs:
        raise UserError(f"{args.model} learned pairs of texts: give --pairs, and a tab between the two of each")
    if args.pairs and not learned_pairs:
        raise UserError(f"{args.model} learned single texts: leave --pairs out")


def kind_of(saved: Checkpoint, model: SequenceClassifier) -> str:
    """What the outputs are: of one class or of several, a score, or a number that was learned as such."""
    if saved.head_name == "multi":
        return "labels"
    if len(model.classes) > 1:
        return "class"
    return "number" if saved.problem_type == "regression" else "score"


def class_of(logits: Tensor, model: SequenceClassifier, _: float) -> dict[str, Any]:
    by_class = dict(zip(model.classes, model.probabilities(logits).tolist(), strict=True))
    return {"class": max(by_class, key=by_class.get), "probabilities": by_class}


def labels_of(logits: Tensor, model: SequenceClassifier, threshold: float) -> dict[str, Any]:
    return labels_over(threshold, class_of(logits, model, threshold)["probabilities"])._asdict()


def score_of(logits: Tensor, *_: Any) -> dict[str, float]:
    """Of a model with one output (a reranker, a grader), for which a softmax would always be 1."""
    return {"score": logits.item(), "sigmoid": logits.sigmoid().item()}


def number_of(logits: Tensor, *_: Any) -> dict[str, float]:
    return {"score": logits.item()}


def pair(line: str) -> Texts:
    texts = tuple(line.split("\t"))
    if len(texts) != 2 or not all(texts):
        raise UserError(f"{line!r} is no pair: with --pairs there is one tab, between two texts")
    return texts


def classes_table(lines: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> Table:
    """A text a row, its likeliest class first, the next ones in one column: a terminal has no room for more."""
    table = Table("text", "class", "probability", "else")
    for line, answer in zip(lines, answers, strict=True):
        (name, p), *others = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:SHOWN]
        table.add_row(*cells(shown(line), name, f"{p:.1%}", ", ".join(f"{other} {q:.1%}" for other, q in others)))
    return table


def labels_table(lines: Sequence[str], answers: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("text", "labels")
    for line, answer in zip(lines, answers, strict=True):
        said = [f"{name} {answer['probabilities'][name]:.1%}" for name in answer["labels"]]
        table.add_row(*cells(shown(line), ", ".join(said) or NONE))
    return table


def numbers_table(lines: Sequence[str], answers: Sequence[Mapping[str, float]]) -> Table:
    table = Table("text", "score")
    for line, answer in zip(lines, answers, strict=True):
        table.add_row(*cells(shown(line), f"{answer['score']:.4g}"))
    return table


def scores_table(lines: Sequence[str], answers: Sequence[Mapping[str, float]]) -> Table:
    table = Table("text", "score", "sigmoid")
    for line, answer in zip(lines, answers, strict=True):
        table.add_row(*cells(shown(line), f"{answer['score']:.3f}", f"{answer['sigmoid']:.3f}"))
    return table


def shown(line: str) -> str:
    return shortened(line.replace("\t", " / "), 80)


ANSWERS = {"class": class_of, "labels": labels_of, "score": score_of, "number": number_of}
TABLES = {"class": classes_table, "labels": labels_table, "score": scores_table, "number": numbers_table}
