"""How a question is asked for: with a line editor on a terminal, as it comes from a file or a pipe.

prompt_toolkit (pip install -e '.[chat]') edits lines, recalls earlier ones, and takes what is pasted as one question.
Python's readline, where it is there, does nearly the same. Without both the terminal itself collects a line, and no
terminal keeps more than 4,095 bytes of one.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType

from minillm.commands.common import note
from minillm.errors import UserError

PROMPT = "> "
TERMINAL_BYTES = 4095  # of a line, on Linux; fewer elsewhere


def line_editor() -> Callable[[], str]:
    """What asks for the next question. It raises EOFError at the end, and KeyboardInterrupt for Ctrl-C."""
    if not (sys.stdin and sys.stdin.isatty()):
        return input
    if not (sys.stdout and sys.stdout.isatty()):  # which prompts do not belong into
        return bare_line
    if toolkit := found("prompt_toolkit"):
        session = toolkit.PromptSession()
        return lambda: session.prompt(PROMPT)
    if found("readline"):  # from here on input() uses it
        note("(for pasting many lines as one question: pip install -e '.[chat]')")
        return lambda: input(PROMPT)
    note("(without a line editor, which pip install -e '.[chat]' has: no arrow keys, no pasting, only short lines)")
    return lambda: bare_line(PROMPT)


def bare_line(prompt: str = "") -> str:
    """UserError for a line of which the terminal may have kept no more."""
    line = input(prompt)
    if len(line.encode(errors="replace")) >= TERMINAL_BYTES:
        raise UserError(
            f"the terminal keeps {TERMINAL_BYTES:,} bytes of a line, so this one may have lost its end; "
            "make it shorter, or pip install -e '.[chat]'"
        )
    return line


def found(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
