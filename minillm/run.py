"""A run folder: all that a training leaves behind, and the only way in and out of it.

model.safetensors        the weights, and
config.json              the architecture, as checkpoint.py writes them
tokenizer.json           the vocabulary, or whichever files its tokenizer is made of
args.json                the options that made it
log.jsonl                one line a step, one an evaluation
checkpoint.safetensors   the state of an unfinished training, for --resume
best.safetensors         the best weights so far of an unfinished training with --keep best
metrics.json             the final figures; a run that has them is finished
curves.png               the log as a picture
"""

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from minillm.errors import UserError
from minillm.files import read_json, write_json, write_text
from minillm.published import checkpoint
from minillm.tokenizer import Tokenizer


class Run:
    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def vacant(cls, folder: Path | None, default_name: str) -> "Run":
        """Where a new run may be made; without a folder `runs/NAME`, `runs/NAME-2`, … Never where something is."""
        if folder is None:
            return cls(next(path for path in numbered(default_name) if not path.exists()))
        run = cls(folder)
        if folder.is_file():
            raise UserError(f"--out {folder} is a file; name a new folder")
        if run.is_finished:
            raise UserError(f"--out {folder} already holds a finished run; name another folder or remove it")
        if run.path("args.json").exists():
            raise UserError(f"--out {folder} holds an unfinished run; go on with --resume {folder} or remove it")
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"--out {folder} is not empty and not a run; name another folder")
        return run

    @classmethod
    def create(cls, folder: Path | None, default_name: str) -> "Run":
        """A new run folder, where `vacant` says."""
        run = cls.vacant(folder, default_name)
        try:
            run.folder.mkdir(parents=True, exist_ok=folder is not None)
        except FileExistsError:  # another process was faster: the next number
            return cls.create(folder, default_name)
        except OSError as error:
            raise UserError(f"cannot make the folder --out {run.folder}: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run."""
        run = cls(folder)
        if not folder.is_dir():
            raise UserError(f"there is no run folder {folder}")
        for name in ("config.json", "args.json"):
            if not run.path(name).exists():
                raise UserError(f"{folder} is not a run: it has no {name}")
        return run

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def is_finished(self) -> bool:
        return self.path("metrics.json").exists()

    # What the run is

    def describe(self, model: nn.Module, tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
        """What is known before the first step. `options` are those of the script and of its task, by name."""
        write_json(self.path("config.json"), checkpoint.describe(model))
        tokenizer.save(self.folder)
        write_json(self.path("args.json"), {k: v and str(v) if isinstance(v, Path) else v for k, v in options.items()})

    def options(self) -> dict[str, Any]:
        """The options that made it. UserError."""
        return read_json(self.path("args.json"))

    @property
    def resume_command(self) -> str:
        return f"python train_{self.options().get('script', 'sft')}.py --resume {shlex.quote(str(self.folder))}"

    def save_model(self, model: nn.Module) -> None:
        checkpoint.save(model, self.folder)

    # What happened

    def open_log(self, last_step: int) -> TextIO:
        """log.jsonl, to write lines to; what came after the last step is forgotten, as a resumed run does it again."""
        path = self.path("log.jsonl")
        kept = [record for record in self.read_log() if record["step"] <= last_step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        try:
            return path.open("a", encoding="utf-8", buffering=1)  # a line is there as soon as it is written
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None

    def read_log(self) -> list[dict[str, Any]]:
        if not self.path("log.jsonl").exists():
            return []
        lines = self.path("log.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be torn

    def finish(self, metrics: Mapping[str, Any]) -> None:
        write_json(self.path("metrics.json"), dict(metrics))


def numbered(name: str) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2, runs/NAME-3, …"""
    yield Path("runs") / name
    yield from (Path("runs") / f"{name}-{n}" for n in range(2, 10**6))


def options_of(args: Any) -> dict[str, Any]:
    """The options of a script with those of its task among them, by name."""
    general = {name: value for name, value in vars(args).items() if name != "options"}
    return {**general, **vars(args.options)}
