"""What a training by reward shows of itself: looks at the dev set while it goes on, and what came out at the end."""

from collections.abc import Mapping, Sequence
from typing import Any

from minillm.alarms import new_alarms, raised
from minillm.episodes import Episode, describe
from minillm.findings import findings
from minillm.gpt import GPT
from minillm.metrics import average
from minillm.report import SAMPLES, evenly_spaced, flat, glance, samples_table, score, score_of
from minillm.rewards import Reward
from minillm.session import Session
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer


def report(
    session: Session,
    task: Task,
    reward: Reward,
    model: GPT,
    tokenizer: Tokenizer,
    shown: Sequence[Episode],
    seen: dict[str, float],
) -> None:
    """What the model answers on dev, what it would earn for it, and some of what it tried."""
    examples, answers = glance(session, task, model, tokenizer)
    measured = task.measure(examples, answers)
    earned = [sum(parts) for parts in zip(*reward(examples, answers).values(), strict=True)]
    tried = [{"prompt": episode.example.prompt, "answer": episode.text} for episode in shown]
    greedy = flat({"reward": average(earned)}, "dev") if len(earned) > 1 else {}
    session.report(measured, len(examples), **greedy, samples=tried)
    session.console.print(describe(seen), highlight=False)
    examples, texts = [e.example for e in shown], [e.text for e in shown]
    session.console.print(samples_table(examples, texts, "answers drawn in practice"))
    keep(session, score_of(task, measured))


def keep(session: Session, score: float) -> None:
    """Remembers the weights if they are the best so far; ends a training that gets no better, under --patience."""
    best, patience = session.budget.keep == "best", session.budget.patience
    if best or patience:
        session.keep_if_best(score)
    if patience and session.progress.worse >= patience:
        session.end(f"the last {patience} looks at the dev set were no better than the best before")


def look_again(session: Session, task: Task, model: GPT, tokenizer: Tokenizer) -> None:
    """Under --keep best or --patience, a look before the first step or after the last."""
    if session.budget.keep == "best" or session.budget.patience:
        session.keep_if_best(score_of(task, task.measure(*glance(session, task, model, tokenizer))))


def sound_alarms(session: Session, task: Task, final: Mapping[str, Any] | None = None) -> None:
    """Says what goes wrong when it is first seen, and writes it into the log; `final` is what was measured at the end
    and does not stand there yet."""
    records = [*session.run.read_log(session.progress.records), *([final] if final else [])]
    for name, says in new_alarms(records, task.headline, task.lower_is_better).items():
        session.write(alarm=name, says=says)
        session.console.print(f"alarm at step {session.progress.step}, {name}: {says}", markup=False, highlight=False)


def finish(session: Session, task: Task, model: GPT, tokenizer: Tokenizer, before: dict[str, float]) -> None:
    """Score the model on the examples it was scored on before, and save what remains to be saved."""
    after = score(session.console, task, model, tokenizer, "after")
    answers = task.answer(model, tokenizer, shown := evenly_spaced(task.splits.dev, SAMPLES))
    session.console.print(table := samples_table(shown, answers, "held-out examples, greedy"))
    metrics = {**{f"start_{name}": value for name, value in before.items()}, **after}
    panels = ["reward", f"dev_{task.headline}", "kl", "entropy", "gradient_norm", "groups_without_variance"]
    dev = {name: value for name, value in after.items() if name.startswith("dev")}
    sound_alarms(session, task, dev)
    remarks = [f"{name}: {says}" for name, says in raised(session.run.read_log()).items()]
    found = findings(task, model, [table], task.measure(shown, answers), remarks=remarks)
    session.finish(metrics, dev, panels, f"{task.name}, by reward", found)
