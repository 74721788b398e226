"""What a run began with, as digests, so that it never goes on with anything else: its files, and its data as read."""

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.errors import UserError
from minillm.files import digest, read_state
from minillm.run import BEGINNING, CHECKPOINT, LOCK, START, Run, options_of
from minillm.session import Session
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer
from minillm.trackers import open_tracker


def begin(
    session: Session, script: str, args: Any, task: Task, tokenizer: Tokenizer, data: Mapping[str, str], started: float
) -> None:
    """Makes a new run one that can be resumed, or restores one, and what its task noted then. `data`: its digests, see
    `data_of`; `started`: when this process did, of time.monotonic()."""
    run, progress = session.run, session.progress
    if args.resume:
        session.restore()
        task.notes = list(session.progress.notes)
    session.born = started - session.progress.process_seconds
    if not args.resume:
        run.describe(session.model, tokenizer, {"script": script, "given": run.given, **options_of(args)})
        progress.files, progress.data, progress.notes = of_files(run), dict(data), tuple(task.notes)
        progress.numbers |= {"ranks": session.ranks} if session.team else {}
        session.save()
    session.tracker = open_tracker(args.log_to, run, session.progress.step) if session.leads else None


def of_files(run: Run) -> dict[str, str]:
    """Of options, model and vocabulary, as their files have them; of START its own checksum is enough."""
    names = sorted(BEGINNING - {LOCK, START})
    return {name: digest([run.path(name).read_bytes()]) for name in names if run.path(name).is_file()}


def data_of(run: Run, task: Task, log: Sequence = ()) -> dict[str, str]:
    """Of all examples in their order, by their `repr`, and of the classes, before a model has given them another one;
    and of the answers that were logged, if it learns from any.

    UserError where the run goes on and began with others.
    """
    parts = {**{f"{name} examples": split for name, split in vars(task.splits).items()}, "classes": task.classes or ()}
    parts |= {**task.sources, **({"logged answers": log} if log else {})}
    data = {name: digest(repr(each).encode() for each in part) for name, part in parts.items()}
    if run.is_unfinished:
        require_same(run, "data", data)
    return data


def require_same_files(run: Run) -> None:
    """UserError where the run began with others."""
    require_same(run, "files", of_files(run))


def require_same(run: Run, kind: str, found: Mapping[str, str]) -> None:
    began = began_with(run, kind)
    if changed := [name for name in began if found.get(name) != began[name]]:
        raise UserError(
            f"{run.folder} cannot go on, as this has changed since it began: {', '.join(changed)}; "
            "put it back, or start a new run"
        )


def began_with(run: Run, kind: str) -> dict[str, str]:
    """What its checkpoint says; nothing where that is of another version, which is refused when it is restored."""
    saved = read_state(run.path(CHECKPOINT))
    try:
        return dict(saved["progress"][kind])
    except (KeyError, TypeError, ValueError):
        return {}
