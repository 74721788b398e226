"""Command lines: options from a dataclass, and how a script ends."""

import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress
from scripts import ROOT

from minillm import cli
from minillm.errors import UserError


@dataclass(frozen=True)
class Args:
    name: str = cli.option("here", "a word")
    steps: int | None = cli.option(None, "a number")
    share: float = cli.option(0.5, "50 % of it")
    out: Path | None = cli.option(None, "a folder")
    how_many: int = cli.option(3, "with a blank in its name")
    kind: str = cli.option("a", "one of few", choices=("a", "b"))


def test_defaults():
    assert cli.parse(Args, "", []) == Args()


def test_values_have_the_types_of_their_fields():
    line = "--name x --steps 5 --share 2 --out some/folder --how-many 7 --kind b"
    parsed = cli.parse(Args, "", line.split())
    assert parsed == Args("x", 5, 2.0, Path("some/folder"), 7, "b")
    assert isinstance(parsed.share, float)
    assert isinstance(parsed.out, Path)


def test_negative_numbers_are_values():
    assert cli.parse(Args, "", ["--share", "-1"]).share == -1.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--steps", "many"], "--steps.*'many'"),
        (["--steps", "1.5"], "--steps.*'1.5'"),
        (["--kind", "c"], "--kind.*'c'"),
        (["--colour", "red"], "--colour red"),
        (["--out"], "--out"),
    ],
)
def test_wrong_options_exit_with_2(line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Args, "", line)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Args, "What it does.\n\n  python script.py    an example", ["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "What it does.\n\n  python script.py    an example" in text
    for piece in ("--how-many INT", "--out PATH", "a folder\n", "50 % of it (default: 0.5)", "{a,b}", "(default: 3)"):
        assert piece in text


@dataclass(frozen=True, kw_only=True)
class Base:
    seed: int = cli.option(0, "inherited")


@dataclass(frozen=True, kw_only=True)
class Command(Base):
    model: str = cli.argument("by its place")
    text: tuple[str, ...] = cli.argument("all that come", default=())
    word: tuple[str, ...] = cli.option((), "several times")
    quiet: bool = cli.option(False, "a switch")


def test_places_switches_and_lists(capsys):
    assert cli.parse(Command, "", ["gpt"]) == Command(model="gpt")
    parsed = cli.parse(Command, "", ["gpt", "a", "b", "--word", "x", "--quiet", "--word", "y", "--seed", "1"])
    assert parsed == Command(model="gpt", text=("a", "b"), word=("x", "y"), quiet=True, seed=1)
    with pytest.raises(SystemExit):
        cli.parse(Command, "", [], prog="python -m somewhere")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("^error: .* required: MODEL.*; python -m somewhere --help says what there is$", line)


@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan")])
def test_require_positive(value):
    with pytest.raises(UserError, match=rf"--how-many {value} must be positive"):
        cli.require_positive(Args(how_many=value), "steps", "share", "how_many")


def test_what_was_not_given_need_not_be_positive():
    cli.require_positive(Args(), "steps", "share", "how_many")


def ends(main, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.run(main)
    return stop.value.code, capsys.readouterr().err


def test_a_mistake_of_the_user_is_one_sentence(capsys):
    def main():
        raise UserError("there is no such thing")

    assert ends(main, capsys) == (2, "error: there is no such thing\n")


def test_an_interrupt_is_no_error(capsys):
    def main():
        raise KeyboardInterrupt

    code, err = ends(main, capsys)
    assert code == 130
    assert "interrupted" in err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written():
    script = "from minillm import cli; cli.run(lambda: print('x' * 100))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "error: cannot go on: [Errno 28] No space left on device\n"


def test_output_may_be_closed():
    script = "import sys; sys.stdout = None\nfrom minillm import cli; cli.run(lambda: print('x'))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_letters_that_the_terminal_lacks():
    script = "from minillm import cli; cli.run(lambda: print('café'))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9\n")


def test_a_mistake_of_the_program_is_not_hidden():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.run(main)


class Closed(io.StringIO):
    """A terminal that is gone, or a pipe that nobody reads."""

    def write(self, text=""):
        raise OSError(5, "Input/output error")

    flush = write


def test_a_stream_that_nobody_reads_any_more_ends_nothing(tmp_path, monkeypatch):
    dropped = []
    monkeypatch.setattr(cli, "drop", dropped.append)
    stream = Closed()
    console = Console(file=cli.Audience(stream))
    console.print("a word")
    with Progress(console=console) as bar:
        bar.add_task("work")
    assert set(dropped) == {stream}
    heard = io.StringIO()
    Console(file=cli.Audience(heard)).print("a word")
    assert heard.getvalue() == "a word\n"


def test_a_mistake_that_nobody_can_be_told_of_still_exits_with_2(monkeypatch):
    monkeypatch.setattr(cli, "drop", lambda _: None)
    monkeypatch.setattr(sys, "stderr", Closed())
    for error, code in ((UserError("no"), 2), (KeyboardInterrupt(), 130), (OSError(5, "gone"), 2)):
        with pytest.raises(SystemExit) as stop:
            cli.run(lambda error=error: (_ for _ in ()).throw(error))
        assert stop.value.code == code


# ---- a script with tasks -------------------------------------------------------------------------


@dataclass(frozen=True)
class WithTask:
    task: str = cli.option("one", "what to learn", choices=("one", "two"))
    resume: Path | None = cli.option(None, "go on with a run")
    steps: int | None = cli.option(None, "a number")
    options: Any = None


@dataclass(frozen=True)
class Files:
    train: Path | None = cli.option(None, "a file")


@dataclass(frozen=True)
class OfOne(Files):
    mood: str = cli.option("good", "of task one", choices=("good", "bad"))


@dataclass(frozen=True)
class OfTwo(Files):
    examples: int = cli.option(3, "of task two")


TWO_TASKS = {
    name: SimpleNamespace(name=name, Options=options) for name, options in {"one": OfOne, "two": OfTwo}.items()
}


def parse(line):
    return cli.parse_with_task(WithTask, TWO_TASKS, "What it does.", line.split())


def test_a_task_brings_its_own_options():
    assert parse("") == WithTask(options=OfOne())
    assert parse("--mood bad --steps 4") == WithTask(steps=4, options=OfOne(mood="bad"))
    assert parse("--examples 5 --task two --train x") == WithTask("two", options=OfTwo(Path("x"), 5))
    assert parse("--task=two --examples=5") == WithTask("two", options=OfTwo(examples=5))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--task two --mood bad", "--mood is for --task one, not for two"),
        ("--examples 5", "--examples is for --task two, not for one"),
        ("--examples=5", "--examples=5 is for --task two, not for one"),
    ],
)
def test_options_of_another_task_are_named(line, sentence):
    with pytest.raises(UserError, match=f"^{sentence}$"):
        parse(line)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("--resume x --steps 4", "steps"),
        ("--steps=4 --resume=x", "steps"),
        ("--resume x --mood good", "mood"),  # its default, but given
        ("--resume x --task one", "task"),  # likewise
        ("--task two --resume x", "task"),
        ("--resume x --examples 9", "examples"),  # of another task than the default one
        ("--task two --resume x --examples 3", "examples"),
        ("--resume x --batch-tokens 3", "batch-tokens"),  # also one that there is not
        ("--res x --st 4", "st"),
    ],
)
def test_nothing_may_be_given_beside_resume(line, name):
    said = f"^--resume goes on under the options .*: leave out --{name}, or, .* in a new one with --init x$"
    with pytest.raises(UserError, match=said):
        parse(line)


