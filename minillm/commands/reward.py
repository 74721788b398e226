"""Tries a reward on answers before a training relies on it.

  python -m minillm reward my_reward.py:score --file answers.jsonl                {"prompt": …, "answer": …} a line
  python -m minillm reward my_reward.py:score "an answer" "another" --prompt "a question"
  python -m minillm reward runs/classify-sft:pos "an answer"                     how likely it is of that class
  python -m minillm reward number --file answers.jsonl --fields truth=solution    one of those that tasks share

In a file, `truth` is the right answer, or a list of several, for rewards that compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from minillm import cli, records
from minillm.commands.common import as_json, note
from minillm.errors import UserError
from minillm.report import cells, shortened
from minillm.rewards import SECONDS, SHARED, open_rewards
from minillm.tasks.base import Example
from minillm.tasks.files import Fields


@dataclass(frozen=True, kw_only=True)
class Args:
    reward: str = cli.argument("FILE.py:FUNCTION, MODEL:CLASS, or one of " + ", ".join(SHARED))
    answer: tuple[str, ...] = cli.argument("an answer", default=())
    file: Path | None = cli.option(None, "file of records with answers, and prompts and right answers if they matter")
    prompt: str = cli.option("", "that ANSWER is an answer to, for rewards that look at it")
    fields: str | None = cli.option(None, "which of its fields are answer, prompt and truth, e.g. answer=output")
    reward_seconds: float = cli.option(SECONDS, "that a function may take")
    json: bool = cli.option(False, "print a line of JSON for each answer")


def main(args: Args) -> None:
    cli.require_positive(args, "reward_seconds")
    if args.prompt and not args.answer:
        raise UserError("--prompt goes with ANSWER; records have their own")
    examples, answers = [Example(args.prompt, ()) for _ in args.answer], list(args.answer)
    for example, answer in read(args.file, args.fields) if args.file else ():
        examples.append(example)
        answers.append(answer)
    if not answers:
        raise UserError("there is nothing to reward: give ANSWER, or --file FILE")
    if args.reward not in SHARED and not any(example.prompt for example in examples):
        note("no answer has a prompt; where the reward looks at that, give --prompt TEXT or --fields prompt=NAME")
    parts = open_rewards([args.reward], SHARED, torch.device("cpu"), seconds=args.reward_seconds)(examples, answers)
    rows = [{name: values[i] for name, values in parts.items()} for i in range(len(answers))]
    if args.json:
        for answer, row in zip(answers, rows, strict=True):
            print(as_json(answer=answer, reward=sum(row.values()), parts=row))
    else:
        Console(soft_wrap=True).print(table(answers, rows))


def read(path: Path, option: str | None) -> list[tuple[Example, str]]:
    fields = Fields(option, ("answer", "prompt", "truth"))
    return [
        (
            Example(
                fields.text(record, "prompt") if fields.has(record, "prompt") else "",
                record.texts(fields.name("truth")) if fields.has(record, "truth") else (),
            ),
            record.text_or_nothing(fields.name("answer")),
        )
        for record in records.read(path)
    ]


def table(answers: Sequence[str], rows: Sequence[dict[str, float]]) -> Table:
    found = Table("answer", "reward", *(rows[0] if len(rows[0]) > 1 else ()))
    for answer, row in zip(answers, rows, strict=True):
        values = [sum(row.values()), *(row.values() if len(row) > 1 else ())]
        found.add_row(*cells(shortened(answer, 80), *(f"{value:.4g}" for value in values)))
    return found
