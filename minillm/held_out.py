"""What a training by example does with examples that it does not learn from: it looks how well they are answered while
it goes on, keeps the weights that answer them best, and says in the end how good the model is.

watch.py is the same for training by reward, whose methods that draw no answers in a step look as here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from minillm.batching import Corpus
from minillm.findings import conclude, findings
from minillm.metrics import Interval
from minillm.optim import swap_average
from minillm.report import figures, flat, glance, score_of, which_look
from minillm.session import Session
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer
from minillm.wording import counted


def look(
    session: Session, task: Task, model: nn.Module, tokenizer: Tokenizer, samples: Sequence[Mapping[str, str]] = ()
) -> None:
    """At some of the dev examples, now and then; into the log with what else a person may want to see."""
    heed(session, score_of(task, report(session, task, model, tokenizer, samples=samples)))


def heed(session: Session, score: float) -> None:
    """What a look says: remembers the weights if they are the best so far; ends a training that gets no better, under
    --patience."""
    best, patience = session.budget.keep == "best", session.budget.patience
    if best or patience:
        session.keep_if_best(score)
    if patience and session.progress.worse >= patience:
        session.end(f"no better than the best before in the last {counted(patience, 'look')} at the dev set")


def look_first(session: Session, task: Task, model: nn.Module, tokenizer: Tokenizer) -> None:
    """At what the model can do before its training, unless that stands in the log already. Where the best look counts,
    this is one."""
    if session.progress.records == 0:
        measured = report(session, task, model, tokenizer, with_details=True)
        if session.budget.keep == "best":
            session.keep_if_best(score_of(task, measured))
    task.before = next(iter(session.run.read_log(1)), {})


def report(
    session: Session,
    task: Task,
    model: nn.Module,
    tokenizer: Tokenizer,
    with_details: bool = False,
    samples: Sequence[Mapping[str, str]] = (),
) -> dict[str, Interval]:
    """Shows and logs the figures of some of the dev examples."""
    examples, answers = glance(session, task, model, tokenizer)
    measured = task.measure(examples, answers)
    more = {**(task.details(examples, answers) if with_details else {}), **({"samples": samples} if samples else {})}
    session.report(measured, len(examples), **more)
    return measured


def end_if_good(enough: float, session: Session, task: Task, model: nn.Module, tokenizer: Tokenizer) -> None:
    """Where the mean reward of greedy answers to some of the dev examples is that high, no further step."""
    examples, answers = glance(session, task, model, tokenizer)
    if sum(map(sum, task.reward(examples, answers).values())) / len(examples) >= enough:
        session.end(f"good enough, as --until {enough} says")


def keep(session: Session, task: Task, model: nn.Module, tokenizer: Tokenizer) -> None:
    """Leaves the model with the weights that are to be saved."""
    if session.budget.keep != "best":
        swap_average(session.optimizers)
        return
    score = score_of(task, task.measure(*glance(session, task, model, tokenizer)))
    session.keep_if_best(score)
    session.take_best()
    session.console.print(which_look(task, session.run.read_log(), session.progress.step, score), markup=False)


def finish(session: Session, task: Task, model: nn.Module, tokenizer: Tokenizer, corpus: Corpus) -> None:
    """Measures the model on all held-out examples, shows some of them, and saves what remains to be saved."""
    task.calibrate(model, tokenizer)
    metrics: dict[str, Any] = {}
    for split in ("test", "dev"):  # what is shown below is the last one's
        if examples := vars(task.splits)[split]:
            answers = task.answer(model, tokenizer, examples)
            baselines = task.baselines(examples)
            measured = {**task.measure(examples, answers), **baselines}
            metrics |= flat(measured, split)
            metrics |= {f"{split}_{name}": value for name, value in task.details(examples, answers).items()}
            count = counted(len(examples), "example")
            session.console.print(f"{split}: {figures(measured)} on {count} never trained on")
    tables = [table for table in [task.table(examples, answers)] if table.row_count]  # without mistakes there is none
    for table in tables:
        session.console.print(table)
    for remark in (remarks := [*task.remarks(measured), *remarks_on_time(session, corpus)]):
        session.console.print(f"note: {remark}", markup=False)
    next_command = task.next_command(session.run.folder)
    found = findings(task, model, tables, measured, list(baselines), remarks, next_command)
    panels = ["loss", "lr", f"dev_{task.headline}"]
    task.end(model)
    conclude(session, metrics, flat(measured, "dev"), panels, f"{task.name}, by example", found)
    session.console.print(f"next: {next_command}", markup=False)


def remarks_on_time(session: Session, corpus: Corpus) -> list[str]:
    """Where a budget of time did not suffice to learn from every example once."""
    share = session.progress.totals.get("tokens", 0.0) / float(corpus.table.lengths.sum())
    if not (minutes := session.budget.minutes) or session.share_done() < 1 or share >= 1:
        return []
    return [f"--minutes {minutes:g} sufficed for {share:.0%} of the training examples; more is likely to help"]
