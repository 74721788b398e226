"""A lock on a folder: one at a time, and none of a process that is gone."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from minillm import lock as locks
from minillm.lock import lock, unlock

pytest.importorskip("fcntl")

HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); input()"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "lock"


def test_one_at_a_time(path):
    held = lock(path)
    assert held is not None
    assert lock(path) is None
    unlock(path, held)
    assert not path.exists()
    assert lock(path) is not None


def test_of_many_at_one_instant_one_has_it(path):
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: lock(path), range(16)))
    assert sum(file is not None for file in found) == 1


def test_it_dies_with_its_process(path):
    """However that ends; its file stays and hinders nobody."""
    path.parent.mkdir()
    process = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    assert lock(path) is None
    process.kill()
    process.communicate()
    assert path.exists()
    assert lock(path) is not None


def test_a_file_that_was_removed_meanwhile_is_no_lock(path, monkeypatch):
    """Between opening and locking it, whoever had it has removed it; another process may have made the next one."""
    real, seen = locks.is_at, []

    def is_at(path, file):
        if not seen:
            path.unlink()
        seen.append(real(path, file))
        return seen[-1]

    monkeypatch.setattr(locks, "is_at", is_at)
    held = lock(path)
    assert seen == [False, True]
    assert lock(path) is None
    unlock(path, held)


def test_without_locks_there_is_none(path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    assert lock(path) is not None
    assert lock(path) is not None


def test_a_file_system_without_locks(path, monkeypatch):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert lock(path) is not None


def test_where_no_file_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        lock(tmp_path / "file" / "lock")