def test_resume_alone_is_fine(capsys):
    assert parse("--resume x") == WithTask(resume=Path("x"), options=OfOne())
    for line in ("--resume x --help", "--resume x -h"):
        with pytest.raises(SystemExit) as stop:
            parse(line)
        assert stop.value.code == 0
    assert "What it does." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--colour red", "--colour red"),
        ("--task three", "--task.*'three'"),
        ("--mood odd", "--mood.*'odd'"),
        ("--task two --examples many", "--examples.*'many'"),
        ("stray", "stray"),
    ],
)
def test_wrong_options_of_tasks_exit_with_2(line, message, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)


def test_help_shows_the_options_of_a_task_once_it_is_named(capsys):
    shown = {}
    for line in ("--help", "--task one --help", "--task two --help", "--help --task two"):
        with pytest.raises(SystemExit) as stop:
            parse(line)
        assert stop.value.code == 0
        shown[line] = capsys.readouterr().out
    assert not any(
        name in shown["--help"].partition("What it does.")[2] for name in ("--mood", "--examples", "--train")
    )
    assert "--task NAME --help shows the options of a task, too." in shown["--help"]
    assert "options of --task one" in shown["--task one --help"]
    assert "--mood {good,bad}" in shown["--task one --help"]
    assert "of task two (default: 3)" in shown["--task two --help"]
    assert "--mood" not in shown["--task two --help"]
    assert shown["--help --task two"] == shown["--task two --help"]
    assert all("--steps INT" in text for text in shown.values())


@pytest.mark.parametrize("value", [2**31, 2**63, 10**30, 1e39, 1e300])
def test_more_than_arrays_and_float32_hold(value):
    with pytest.raises(UserError, match=rf"^--batch-tokens {re.escape(str(value))} is too large; .* is the most"):
        cli.require_positive(SimpleNamespace(batch_tokens=value), "batch_tokens")


@pytest.mark.parametrize("value", [None, 1, 2**31 - 1, 1e-300, 1e30])
def test_what_they_hold(value):
    cli.require_positive(SimpleNamespace(batch_tokens=value), "batch_tokens")
