"""Says whether one model is better than another: both answer the same examples, and the difference has an interval.

  python -m minillm compare runs/classify-sft runs/classify-sft-2                       on the dev examples of both
  python -m minillm compare runs/seq2seq-sft runs/seq2seq-sft-2 --file test.jsonl
  python -m minillm compare MODEL runs/classify-sft --task classify --file test.csv

An interval that holds no 0 tells them apart. It is narrower than the models' own intervals suggest, as what is hard is
mostly hard for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from minillm import cli
from minillm.commands.common import MODEL, as_json
from minillm.commands.evaluate import Examined, Trial, plain, prepare
from minillm.errors import UserError
from minillm.glossary import GLOSSARY, named
from minillm.metrics import Interval, difference
from minillm.report import cells, points
from minillm.tasks.base import Task
from minillm.wording import counted


@dataclass(frozen=True, kw_only=True)
class Args(Examined):
    models: tuple[str, ...] = cli.argument(f"two of them, each a {MODEL}")


def main(args: Args) -> None:
    if len(args.models) != 2:
        raise UserError(f"compare takes two models, not {len(args.models)}")
    trials = [prepare(name, args) for name in args.models]
    require_same(args.models, *trials)
    first, second = (trial.task.measure(trial.examples, trial.answers()) for trial in trials)
    pairs = {name: (first[name], second[name]) for name in first if name in second}
    differences = {name: difference(*pair) for name, pair in pairs.items() if all(x.changes is not None for x in pair)}
    task, count = trials[0].task, len(trials[0].examples)
    if args.json:
        figures = {"metrics": [plain(first), plain(second)], "difference": plain(differences)}
        print(as_json(models=args.models, task=task.name, examples=count, **figures))
        return
    names = short_names(args.models)
    table = Table(
        "metric", *names, "", title=f"{task.name}, the same {counted(count, 'example')}", title_justify="left"
    )
    for name, pair in pairs.items():
        verdict = in_words(differences[name], names, count, better(task, name)) if name in differences else ""
        table.add_row(*cells(named(name), *map(str, pair), verdict))
    Console(soft_wrap=True).print(table)


def require_same(names: Sequence[str], first: Trial, second: Trial) -> None:
    """UserError where the models were not asked the same."""
    if first.task.name != second.task.name:
        raise UserError(f"{names[0]} learned {first.task.name} and {names[1]} {second.task.name}: nothing to compare")
    if list(map(repr, first.examples)) != list(map(repr, second.examples)):
        raise UserError(f"{names[0]} and {names[1]} have different examples: give both the same with --file FILE")


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of the paths, or A and B where these are equal."""
    short = [Path(name).name for name in names]
    return short if short[0] != short[1] and all(short) else ["A", "B"]


def better(task: Task, name: str) -> str:
    """Which way a metric is: "higher" or "lower", or neither."""
    if name == task.headline:
        return "lower" if task.lower_is_better else "higher"
    return GLOSSARY[name].is_better if name in GLOSSARY else ""


def in_words(found: Interval, names: Sequence[str], count: int, is_better: str) -> str:
    """Which is better, or where neither way is, higher; with the interval of by how much."""
    if found.low <= 0 <= found.high:
        return f"no difference can be told from {counted(count, 'example')}: {points(found)}"
    if found.value < 0:
        return in_words(found.turned(), names[::-1], count, is_better)
    if not is_better:
        return f"{names[0]} is higher by {points(found)}"
    return f"{names[0] if is_better == 'higher' else names[1]} is better by {points(found)}"
