"""Measures a model on examples that it was not trained on: every metric of its task, with a 95 % interval.

  python -m minillm evaluate runs/classify-sft                              on its own dev examples once more
  python -m minillm evaluate runs/points24-sft --split test                 or on its test examples
  python -m minillm evaluate runs/classify-sft --file test.jsonl --predictions answers.jsonl
  python -m minillm evaluate MODEL --task classify --file test.csv --fields text=review,label=stars

A run knows its task; a published checkpoint must have the head that --task asks for. The environment of a run whose
answers have several turns is code, which is run only where --environment names it once more. To see whether one model
is better than another, use `compare`: whether their intervals overlap says little, as both answer the same examples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from minillm import cli
from minillm.commands.common import MODEL, as_json, note
from minillm.device import PRECISIONS, place
from minillm.errors import UserError
from minillm.files import fields_from, write_text
from minillm.glossary import named
from minillm.metrics import Interval
from minillm.published.checkpoint import Checkpoint, open_checkpoint, resolve
from minillm.published.vocabularies import load_tokenizer
from minillm.report import cells
from minillm.run import Run
from minillm.tasks import TASKS
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer
from minillm.turns import Environment, open_environment, require_taken
from minillm.wording import counted


@dataclass(frozen=True, kw_only=True)
class Examined:
    """Which examples are to be answered, and as what."""

    file: Path | None = cli.option(None, "file of examples (default: the dev examples that the run was watched on)")
    split: str = cli.option("dev", "which of the run's own examples, without --file", ("dev", "test"))
    task: str | None = cli.option(None, "what the model is to do (default: what the run learned)", choices=tuple(TASKS))
    fields: str | None = cli.option(None, "which field of the file is what, e.g. text=review,label=stars")
    environment: str | None = cli.option(None, "FILE.py:FUNCTION that replies, of a model whose answers have turns")
    precision: str = cli.option("auto", "of the activations; weights stay float32", choices=PRECISIONS)
    json: bool = cli.option(False, "print JSON")


@dataclass(frozen=True, kw_only=True)
class Args(Examined):
    model: str = cli.argument(MODEL)
    predictions: Path | None = cli.option(None, "JSONL file to write every example and the model's answer to")


def main(args: Args) -> None:
    trial = prepare(args.model, args)
    answers = trial.answers()
    measured = trial.task.measure(trial.examples, answers)
    if args.predictions:
        write_text(args.predictions, "".join(map(line_of, map(trial.task.record, trial.examples, answers))))
    if args.json:
        print(as_json(model=args.model, task=trial.task.name, examples=len(answers), metrics=plain(measured)))
    else:
        Console(soft_wrap=True).print(table_of(f"{trial.task.name}, {counted(len(answers), 'example')}", measured))


@dataclass(frozen=True)
class Trial:
    """A model, and what it is to be tried on."""

    task: Task
    model: nn.Module
    tokenizer: Tokenizer
    examples: Sequence[Any]

    def answers(self) -> list[Any]:
        return self.task.answer(self.model, self.tokenizer, self.examples)


def prepare(name: str, args: Examined) -> Trial:
    """The model, its task, and the examples that the options name. UserError where they don't go together."""
    if args.file and args.split != "dev":
        raise UserError(f"--split {args.split} is of the run's own examples, and --file names others: leave one out")
    saved = open_checkpoint(resolve(name))
    task, trained = task_of(name, saved, args)
    asked = task.splits.test  # as they stand in the file, before the model has cut them to what it reads
    heads = saved.family.heads
    own, needed = heads[saved.head_name], heads.get(task.head)
    if needed is None or own.architecture != needed.architecture:  # which several heads may share
        raise UserError(f"{name} has a head for {saved.head_name!r}, but --task {task.name} needs {task.head!r}")
    placement = place(args.precision)
    model, tokenizer = saved.load(task.head).to(placement.device), load_tokenizer(saved.path)
    model.compute_dtype = placement.dtype
    require_known(task.classes or (), getattr(model, "classes", None) or (), name, args)
    try:
        task.adapt(model, tokenizer)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    examples = vars(task.splits)["test" if args.file else args.split]
    if not examples:
        raise UserError(f"{name} has no {args.split} examples of its own: give --file FILE")
    if trained:
        tell_of_overlap(name, task, asked, trained, args.file)
    return Trial(task, model, tokenizer, examples)


