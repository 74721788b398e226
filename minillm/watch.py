"""What a training by reward shows of itself: looks at the dev set while it goes on, and what it changed in the end.

Greedy answers are one point of a policy. Before and after the training, on the same held-out examples, it is also seen
how good the answers are that it draws, how sure of them it is, how far from its start, and how likely it finds those
that are given; each with an interval, and with that of the difference, which is paired and so much narrower.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from minillm import state
from minillm.alarms import new_alarms, raised
from minillm.episodes import Agent, Episode, judge, refer, rewards_of, row_of
from minillm.errors import UserError
from minillm.evaluate import nats
from minillm.findings import comparison, conclude, findings
from minillm.glossary import named
from minillm.held_out import heed
from minillm.metrics import Interval, average, difference, mean, pass_at, ratio
from minillm.report import cells, evenly_spaced, flat, glance, points, samples_table, score, score_of
from minillm.rewards import Reward, RewardError, exact
from minillm.session import Session
from minillm.tasks.base import Judged
from minillm.unjudged import leave_out_look, require_learned, skipped
from minillm.values import without_value
from minillm.wording import counted

PANELS = ("loss", "solved", "finds", "kl", "entropy", "gradient_norm", "groups_without_variance")  # as far as logged
DRAWN = 8  # answers to each example before and after
AT_ONCE = 1024  # of them
AFFORDABLE = 2e12  # multiplications for all of them, at most: a minute or so
LEAST = 100  # examples, whatever that takes
PARITY = 128  # answers, about, on which it is looked whether they are those of the model that learns
APART = {
    torch.float32: 0.001,
    torch.bfloat16: 0.1,
    torch.float16: 0.02,
}  # nats a token, mean: more is no rounding

Measured = Mapping[str, Interval]


def require_parity(agent: Agent, episodes: Sequence[Episode]) -> None:
    """UserError where the answers were drawn with other probabilities than those that are learned from, but for
    rounding: what is then climbed would not be the gradient of the expected reward."""
    if not episodes:
        return
    # All answers to some of the prompts, as the update computes them together.
    prompts = [list(answers) for _, answers in groupby(episodes, key=lambda episode: tuple(episode.prompt))]
    some = [episode for answers in prompts[:: max(1, len(episodes) // PARITY)] for episode in answers]
    now, then = agent.logprobs(agent.batch(some)), row_of([e.logprobs for e in some]).float()
    apart = float((now - then).abs().mean())
    if not apart <= (most := APART.get(agent.model.compute_dtype, APART[torch.float32])):
        raise UserError(
            f"answers were drawn with a log p that differs by {apart:.3f} nats a {agent.actor.draws} from the one that "
            f"learns, more than the {most} of rounding; try --precision fp32 --kernels reference, and report it"
        )


def report(
    session: Session, task: Judged, reward: Reward, agent: Agent, shown: Sequence[Episode], seen: Mapping[str, float]
) -> None:
    """What the model answers on dev, what it would earn for it, and some of what it tried, by the first rank.
    RewardError on all of them, once all else is seen to."""
    failed = look_at_dev(session, task, reward, agent, shown, seen) if session.leads else None
    if said := session.exchange(failed and str(failed))[0]:
        session.save()
        leave_out_look(session, failed or RewardError(said))


def look_at_dev(
    session: Session, task: Judged, reward: Reward, agent: Agent, shown: Sequence[Episode], seen: Mapping[str, float]
) -> RewardError | None:
    """The same; returns why answers have no rewards, if they have none."""
    try:
        examples, answers = glance(session, task, agent.model, agent.tokenizer)
    except RewardError as error:  # of an environment, without which there are no answers
        return error
    measured, failed, greedy = task.measure(examples, answers), None, {}
    try:
        earned = [sum(parts) for parts in zip(*reward(examples, [*map(task.said, answers)]).values(), strict=True)]
        greedy = flat({"reward": average(earned)}, "greedy") if len(earned) > 1 else {}
    except RewardError as error:
        failed = error
    tried = [{"prompt": episode.example.prompt, "answer": str(episode.said)} for episode in shown]
    session.report(measured, len(examples), **greedy, samples=tried)
    session.console.print(describe(seen, agent.actor.draws), highlight=False)
    prompts, texts = [e.example for e in shown], [e.said for e in shown]
    session.console.print(samples_table(prompts, texts, "answers drawn in practice"))
    heed(session, score_of(task, measured))
    return failed


def describe(seen: Mapping[str, float], draws: str) -> str:
    """One line of what is watched beside the reward; `draws` is what an answer is made of."""
    kl = f"KL to the start {seen['kl']:.2f} nats an answer · " if "kl" in seen else ""
    return (
        f"reward {seen['reward']:.3f} · {kl}entropy {seen['entropy']:.3f} nats a {draws} · "
        f"gradient norm {seen['gradient_norm']:.2f} · {seen['groups_without_variance']:.0%} of groups without variance"
    )


def remember(session: Session, task: Judged, agent: Agent) -> None:
    """A look for --keep and --patience before the first step or after the last, so that no training need leave
    anything worse."""
    if session.budget.keep == "best" or session.budget.patience:
        session.keep_if_best(score_of(task, task.measure(*glance(session, task, agent.model, agent.tokenizer))))


def take_best(session: Session, task: Judged, agent: Agent) -> None:
    """Under --keep best the weights of the best look, the start's and the last one's among them."""
    if session.budget.keep == "best":
        remember(session, task, agent)
        session.take_best()


def sound_alarms(session: Session, task: Judged, final: Mapping[str, Any] | None = None) -> None:
    """Says what goes wrong when it is first seen, and writes it into the log; `final` is what was measured at the end
    and does not stand there yet. The first rank does."""
    if not session.leads:
        return
    records = [*session.run.read_log(session.progress.records), *([final] if final else [])]
    for name, says in new_alarms(records, task.headline, task.lower_is_better, final is not None).items():
        session.write(alarm=name, says=says)
        session.console.print(f"alarm at step {session.progress.step}, {name}: {says}", markup=False, highlight=False)


# ---- before and after ------------------------------------------------------------------------------


def watched(args: Any, task: Judged, model: nn.Module, longest: int) -> Sequence[Any]:
    """The dev examples to which answers are drawn: as many as --watch says, or all, as far as that is affordable."""
    cost = DRAWN * longest * sum(p.numel() for p in model.parameters())
    count = max(LEAST, int(AFFORDABLE / cost)) if args.watch is None else args.watch
    return evenly_spaced(task.splits.dev, count) if count else []


def look_before(args: Any, session: Session, task: Judged, reward: Reward, agent: Agent) -> dict[str, Measured]:
    """At the start, also where the training goes on; a new one has it in its log. The first rank looks, for all."""
    if not session.leads:
        return {}
    before = look_at(args, session, task, reward, replace(agent, model=agent.start))
    if not session.progress.records:
        session.write(**flat(before["dev"], "dev"))
    if session.progress.best is None:
        remember(session, task, agent)
    return before


def look_at(args: Any, session: Session, task: Judged, reward: Reward, agent: Agent) -> dict[str, Measured]:
    """What is known of a model, by split: the task's metrics of its greedy answers to all that is held out, and of dev
    what `survey` finds."""
    model, is_start = agent.model, agent.model is agent.start
    measured = score(session.console, task, model, agent.tokenizer, "before" if is_start else "after")
    if not (examples := watched(args, task, model, agent.actor.longest)):
        return measured
    model.eval()
    drawn: Measured = {}
    try:
        with aside(args.seed):
            judged = [judge(reward, agent.rollout(part, DRAWN)) for part in parts(examples, AT_ONCE // DRAWN)]
        episodes = [episode for part in judged for episode in part]
        if not is_start:
            refer(agent, episodes)
        drawn = survey(episodes)
    except RewardError as error:
        leave_out_look(session, error)
    documents = [task.documents(example, agent.tokenizer, None) for example in examples]
    measured["dev"] = {**measured["dev"], **drawn, **likelihood(model, documents)}
    return measured


def survey(episodes: Sequence[Episode]) -> dict[str, Interval]:
    """Of the answers that were drawn, DRAWN of each example in a row: pass@1 and pass@DRAWN, by being right to the last
    letter; the mean reward; the entropy, in nats a draw, such as a token; and where the reference is known the KL to
    it, in nats an answer."""
    rewards = rewards_of(episodes, DRAWN)
    is_right = exact([e.example for e in episodes], [e.said for e in episodes])["exact"]
    right = torch.tensor(is_right).view(-1, DRAWN).sum(dim=1).int().tolist()
    surprise = -by_example(episodes, lambda e: sum(e.logprobs))
    found = {
        "pass_1": mean([pass_at(1, count, DRAWN) for count in right]),
        f"pass_{DRAWN}": mean([pass_at(DRAWN, count, DRAWN) for count in right]),
        "reward": average(rewards.double().mean(dim=1).tolist()),
        "entropy": ratio(surprise.tolist(), by_example(episodes, lambda e: len(e.logprobs)).tolist(), form=".3f"),
    }
    if episodes[0].reference:
        found["kl"] = average((by_example(episodes, lambda e: e.kl) / DRAWN).tolist())
    return found


def by_example(episodes: Sequence[Episode], value: Callable[[Episode], float]) -> Tensor:
    """The sums of each example's DRAWN answers, float64."""
    return torch.tensor([value(e) for e in episodes], dtype=torch.float64).view(-1, DRAWN).sum(dim=1)


