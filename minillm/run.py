"""A run folder: all that a training leaves behind, and the only way in and out of it.

model.safetensors        the weights, and
config.json              the architecture, as checkpoint.py writes them
adapter/                 what LoRA has learned, in the layout of peft, as adapters.py writes it
tokenizer.json           the vocabulary, or whichever files its tokenizer is made of
args.json                the options that made it, and which of them were given
log.jsonl                one line a step, one an evaluation
start.safetensors        the weights that an unfinished training by reward, or one with frozen weights, began with
reference.safetensors    log p of all answers by the model that an unfinished training on preferences began with
checkpoint.safetensors   the state of an unfinished training, for --resume
finds.jsonl              the right answers that --method expert found
best.safetensors         the best weights so far of an unfinished training with --keep best
metrics.json             the final figures; a run that has them is finished
report.json              what the final figures are to be read with: baselines, samples, notes, the machine
report.html              all of it as a page
curves.png               the log as a picture
lock                     held by the process that works on it

With --steps and a number of threads, the same options give the same bytes of weights, metrics and log, however often
the run was interrupted; but for what is the clock's: `seconds` in the log and in metrics.json, and there `matrix_rate`
and `matrix_share`.

There is no moment at which a run is lost. Its first checkpoint is the last file of its beginning: without one, a
folder that nobody works in is begun anew by the same command, with one, `--resume` goes on.
"""

import json
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from torch import nn

from minillm import lora
from minillm.errors import UserError
from minillm.files import PARTIAL, read_json, sync_folder, write_json, write_text
from minillm.lock import lock, unlock
from minillm.published import adapters, checkpoint
from minillm.tokenizer import Tokenizer

LOCK, START, CHECKPOINT, BEST = "lock", "start.safetensors", "checkpoint.safetensors", "best.safetensors"
REFERENCE, FINDS = "reference.safetensors", "finds.jsonl"
# All that there may be before the first checkpoint, whatever the tokenizer is made of.
BEGINNING = {
    *(LOCK, START, REFERENCE, "args.json", "config.json", "generation_config.json", "chat_template.jinja"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "encoder.json", "vocab.bpe"),
}


