"""Command lines from dataclasses: each field is an option, its metadata the help text."""

import argparse
import dataclasses
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any, NoReturn, TextIO, TypeVar, get_type_hints

from rich.console import Console

from minillm.errors import UserError, require_path

Args = TypeVar("Args")
MOST_COUNTED, LARGEST = 2**31 - 1, 3e38  # of whole numbers, and of others
BESIDE_RESUME = (
    "--resume goes on under the options that the run was started with: leave out --{}, or, where the run is finished, "
    "train its model further in a new one with --init {}"
)
PATIENCE = 3.0  # seconds
STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field that `parse` turns into --name; `None` as default means "not given".

    A bool that is False becomes a switch; a `tuple[str, ...]` an option that may be given several times.
    """
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def argument(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that `parse` reads by its place. A tuple takes all that come, at least one if it has no default."""
    return dataclasses.field(default=default, metadata={"help": help, "places": "*" if default == () else "+"})


def parse(kind: type[Args], description: str, argv: Sequence[str] | None = None, prog: str | None = None) -> Args:
    """The command line as an instance of the dataclass `kind`, whose own fields come before those that it inherits.

    Exits with 2 on a wrong one.
    """
    parser = Parser(prog, description=description, formatter_class=Formatter)
    add_all(parser, kind)
    return filled(kind, parser.parse_intermixed_args(argv))  # options may stand between a model and its texts


def parse_with_task(
    kind: type[Args], tasks: Mapping[str, Any], description: str, argv: Sequence[str] | None = None
) -> Args:
    """The same for a script whose --task says which further options there are, those of `tasks[name].Options`.

    They become the field `options` of `kind`. --help shows them once --task is given. UserError for an option that
    belongs to another task, and for any beside --resume, also with its default as value.
    """
    default = next(field.default for field in dataclasses.fields(kind) if field.name == "task")
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--task")
    first.add_argument("--resume")
    found, others = first.parse_known_args(argv)
    given = [*filter(None, map(option_of, others)), *(["task"] if found.task else [])]
    if found.resume and given and "help" not in given:
        raise UserError(BESIDE_RESUME.format(given[0].replace("_", "-"), shlex.quote(found.resume)))
    asked = found.task
    task = tasks.get(asked or default, tasks[default])
    parser = Parser(
        description=description,
        formatter_class=Formatter,
        epilog="--task NAME --help shows the options of a task, too.",
    )
    add_all(parser, kind, skip=("options",))
    add_all(parser.add_argument_group(f"options of --task {task.name}"), task.Options, hidden=asked is None)
    parsed, left = parser.parse_known_args(argv)
    for word in left:
        owners = [name for name, other in tasks.items() if option_of(word) in names_of(other.Options)]
        if owners:
            several = ", ".join(owners[:-1]) + " or " if owners[1:] else ""
            raise UserError(f"{word} is for --task {several}{owners[-1]}, not for {task.name}")
    if left:
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    return filled(kind, parsed, options=filled(task.Options, parsed))


def option_of(word: str) -> str:
    """--batch-tokens=9 → batch_tokens"""
    return word.partition("=")[0].removeprefix("--").replace("-", "_") if word.startswith("--") else ""


def names_of(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def add_all(parser: Any, kind: type, skip: Sequence[str] = (), hidden: bool = False) -> None:
    hints = get_type_hints(kind)
    own = vars(kind).get("__annotations__", {})
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in own):
        if field.name not in skip:
            add(parser, field, hints[field.name], hidden)


def filled(kind: type[Args], parsed: argparse.Namespace, **more: Any) -> Args:
    values = {name: vars(parsed)[name] for name in names_of(kind) if name not in more}
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}, **more)


def add(parser: Any, field: dataclasses.Field, hint: Any, hidden: bool = False) -> None:
    kinds = getattr(hint, "__args__", (hint,))
    convert = next(t for t in (bool, int, float, Path, str) if t in kinds)
    is_many = getattr(hint, "__origin__", None) is tuple
    help_text = field.metadata["help"].replace("%", "%%")
    if "places" in field.metadata:
        nargs = field.metadata["places"] if is_many else None
        parser.add_argument(field.name, type=convert, nargs=nargs, help=help_text, metavar=field.name.upper())
        return
    flag = "--" + field.name.replace("_", "-")
    if convert is bool:
        parser.add_argument(flag, action="store_true", help=help_text)
        return
    if field.default not in (None, ()):
        help_text += f" (default: {field.default})"
    help_text = argparse.SUPPRESS if hidden else help_text
    parser.add_argument(
        flag,
        type=convert,
        action="append" if is_many else "store",
        default=[] if is_many else field.default,
        help=help_text,
        choices=field.metadata["choices"],
        metavar=None if field.metadata["choices"] else convert.__name__.upper(),
    )


