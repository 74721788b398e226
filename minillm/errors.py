"""Mistakes of the user, as opposed to mistakes of this program."""

import errno
import importlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

NOT_FINITE = (
    "the model computes NaN or infinite values; its files are damaged, or were not made for it, or, where it has just "
    "been trained, it needs a lower --lr"
)


LONGEST = 800  # characters of a sentence: what it quotes from a file may be all of it
MANY = 20  # other records with a fault that a sentence names


class UserError(Exception):
    """One sentence that names the thing that is wrong and what to do; the scripts print it and exit with code 2."""

    def __init__(self, sentence: str):
        """In one line, whatever it quotes; where that makes it long, its middle is left out."""
        sentence = " ".join(sentence.splitlines())
        is_long = len(sentence) > LONGEST
        super().__init__(f"{sentence[: LONGEST // 2]} … {sentence[-LONGEST // 2 :]}" if is_long else sentence)


def each_told(function: Callable[[Any], Any], records: Sequence[Any]) -> list[Any]:
    """What the function makes of each record. UserError is that of the first fault, and says which other records have
    one, so that a file with twenty blank cells is mended once. Where all have, it is no fault of the lines."""
    made, faulty, first = [], [], None
    for record in records:
        try:
            made.append(function(record))
        except UserError as error:
            first = first or error
            faulty.append(record.place)
    if first is None:
        return made
    others = [re.split(r"\D+", place)[-1] for place in faulty[1:]]  # the number of the line, the row or the record
    if not others or not made:
        raise first
    more = f" and {len(others) - MANY:,} more" if len(others) > MANY else ""
    raise UserError(f"{first}; also faulty: {', '.join(others[:MANY])}{more}") from None


def require_path(path: Path, what: str) -> None:
    """UserError for what can be no path, before anything asks whether something is there."""
    try:
        os.lstat(path)
    except ValueError as error:
        raise UserError(f"{what} {path} is no path: {error}") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{what} {path} is no path: {error.strerror}") from None


def need(module: str, extra: str, purpose: str) -> ModuleType:
    """A library that only an extra of this project installs."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{purpose} needs the library {module}: pip install -e '.[{extra}]'") from None
