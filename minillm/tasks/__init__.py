"""What is learned: one file a task, with its examples, its metrics and its reward."""

from pathlib import Path

from minillm.errors import UserError
from minillm.tasks import pronounce
from minillm.tasks.arithmetic import Arithmetic
from minillm.tasks.base import Example, Recipe, Splits, Task, to_documents, tokens_needed
from minillm.tasks.pronounce import Pronounce

TASKS = {"pronounce": Pronounce, "arithmetic": Arithmetic}

__all__ = [
    "TASKS",
    "Arithmetic",
    "Example",
    "Pronounce",
    "Recipe",
    "Splits",
    "Task",
    "load_task",
    "to_documents",
    "tokens_needed",
]


def load_task(
    name: str,
    train: Path | None = None,
    dev: Path | None = None,
    test: Path | None = None,
    symbols: str = "arpabet",
    examples: int = Arithmetic.num_examples,
    seed: int = 0,
) -> Task:
    """The task of that name with its data. Raises UserError where the options or the files are wrong."""
    if name == "pronounce":
        return pronounce.load(train, dev, test, symbols)
    if name != "arithmetic":
        raise UserError(f"--task {name} is not one of {', '.join(TASKS)}")
    if train or dev or test:
        raise UserError("--task arithmetic makes its own problems; --train, --dev and --test are for pronounce")
    return Arithmetic(examples, seed)
