"""Scores answers to a prompt, by a reward model: the higher, the better it finds them.

  python -m minillm score runs/preference-sft --prompt "Name a prime." "7 is one." "Find it out yourself."
  python -m minillm score RUN --file answers.jsonl --json       records with `prompt` and `answer` → a line of JSON each
  python -m minillm score RUN --prompt "Name a prime." --file answers.txt                    or an answer a line

The difference of two scores says how much likelier one of two answers is to be preferred: σ(difference).

Train one with: python train_sft.py --task preference --init MODEL --train pairs.jsonl
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from minillm import cli, records
from minillm.commands.common import MODEL, as_json, load_reader, note, open_model, texts_of
from minillm.device import PRECISIONS
from minillm.errors import UserError
from minillm.evaluate import score
from minillm.published.exchanges import Composer
from minillm.report import cells, shortened
from minillm.tasks.files import Fields
from minillm.wording import counted


@dataclass(frozen=True, kw_only=True)
class Args:
    model: str = cli.argument(MODEL)
    answer: tuple[str, ...] = cli.argument("an answer to the prompt", default=())
    prompt: str | None = cli.option(None, "what is answered")
    file: Path | None = cli.option(None, "file with a prompt and an answer a record, or with --prompt an answer a line")
    fields: str | None = cli.option(None, "which field of the file is what, such as prompt=question,answer=reply")
    json: bool = cli.option(False, "print a line of JSON for each answer")
    precision: str = cli.option("fp32", "of weights and activations", choices=PRECISIONS)


def main(args: Args) -> None:
    prompts, answers = exchanges_of(args)
    model, tokenizer = load_reader(open_model(args.model, "score", "score"), "score", args.precision)
    compose = Composer(model, tokenizer)
    if number := sum(compose(*each).cut is not None for each in zip(prompts, answers, strict=True)):
        long = f"{number:,} of {counted(len(answers), 'answer')} {'is' if number == 1 else 'are'} too long"
        note(f"{long} with its prompt; the prompt's beginning is cut")
    scores = score(model, tokenizer, prompts, answers, compose).tolist()
    if args.json:
        for prompt, answer, value in zip(prompts, answers, scores, strict=True):
            print(as_json(prompt=prompt, answer=answer, score=value))
    else:
        Console(soft_wrap=True).print(scores_table(prompts, answers, scores))


def exchanges_of(args: Args) -> tuple[list[str], list[str]]:
    """Prompts and as many answers. UserError."""
    if args.prompt is not None:
        if args.fields:
            raise UserError("--fields is for a file of prompts and answers; leave --prompt out, or --fields")
        answers = texts_of(args.answer, args.file, "an ANSWER")
        return [args.prompt] * len(answers), answers
    if args.answer or not args.file:
        raise UserError("an answer is scored for a prompt: give --prompt, or --file FILE with both")
    fields = Fields(args.fields, ("prompt", "answer"))
    found = records.read(args.file)
    prompts, answers = ([fields.text(record, role) for record in found] for role in ("prompt", "answer"))
    return prompts, answers


def scores_table(prompts: Sequence[str], answers: Sequence[str], scores: Sequence[float]) -> Table:
    table = Table("prompt", "answer", "score")
    for prompt, answer, value in zip(prompts, answers, scores, strict=True):
        table.add_row(*cells(shortened(prompt), shortened(answer), f"{value:.3f}"))
    return table
