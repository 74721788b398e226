"""What is learned: one file a task, with its examples, its metrics and its reward."""

from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.tasks import classify, pronounce
from minillm.tasks.arithmetic import Arithmetic
from minillm.tasks.base import AnswerTask, Example, Recipe, Splits, Task, to_documents, tokens_needed
from minillm.tasks.classify import Classify, Guess, Labelled
from minillm.tasks.pronounce import Pronounce

ANSWER_TASKS = {"pronounce": Pronounce, "arithmetic": Arithmetic}  # whose answers a GPT writes
TASKS = {**ANSWER_TASKS, "classify": Classify}
OWNERS = {"fields": "classify", "model": "classify", "symbols": "pronounce", "examples": "arithmetic"}  # of options

__all__ = [
    "ANSWER_TASKS",
    "TASKS",
    "AnswerTask",
    "Arithmetic",
    "Classify",
    "Example",
    "Guess",
    "Labelled",
    "Pronounce",
    "Recipe",
    "Splits",
    "Task",
    "check_owners",
    "load_task",
    "to_documents",
    "tokens_needed",
]


def check_owners(args: Any) -> None:
    """UserError for an option that was given and is about another task than args.task."""
    for option, owner in OWNERS.items():
        if (value := vars(args).get(option)) is not None and args.task != owner:
            raise UserError(f"--{option} {value} is for --task {owner}, not for {args.task}")


def load_task(
    name: str,
    train: Path | None = None,
    dev: Path | None = None,
    test: Path | None = None,
    symbols: str | None = None,
    examples: int | None = None,
    seed: int = 0,
    fields: str | None = None,
) -> Task:
    """The task of that name with its data; options of other tasks are left alone.

    Raises UserError where the options or the files are wrong.
    """
    if name not in TASKS:
        raise UserError(f"--task {name} is not one of {', '.join(TASKS)}")
    if name == "classify":
        return classify.load(train, dev, test, fields)
    if name == "pronounce":
        return pronounce.load(train, dev, test, symbols or "arpabet")
    if train or dev or test:
        raise UserError("--task arithmetic makes its own problems; it takes no --train, --dev and --test")
    return Arithmetic(Arithmetic.num_examples if examples is None else examples, seed)