def with_paths(args: Args) -> Args:
    """The same, and the task's options in it, with a Path for each text where one is meant: for callers from Python.

    UserError for what can be none.
    """
    given = {f.name: vars(args)[f.name] for f in dataclasses.fields(args) if "Path" in str(f.type)}
    changed: dict[str, Any] = {name: Path(path) for name, path in given.items() if path is not None}
    for name, path in changed.items():
        require_path(path, f"--{name.replace('_', '-')}")
    if options := vars(args).get("options"):
        changed["options"] = with_paths(options)
    return dataclasses.replace(args, **changed)


def given(args: Any) -> dict[str, Any]:
    """The options, those of the task among them, that are not their defaults: what a command line must say."""
    own = given(args.options) if vars(args).get("options") else {}
    fields = (field for field in dataclasses.fields(args) if field.name != "options")
    return {field.name: vars(args)[field.name] for field in fields if vars(args)[field.name] != field.default} | own


def command_line(options: Mapping[str, Any]) -> str:
    """`--task classify --train 'a file.csv' …`: as they would be typed."""
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [flag] if each is True else [flag, str(each)]
    return shlex.join(words)


def require_positive(args: Any, *names: str) -> None:
    """UserError for an option that was given and is not above 0, or is more than arrays and float32 can hold."""
    for name in names:
        value = vars(args)[name]
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value} must be positive")
        if value is not None and value > (most := MOST_COUNTED if isinstance(value, int) else LARGEST):
            raise UserError(f"--{name.replace('_', '-')} {value} is too large; {most} is the most there can be")


def require_share(args: Any, name: str, of: str) -> None:
    """UserError for an option that was given and is not from 0 to below 1."""
    value = vars(args)[name]
    if value is not None and not 0 <= value < 1:
        raise UserError(f"--{name.replace('_', '-')} {value} must be a share of {of}, from 0 to below 1")


def require_choices(args: Any, skip: Sequence[str] = ()) -> None:
    """UserError for an option whose value is none of its choices: from Python, nobody has looked yet."""
    for field in dataclasses.fields(args):
        choices, value = field.metadata.get("choices"), vars(args)[field.name]
        if choices and field.name not in skip and value not in (None, *choices):
            raise UserError(f"--{field.name.replace('_', '-')} {value} is not one of {', '.join(choices)}")


def require_seed(args: Any) -> None:
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed} must not be negative, nor 2^63 or more")


@contextmanager
def postponed_signals(numbers: Sequence[int] = STOP_SIGNALS) -> Iterator[Event]:
    """Within it Ctrl-C, SIGTERM and SIGHUP set the event, so that a step is never half done; a second Ctrl-C raises.
    What the process was told to ignore, as nohup does, stays ignored."""
    asked = Event()

    def ask(number: int, _: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield asked
        return
    heeded = [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    previous = {number: signal.signal(number, ask) for number in heeded}
    try:
        yield asked
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Parser(argparse.ArgumentParser):
    """What is wrong in one sentence, as of any mistake, where argparse puts twenty lines of usage before it."""

    def error(self, message: str) -> NoReturn:
        let_the_first_speak()
        self.exit(2, f"error: {message}; {self.prog} --help says what there is\n")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs of a script's docstring and leaves room for long option names."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=26, width=110)


class Audience:
    """A stream for as long as somebody reads it: a terminal that was closed must not end what it shows."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            drop(self.stream)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            drop(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def console() -> Console:
    """Where a training tells what it does, if anybody is there."""
    return Console(soft_wrap=True, file=Audience(sys.stdout)) if sys.stdout else Console(quiet=True)


def run(main: Callable[[], None]) -> None:
    """Call a script's main; a mistake of the user ends in one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # letters that a terminal's encoding lacks
    try:
        main()
        if sys.stdout:  # None where it is closed
            sys.stdout.flush()
    except UserError as error:
        let_the_first_speak()
        leave(f"error: {error}", 2)
    except KeyboardInterrupt as stop:
        leave("\n" + "; ".join(["interrupted", *map(str, stop.args)]), 130)
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        drop(sys.stdout)
        sys.exit(141)
    except OSError as error:
        drop(sys.stdout)
        leave(f"error: cannot go on: {error}", 2)


def let_the_first_speak() -> None:
    """Of several processes that make the same mistake: torchrun ends the others as soon as the first has said it."""
    if os.environ.get("RANK", "0") != "0":
        with suppress(KeyboardInterrupt):
            time.sleep(PATIENCE)


def leave(words: str, code: int) -> None:
    if sys.stderr:
        print(words, file=Audience(sys.stderr))
    sys.exit(code)


def drop(stream: TextIO | None) -> None:
    """What was not written yet is not tried again, neither now nor when Python ends."""
    if stream:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