class Run:
    """Work in it as a context, which nobody else can then be in."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.given: dict[str, Any] = {}  # of a new one: the options that somebody gave
        self.processes = 1  # that work on it together, see ranks.py
        self.lock: TextIO | None = None  # while this process is the one that works here
        self.is_new = False  # whether this process claimed it
        self.made: list[Path] = []  # folders that were made for it

    @classmethod
    def create(cls, folder: Path | None, default_name: str, given: Mapping[str, Any] | None = None) -> "Run":
        """A new run, its folder made and held; without a folder the first that is free of `runs/NAME`, `runs/NAME-2`,
        … UserError: never where something is but a beginning that came to nothing."""
        if folder is None:
            run = next(run for run in map(cls, numbered(default_name)) if run.claim() is None)
        elif obstacle := (run := cls(folder)).claim():
            raise UserError(f"--out {folder} {obstacle}")
        run.given = {name: str(value) if isinstance(value, Path) else value for name, value in (given or {}).items()}
        return run

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run."""
        run = cls(folder)
        if not folder.is_dir():
            raise UserError(f"there is no run folder {folder}")
        for name in ("config.json", "args.json"):
            if not run.path(name).exists() and not run.is_beginning:
                raise UserError(f"{folder} is not a run: it has no {name}")
        return run

    def path(self, name: str) -> Path:
        return self.folder / name

    @property
    def is_finished(self) -> bool:
        return self.path("metrics.json").exists()

    @property
    def is_unfinished(self) -> bool:
        return self.path(CHECKPOINT).exists() and not self.is_finished

    @property
    def is_beginning(self) -> bool:
        """Whether a new run holds nothing but what comes before its first checkpoint."""
        return self.path(LOCK).exists() and all(
            path.name in BEGINNING or path.name.endswith(PARTIAL) for path in self.folder.iterdir()
        )

    # Who works in it

    def claim(self) -> str | None:
        """Makes the folder, for a new run of this process alone → None, or what is in the way. UserError."""
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            if obstacle := self.obstacle():
                return obstacle
            self.lock = lock(self.path(LOCK))
            if self.lock is None:
                return "is where another process begins a run; name another folder"
            if obstacle := self.obstacle():  # of a process that was faster
                self.leave()
                return obstacle
            self.is_new, self.made = True, made
            self.clear()
            sync_folder(self.folder.parent)
        except OSError as error:
            raise UserError(f"cannot make the folder --out {self.folder}: {error.strerror}") from None
        return None

    def obstacle(self) -> str | None:
        """Why the folder cannot become a new run's."""
        if self.folder.is_file():
            return "is a file; name a new folder"
        if self.is_finished:
            return "already holds a finished run; name another folder or remove it"
        if self.is_unfinished:
            return f"holds an unfinished run; go on with --resume {shlex.quote(str(self.folder))} or remove it"
        if self.folder.exists() and any(self.folder.iterdir()) and not self.is_beginning:
            return "is not empty and not a run; name another folder"
        return None

    def __enter__(self) -> "Run":
        """UserError where another process is at work, or where there is nothing to go on from."""
        if self.lock is None:
            was_beginning = self.is_beginning
            try:
                self.lock = lock(self.path(LOCK))
            except OSError as error:
                raise UserError(f"cannot write into {self.folder}: {error.strerror}") from None
            if self.lock is None:
                raise UserError(f"another process is at work in {self.folder}; wait for it or stop it")
            if was_beginning and self.is_beginning:
                self.lock.close()  # and stays there, as a sign that the folder may be begun anew
                raise UserError(
                    f"{self.folder} was interrupted before its first checkpoint; start it with the same command again"
                )
            self.clear(only_partial=True)
            if self.is_finished:  # and its process died before it had tidied up
                self.forget_state()
        return self

    def __exit__(self, *_: object) -> None:
        """Another process may come now. Of a new run that came to nothing, nothing is left."""
        came_to_nothing = self.is_new and self.is_beginning
        if came_to_nothing:
            self.clear()
        self.leave()
        if came_to_nothing:
            with suppress(OSError):  # somebody put something there
                for folder in self.made:
                    folder.rmdir()

    def clear(self, only_partial: bool = False) -> None:
        """Removes what processes that died have left: files half written, and beginnings."""
        for path in self.folder.iterdir():
            if path.name.endswith(PARTIAL):
                shutil.rmtree(path, ignore_errors=True)
            elif not only_partial and path.name in BEGINNING - {LOCK}:
                path.unlink()

    def leave(self) -> None:
        unlock(self.path(LOCK), self.lock)
        self.lock = None

    # What the run is

    def describe(self, model: nn.Module, tokenizer: Tokenizer, options: Mapping[str, Any]) -> None:
        """What is known before the first step. `options` are those of the script and of its task, by name."""
        write_json(self.path("config.json"), checkpoint.describe(model))
        tokenizer.save(self.folder)
        write_json(self.path("args.json"), {name: plain(value) for name, value in options.items()})

    def options(self) -> dict[str, Any]:
        """The options that made it. UserError."""
        return read_json(self.path("args.json"))

    @property
    def resume_command(self) -> str:
        launcher = f"torchrun --nproc-per-node {self.processes}" if self.processes > 1 else "python"
        return f"{launcher} train_{self.options().get('script', 'sft')}.py --resume {shlex.quote(str(self.folder))}"

    def save_model(self, model: nn.Module) -> None:
        """With what LoRA has learned merged into it, and that by itself in a folder `adapter`, too."""
        if lora.adapters(model):
            adapters.save(model, self.path("adapter"), self.options().get("init"))
        checkpoint.save(lora.merged(model), self.folder)

    # What happened

    def cut_log(self, count: int) -> int:
        """Leaves the first `count` lines of log.jsonl, as a resumed run does again what came after → how many of them
        are records still. UserError if it cannot be written."""
        kept = self.read_log(count)
        write_text(self.path("log.jsonl"), "".join(json.dumps(record) + "\n" for record in kept))
        return len(kept)

    def open_log(self) -> TextIO:
        """log.jsonl, to write further lines to; each is there as soon as it is written."""
        path = self.path("log.jsonl")
        try:
            return path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None

    def read_log(self, count: int | None = None) -> list[dict[str, Any]]:
        """The records of its first lines, or of all; a line that is none, such as a torn one, is left out."""
        try:
            lines = self.path("log.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        records = map(record_of, lines[:count])
        return [record for record in records if record is not None]

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """From here on nothing goes on from it."""
        write_json(self.path("metrics.json"), dict(metrics))
        self.forget_state()

    def forget_state(self) -> None:
        for name in (CHECKPOINT, BEST, START, REFERENCE):
            self.path(name).unlink(missing_ok=True)


def record_of(line: bytes) -> dict[str, Any] | None:
    """What a line of a log says; None for one that was spoiled."""
    try:
        record = json.loads(line)
        step, seconds = record["step"], record["seconds"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return record if type(step) is int and isinstance(seconds, int | float) else None


def numbered(name: str) -> Iterator[Path]:
    """runs/NAME, runs/NAME-2, runs/NAME-3, …"""
    yield Path("runs") / name
    yield from (Path("runs") / f"{name}-{n}" for n in range(2, 10**6))


def options_of(args: Any) -> dict[str, Any]:
    """The options of a script with those of its task among them, by name."""
    general = {name: value for name, value in vars(args).items() if name != "options"}
    return {**general, **vars(args.options)}


def plain(value: Any) -> Any:
    """An option as JSON can hold it. A path says where it leads from any folder; an id of the hub leads nowhere."""
    if isinstance(value, Path):
        return str(value.absolute() if value.exists() else value)
    return value
