"""Answers of several turns: the model says something, an environment replies, the model goes on.

    prompt   turn END   reply   turn END   reply   turn END

What the model draws, the END of every turn among it, is its answer and is learned from; what it hears is only read. An
environment is a task's own, such as that of `guess`, or a function of a person's file:

    --environment my_game.py:reply       def reply(examples, answers): a text for each, or None where it is over

`answers[i]` is a tuple of what the model has said so far to `examples[i].prompt`, `answers[i].replies` what it heard
behind each turn but the last. The same tuples are what a function judges, `--reward my_game.py:score`; other rewards
judge the last turn.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from minillm.functions import SECONDS, RewardError, function_of
from minillm.wording import counted

TURNS = 4  # of an answer, unless told otherwise


class Turns(tuple[str, ...]):
    """What a model said, turn by turn, and what was replied to each but the last."""

    replies: tuple[str, ...]

    def __new__(cls, turns: Iterable[str], replies: Iterable[str] = ()):
        found = super().__new__(cls, turns)
        found.replies = tuple(replies)
        return found

    def __str__(self) -> str:
        """For people: replies stand in brackets."""
        pairs = zip_longest(self, (f"[{reply.strip()}]" for reply in self.replies))
        return " ".join(text for pair in pairs for text in pair if text is not None)

    def _asdict(self) -> dict[str, list[str]]:
        """For files, as named tuples have it."""
        return {"turns": [*self], "replies": [*self.replies]}


def last_turn(answer: Any) -> Any:
    """What a model said last; an answer without turns as it is."""
    return answer[-1] if isinstance(answer, Turns) else answer


Reply = Callable[[Sequence[Any], Sequence[Turns]], Sequence[str | None]]  # examples and answers → one each


@dataclass(frozen=True)
class Environment:
    """Whom a model speaks with, by turns."""

    reply: Reply  # what it says to answers so far, all at once; None where one is over. RewardError where it fails
    turns: int  # the most that an answer has


def open_environment(option: str, turns: int | None, seconds: float = SECONDS) -> Environment:
    """From `FILE.py:FUNCTION`, whose replies are checked at every call, for which it has so many seconds. UserError."""
    path, _, name = option.rpartition(":") if ".py:" in option else (option, "", "reply")
    if not path.endswith(".py"):
        raise UserError(f"--environment {option}: give FILE.py:FUNCTION")
    reply = function_of(Path(path), name, lambda found, count: checked(option, found, count), seconds)
    return Environment(reply, turns or TURNS)


def require_taken(option: str, task: Any) -> None:
    """UserError for a task that speaks with no such environment."""
    if not task.takes_environment:
        own = "has one of its own" if task.environment else "takes none"
        raise UserError(f"--environment {option} is for --task seq2seq; --task {task.name} {own}")


def checked(what: str, found: Any, count: int) -> list[str | None]:
    """What a function returned, as replies. RewardError for what is no text, or None, an answer."""
    if isinstance(found, str) or not isinstance(found, Iterable):
        kind = type(found).__name__
        raise RewardError(f"{what} returned {kind}, but a list with a text, or None, for each answer was expected")
    replies = list(islice(found, count + 1))  # of what may have no end
    if len(replies) != count:
        number = f"more than {count}" if len(replies) > count else len(replies)
        raise RewardError(f"{what} returned {number} of {counted(count, 'reply', 'replies')}")
    for i, reply in enumerate(replies):
        if not isinstance(reply, str | None):
            raise RewardError(f"{what} returned {reply!r} for answer {i}, but a text, or None, was expected")
    return replies
