"""Odd and spoiled inputs get what is right, as mutations.py declares: no traceback, no hang, nothing wrong accepted."""

import random
import signal

import mutations
import pytest
from mutations import KINDS, Mutation, Refused

from minillm.errors import UserError

SECONDS = 20  # of one mutation; each takes a fraction of one


class Hangs(BaseException):
    """Not an Exception, which the program might take for one of its own."""


def hang(*_):
    raise Hangs


def outcome(mutation):
    """What comes of it; an exception that it ends in, too."""
    previous = signal.signal(signal.SIGALRM, hang) if hasattr(signal, "SIGALRM") else None
    try:
        if previous is not None:
            signal.alarm(SECONDS)
        return mutation.act()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    finally:
        if previous is not None:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, previous)


def complaint(mutation):
    """What is wrong about it; empty where it got what is right."""
    got, right = outcome(mutation), mutation.right
    if isinstance(got, BaseException) and not isinstance(got, UserError):
        return f"{mutation.what}: {got!r}"
    if not isinstance(right, Refused):
        return "" if not isinstance(got, UserError) and right == got else f"{mutation.what}: {got}, not {right}"
    if not isinstance(got, UserError):
        return f"{mutation.what}: {got} was accepted"
    is_named = all(name in str(got) for name in right.names)
    is_sentence = len(str(got).splitlines()) == 1 and len(str(got)) < 1000
    return "" if is_named and is_sentence else f"{mutation.what}: {got} does not name {right.names}"


def mutate(kind, count, seed, folder):
    """The complaints about so many mutations."""
    made = []
    for i in range(count):
        (here := folder / f"{kind.__name__}-{i}").mkdir()
        made.append(kind(random.Random(f"{seed} {kind.__name__} {i}"), here))
    assert any(isinstance(mutation.right, Refused) for mutation in made)
    return [words for mutation in made if (words := complaint(mutation))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_few(kind, tmp_path):
    assert mutate(kind, 10, 0, tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_thousand(kind, tmp_path):
    assert mutate(kind, 10 * KINDS[kind], 1, tmp_path) == []


def test_the_kinds_make_a_hundred():
    assert sum(KINDS.values()) == 100


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("act", "right", "words"),
    [
        (raising(ValueError("a bug")), Refused(()), "a bug"),
        (raising(Hangs()), Refused(()), "Hangs"),
        (raising(UserError("no")), 1, "no, not 1"),
        (raising(UserError("no such thing")), Refused(("--lr",)), "does not name"),
        (lambda: 1, Refused(()), "accepted"),
        (lambda: 1, 2, "1, not 2"),
    ],
)
def test_what_is_wrong_is_seen(act, right, words):
    assert words in complaint(Mutation("it", act, right))


def test_what_does_not_end_is_seen(monkeypatch):
    if not hasattr(signal, "SIGALRM"):
        pytest.skip("needs alarms")
    monkeypatch.setattr("test_mutations.SECONDS", 1)

    def forever():
        while True:
            pass

    assert "Hangs" in complaint(Mutation("it", forever, 1))


def test_rounding_is_all_that_may_differ():
    assert mutations.Close(["a", 1.0]) == ["a", 1.00001]
    assert mutations.Close([1.0, 2.0]) != [1.0, 2.1]
    assert mutations.Close([1.0]) != [1.0, 1.0]
