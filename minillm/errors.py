"""Mistakes of the user, as opposed to mistakes of this program."""

import errno
import importlib
import os
from pathlib import Path
from types import ModuleType

NOT_FINITE = (
    "the model computes NaN or infinite values; its files are damaged, or were not made for it, or, where it has just "
    "been trained, it needs a lower --lr"
)


LONGEST = 800  # characters of a sentence: what it quotes from a file may be all of it


class UserError(Exception):
    """One sentence that names the thing that is wrong and what to do; the scripts print it and exit with code 2."""

    def __init__(self, sentence: str):
        """In one line, whatever it quotes; where that makes it long, its middle is left out."""
        sentence = " ".join(sentence.splitlines())
        is_long = len(sentence) > LONGEST
        super().__init__(f"{sentence[: LONGEST // 2]} … {sentence[-LONGEST // 2 :]}" if is_long else sentence)


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