def task_of(name: str, model: Checkpoint, args: Examined) -> tuple[Task, Callable[[], Task] | None]:
    """The task with the run's own options, but for the files where --file names one; and then, of a run, how to get
    the task as it was trained. A published classifier says itself whether it gives several labels at once."""
    where = model.path / "args.json"
    saved = Run(model.path).options() if where.exists() else {}
    task = TASKS.get(args.task or saved.get("task"))
    if task is None:
        raise UserError(f"{name} is no run of train_sft.py that says what it learned: give --task")
    learned = saved if saved.get("task") == task.name else {}
    own = {field.name for field in fields(task.Options)}
    options = task.Options(**fields_from(task.Options, {name: learned[name] for name in own & learned.keys()}, where))
    if "problem" in own and "problem" not in learned and model.head_name == "multi":
        options = replace(options, problem="multi")
    if not learned and not args.file:
        raise UserError(f"{name} was not trained here on --task {task.name}: give --file FILE of examples to answer")
    seed = learned.get("seed", 0)
    made = task(only_to_answer(task, options, args) if args.file else options, seed)
    made.environment = environment_of(made, name, learned, args)
    return made, partial(task, options, seed) if learned and args.file else None


def environment_of(task: Task, name: str, learned: Mapping[str, Any], args: Examined) -> Environment | None:
    """Whom the model answers by turns, in as many as the run learned. UserError for an environment that the task does
    not take, and where the run learned in one and none is named."""
    if args.environment:
        require_taken(args.environment, type(task))
        turns = learned.get("turns")
        return open_environment(args.environment, turns if isinstance(turns, int) else None)
    if theirs := learned.get("environment"):
        raise UserError(f"{name} learned to answer by turns: evaluate it with --environment FILE.py:FUNCTION, {theirs}")
    return task.environment


def tell_of_overlap(name: str, task: Task, asked: Sequence[Any], trained: Callable[[], Task], file: Path) -> None:
    """A note where the file holds what a run has learned from: what it makes of that says little of anything else."""
    try:
        splits = trained().splits
    except UserError as error:
        note(f"whether {name} was trained on examples of {file} cannot be told: {error}")
        return
    known = set(map(task.identity, [*splits.train, *splits.unlabelled]))
    if count := sum(task.identity(example) in known for example in asked):
        of_all = counted(len(asked), "example")
        note(f"{name} was trained on {count:,} of the {of_all} of {file}, which flatter its figures")


def only_to_answer(task: type[Task], options: Any, args: Examined) -> Any:
    """The same options, but for the files."""
    changed = {"train": None, "dev": None, "test": args.file} | ({"fields": args.fields} if args.fields else {})
    if missing := changed.keys() - {field.name for field in fields(options)}:
        option = "file" if "test" in missing else "fields"
        raise UserError(f"--task {task.name} reads no such files: leave --{option} out")
    return replace(options, **changed)


def require_known(classes: Sequence[str], known: Sequence[str], name: str, args: Examined) -> None:
    """UserError for a class of the examples that the model does not tell apart from others."""
    if strangers := set(classes) - set(known):
        there = ", ".join(map(repr, known[:10])) + (", …" if len(known) > 10 else "")
        raise UserError(f"{args.file or 'the data'} has the class {min(strangers)!r}, but {name} knows only {there}")


def line_of(record: Mapping[str, Any]) -> str:
    return as_json(**record) + "\n"


def plain(measured: Mapping[str, Interval]) -> dict[str, dict[str, float]]:
    return {name: {"value": each.value, "low": each.low, "high": each.high} for name, each in measured.items()}


def table_of(title: str, measured: Mapping[str, Interval]) -> Table:
    table = Table("metric", "value", "95 % interval", title=title, title_justify="left")
    for name, each in measured.items():
        table.add_row(*cells(named(name), *each.words()))
    return table
