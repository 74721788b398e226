"""A function of a person's file, `my_file.py:name`: loaded, and called so that whatever it does wrong is one sentence.

It may raise, leave, hang, or return what makes no sense. A training ends then, saved, and goes on once it is mended.
"""

import importlib.util
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from minillm.errors import UserError
from minillm.wording import counted

Checked = TypeVar("Checked")
SECONDS = 120.0  # that a function of a file may take for the answers of a step, unless --reward-seconds says otherwise
SILENT = 10.0  # of them, after which it is told what is waited for
AGAIN = 1.0  # seconds after which a function that goes on is told so again


class RewardError(UserError):
    """A reward, or an environment, that failed on some answers; others may be judged."""


class TimeIsUp(BaseException):
    """No Exception, so that what a function catches for itself is not this."""


def function_of(
    path: Path, name: str, check: Callable[[Any, int], Checked], seconds: float
) -> Callable[[Sequence[Any], Sequence[Any]], Checked]:
    """The function `name` of a Python file, which is run for it: of examples and of as many answers. What it returns
    is what `check` makes of it, given how many answers there were. `seconds`: that it may take at a time. UserError; a
    call's is a RewardError."""
    function = load_function(path, name)
    what = f"{path}:{name}"
    tell = cache(lambda: say(f"waiting for {what}, which may take {seconds:g} seconds, see --reward-seconds"))  # once

    def call(examples: Sequence[Any], answers: Sequence[Any]) -> Checked:
        try:
            with time_limit(seconds, tell):
                return check(function(list(examples), list(answers)), len(answers))
        except (RewardError, KeyboardInterrupt):
            raise
        except TimeIsUp:
            raise RewardError(
                f"{what} took longer than --reward-seconds {seconds:g} for {counted(len(answers), 'answer')}"
            ) from None
        except BaseException as error:  # whatever it raises: SystemExit is no Exception, nor is what asyncio cancels by
            raise RewardError(f"{what} failed: {where(error, path)}{type(error).__name__}: {error}") from None

    return call


def load_function(path: Path, name: str) -> Callable[..., Any]:
    """UserError where there is none."""
    if not path.is_file():
        raise UserError(f"there is no file {path} to take {name!r} from")
    spec = importlib.util.spec_from_file_location(f"minillm_file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.resolve().parent))  # what stands beside it can be imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path} cannot be run: {where(error, path)}{type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    function = getattr(module, name, None)
    if not callable(function):
        there = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UserError(f"{path} has no function {name!r}, only {', '.join(there) or 'none'}")
    return function


def where(error: BaseException, path: Path) -> str:
    """The line of the file that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename) in (path, path.absolute())]
    return f"line {lines[-1]}: " if lines else ""


@contextmanager
def time_limit(seconds: float, tell: Callable[[], None] = lambda: None) -> Iterator[None]:
    """TimeIsUp in what takes longer, where the system can interrupt it: in the main thread of a Unix process. Who
    catches even that is told again, and once more at the end. `tell` is called where it takes longer than SILENT."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    began, is_up, is_over = time.monotonic(), False, False

    def ring(*_: object) -> None:
        nonlocal is_up
        is_up = time.monotonic() - began >= seconds
        if is_up and not is_over:
            raise TimeIsUp
        tell()

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(SILENT, seconds), AGAIN)
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if is_up:
        raise TimeIsUp


def say(words: str) -> None:
    """To whoever waits; not by `print`, which may be at work where a signal interrupts it."""
    with suppress(OSError):
        os.write(2, f"{words}\n".encode())
