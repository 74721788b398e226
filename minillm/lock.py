"""A lock that dies with its process: whoever holds it works in a folder alone."""

import os
from pathlib import Path
from typing import TextIO

try:
    import fcntl
except ImportError:  # Windows: two processes in one folder are not noticed there
    fcntl = None


def lock(path: Path) -> TextIO | None:
    """The lock file, its folder made if need be; None where somebody else has it. Held until `unlock`, or until the
    process ends, however it does. OSError where no file can be made."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a")
        except FileNotFoundError:  # the folder was given back between the two lines above
            continue
        if not is_free(file):
            file.close()
            return None
        if is_at(path, file):
            return file
        file.close()  # whoever had it has just removed it


def unlock(path: Path, file: TextIO) -> None:
    """Removes the lock file, too, while it is still held: nobody ever holds one that is not in its place."""
    path.unlink(missing_ok=True)
    file.close()


def is_free(file: TextIO) -> bool:
    """Locks the file if nobody has. True where neither the system nor the file system has locks."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
