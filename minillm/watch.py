"""What a training by reward shows of itself: looks at the dev set while it goes on, and what came out at the end."""

from collections.abc import Sequence

from torch import nn

from minillm.episodes import Actor, Episode, describe
from minillm.findings import findings
from minillm.report import glance, samples_table, score
from minillm.session import Session
from minillm.tasks.base import Judged
from minillm.tokenizer import Tokenizer

PANELS = ("loss", "solved", "finds", "kl", "entropy", "gradient_norm", "groups_without_variance")  # as far as logged


def report(
    session: Session,
    task: Judged,
    model: nn.Module,
    tokenizer: Tokenizer,
    actor: Actor,
    shown: Sequence[Episode],
    seen: dict[str, float],
) -> None:
    """What the model answers on dev, and some of what it tried."""
    examples, answers = glance(session, task, model, tokenizer)
    tried = [{"prompt": episode.example.prompt, "answer": str(episode.said)} for episode in shown]
    session.report(task.measure(examples, answers), len(examples), samples=tried)
    session.console.print(describe(seen, actor.draws), highlight=False)
    examples, texts = [e.example for e in shown], [str(e.said) for e in shown]
    session.console.print(samples_table(examples, texts, "answers drawn in practice"))


def finish(session: Session, task: Judged, model: nn.Module, tokenizer: Tokenizer, before: dict[str, float]) -> None:
    """Score the model on the examples it was scored on before, and save what remains to be saved."""
    after = score(session.console, task, model, tokenizer, "after")
    examples, answers = glance(session, task, model, tokenizer)
    session.console.print(table := task.table(examples, answers))
    metrics = {**{f"start_{name}": value for name, value in before.items()}, **after}
    names = ["reward", f"dev_{task.headline}", *PANELS]
    panels = [name for name in names if any(name in record for record in session.run.read_log())][:6]
    dev = {name: value for name, value in after.items() if name.startswith("dev")}
    found = findings(task, model, [table], task.measure(examples, answers))
    session.finish(metrics, dev, panels, f"{task.name}, by reward", found)