def likelihood(model: nn.Module, documents: Sequence[Sequence[Any]]) -> dict[str, Interval]:
    """How likely the given answers are: −log p, in nats a draw, whatever temperature answers are drawn at."""
    found = iter(nats(model, [document for each in documents for document in each]))
    surprise = [sum(next(found) for _ in each) for each in documents]
    counts = [sum(document.num_asked for document in each) for each in documents]
    return {"given": ratio(surprise, counts, form=".3f")}


@contextmanager
def aside(seed: int) -> Iterator[None]:
    """Within it chance is that of the seed; the training's own is as if nothing had been drawn."""
    tensors: dict[str, Tensor] = {}
    saved = state.save_generators(tensors)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        state.load_generators(saved, tensors)


def parts(examples: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (examples[i : i + size] for i in range(0, len(examples), size))


def changes(before: Measured, after: Measured) -> dict[str, Interval]:
    """By how much each metric is higher than it was, paired."""
    both = [name for name in after if name in before and before[name].changes is not None]
    return {name: difference(after[name], before[name]) for name in both if after[name].changes is not None}


def table_of(split: str, before: Measured, after: Measured) -> Table:
    table = Table("metric", "before", "after", "difference", title=f"what it changed, on {split}", title_justify="left")
    differences = changes(before, after)
    for name, value in after.items():
        change = points(differences[name]) if name in differences else ""
        table.add_row(*cells(named(name), str(before.get(name, "")), str(value), change))
    return table


def finish(
    args: Any, session: Session, task: Judged, reward: Reward, agent: Agent, before: Mapping[str, Measured]
) -> None:
    """Takes the model that is to be kept, shows and saves what it became and what remains to be saved; the first rank
    does. UserError for one that has not learned at all."""
    require_learned(session)
    if not session.leads:
        return
    take_best(session, task, agent)
    model = without_value(agent.model)
    after = look_at(args, session, task, reward, agent)
    simple = {split: task.baselines(vars(task.splits)[split]) for split in after}
    after = {split: {**measured, **simple[split]} for split, measured in after.items()}
    tables = [table_of(split, before[split], after[split]) for split in after]
    tables.append(task.table(*glance(session, task, model, agent.tokenizer)))
    tables = [table for table in tables if table.row_count]
    for table in tables:
        session.console.print(table)
    metrics: dict[str, Any] = {}
    for split, measured in after.items():
        metrics |= {f"start_{name}": value for name, value in flat(before[split], split).items()}
        metrics |= flat(measured, split)
        metrics |= {f"change_{name}": value for name, value in flat(changes(before[split], measured), split).items()}
    names = ["reward", f"dev_{task.headline}", *PANELS]
    panels = [name for name in names if any(name in record for record in session.run.read_log())][:6]
    sound_alarms(session, task, flat(after["dev"], "dev"))
    remarks = [f"{name}: {says}" for name, says in raised(session.run.read_log()).items()]
    if count := skipped(session.run):
        metrics["skipped"] = count
        remarks.append(f"{counted(count, 'time')} answers were left out, as the reward failed: see log.jsonl")
        session.console.print(f"note: {remarks[-1]}", markup=False)
    folder = session.run.folder
    next_command = comparison(folder, args.init) if args.init else task.next_command(folder)
    found = findings(task, model, tables, after["dev"], [*simple["dev"]], remarks, next_command)
    conclude(session, metrics, flat(after["dev"], "dev"), panels, f"{task.name}, by reward", found)
    session.console.print(f"next: {next_command}", markup=False)
