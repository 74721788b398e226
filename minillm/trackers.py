"""The log in other programs, too: --log-to tensorboard or wandb. They get what goes to log.jsonl, as it goes there."""

import importlib.util
import secrets
from collections.abc import Mapping
from typing import Any, Protocol

from minillm.errors import UserError
from minillm.files import read_text, write_text
from minillm.run import Run


class Tracker(Protocol):
    def write(self, record: Mapping[str, Any]) -> None:
        """What log.jsonl gets as a line, with its `step`."""

    def flush(self) -> None:
        """What was written is safe if the process dies."""

    def close(self) -> None:
        """Nothing comes after it."""


class TensorBoard:
    """Files in the run's folder, for `tensorboard --logdir runs`."""

    def __init__(self, run: Run, step: int):
        from torch.utils.tensorboard import SummaryWriter

        # A run that goes on writes again what came after its last checkpoint.
        self.writer = SummaryWriter(str(run.path("tensorboard")), purge_step=step + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        for name, value in numbers(record).items():
            self.writer.add_scalar(name, value, record["step"])

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class WandB:
    """A run of the project minillm, of the folder's name, at whatever server wandb is set up for; WANDB_MODE=offline
    keeps it in the folder. wandb takes a step only once, so that what a resumed run does again stays as it was."""

    def __init__(self, run: Run, step: int):
        import wandb

        names = {"project": "minillm", "name": run.folder.name, "dir": str(run.folder), "id": identity(run)}
        self.run = wandb.init(**names, config=run.options(), resume="allow")

    def write(self, record: Mapping[str, Any]) -> None:
        self.run.log(numbers(record), step=record["step"])

    def flush(self) -> None:
        """wandb's own process has it."""

    def close(self) -> None:
        self.run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB}


def require(name: str | None) -> None:
    """UserError where the package of that name is missing."""
    if name and importlib.util.find_spec(name) is None:
        raise UserError(f"--log-to {name} needs its package: pip install -e '.[{name}]'")


def open_tracker(name: str | None, run: Run, step: int) -> Tracker | None:
    """For a run that has done `step` steps; None where nobody asked for one."""
    require(name)
    return TRACKERS[name](run, step) if name else None


def numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in record.items() if isinstance(value, int | float) and name != "step"}


def identity(run: Run) -> str:
    """By which wandb knows the run; kept in its folder, so that the run that goes on is the same."""
    path = run.path("wandb.txt")
    if not path.exists():
        write_text(path, secrets.token_hex(4))
    return read_text(path)
