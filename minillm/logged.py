"""Q-learning from logged answers: somebody gave them, somebody rewarded them, and nothing is drawn while one learns.

  {"prompt": "12+34=", "answer": "046", "reward": 1}      a record each, as many to a prompt as there are

What is asked of the model is the equation of soft_q.py on each of these answers. It holds whoever gave them and however
likely that was, so that nobody need know whose they are. Where the log has all answers to a prompt, whatever their
shares, the one solution is π* ∝ π_start · exp(reward / β); of what a log lacks it says nothing but what the model makes
of the rest. A number added to all rewards changes π* in nothing, so their mean is taken off first: five stars for the
best or ten, the values, which start at 0, need not learn that.

`python -m minillm rollout RUN` writes such a file, of a model's own answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from minillm import cli, records
from minillm.batching import Batch
from minillm.episodes import MOST_REWARD, Agent, Episode, pieces
from minillm.errors import UserError
from minillm.held_out import look
from minillm.objective import backward
from minillm.policy import Estimator
from minillm.rewards import Reward
from minillm.session import Session
from minillm.soft_q import backward_consistency
from minillm.start_by_reward import given_answers
from minillm.tasks.base import Example, Task
from minillm.tasks.files import Fields
from minillm.tokenizer import Tokenizer
from minillm.watch import sound_alarms

OPTION = "--logged-fields"
STRANGE = ("passes", "minibatches", "overlong", "kl_limit", "shuffle_advantages")  # options of answers that are drawn


@dataclass(frozen=True)
class Logged:
    """The options of learning from a log."""

    logged: Path | None = cli.option(
        None, "learn by --method soft-q from this file of answers with their rewards, and draw none"
    )
    logged_fields: str | None = cli.option(None, "which of its fields are prompt, answer, reward, e.g. reward=stars")


@dataclass(frozen=True)
class Entry:
    place: str = field(repr=False)  # where it stands, for messages; the same answers elsewhere are the same data
    prompt: str
    answer: str
    reward: float


def check(args: Any) -> None:
    """UserError for options that make no sense beside a log, or without one."""
    if not args.logged:
        if args.logged_fields:
            raise UserError(f"{OPTION} says what is what in the file of --logged: give that, too")
        return
    if args.method != "soft-q":
        raise UserError(f"--logged is for --method soft-q: --method {args.method} learns from the model's own answers")
    defaults = Estimator()
    for name in STRANGE:
        if vars(args)[name] != vars(defaults)[name]:
            raise UserError(
                f"--{name.replace('_', '-')} is for answers that the model draws, not for those of --logged"
            )


def read(args: Logged) -> list[Entry]:
    """What the file of --logged holds, in its order; nothing without one. UserError, with the line."""
    if not args.logged:
        return []
    fields = Fields(args.logged_fields, ("prompt", "answer", "reward"), OPTION)
    return [entry_of(Record(*record), fields) for record in records.read(args.logged)]


class Record(records.Record):
    option = OPTION


def entry_of(record: Record, fields: Fields) -> Entry:
    """An answer is learned to the last blank, and may be empty."""
    reward = record.number(fields.name("reward"))
    if not abs(reward) < MOST_REWARD:
        raise UserError(f"{record.place}: the reward is {reward}: give a number below {MOST_REWARD:.0e}")
    answer = record.text_as_it_is(fields.name("answer"))
    return Entry(record.place, fields.text(record, "prompt"), answer, reward)


# ---- the algorithm -----------------------------------------------------------------------------------


def fit(episodes: Sequence[Episode], args: Any, session: Session, task: Task, reward: Reward, agent: Agent) -> None:
    """Batches of the log, see `to_learn_from`, in shuffled epochs, until the budget is spent."""
    corpus, given_tokens = given_answers(args, task, agent.tokenizer)
    agent.model.eval()  # no dropout, as the start that it is compared with has none
    for step in session:
        some = [episodes[i] for i in batch_of(step, len(episodes), args.prompts * args.samples, args.seed)]
        given = corpus.share(step, given_tokens, args.micro_tokens, session.rank, session.ranks) if corpus else []
        count = session.total(sum(batch.count for batch in given))
        loss = session.total(climb(agent, some, args) + imitate(agent, given, args.sft_share / max(1, count)))
        session.add_up()
        session.log({"answers": len(some)}, loss=loss, gradient_norm=session.update(args.clip))
        if session.evaluation_is_due() and session.leads:
            look(session, task, agent.model, agent.tokenizer)
            sound_alarms(session, task)


def batch_of(step: int, count: int, size: int, seed: int) -> list[int]:
    """Which of `count` answers a step learns from, about `size` of them. In an epoch each comes once; its order depends
    on the seed and its number alone, so that a training goes on exactly where it was interrupted."""
    epoch, part = divmod(step, parts := max(1, round(count / size)))
    return np.array_split(np.random.default_rng((seed, epoch)).permutation(count), parts)[part].tolist()


def climb(agent: Agent, episodes: Sequence[Episode], args: Any) -> float:
    """Adds the gradient of what these answers lack, of several ranks that of its part; returns that loss, see
    soft_q.py."""
    lengths = torch.tensor([float(len(each.answer)) for each in episodes])
    counts, loss = (1 - args.sft_share) * args.shares(lengths, agent.actor.longest), 0.0
    for drawn, tokens, _, shares, _ in pieces(agent, episodes, counts, args.all_teach):
        more = backward_consistency(agent.model, agent.start, drawn.batch, tokens, shares, args.beta, agent.temperature)
        loss += float(more)
    return loss


def imitate(agent: Agent, batches: Sequence[Batch], weight: float) -> float:
    """The same of answers that the data gives, each token of which weighs so much."""
    return sum(float(backward(agent.model, batch.to(agent.device), weight)) for batch in batches)


# ---- from texts to tokens ----------------------------------------------------------------------------


def to_learn_from(entries: Sequence[Entry], args: Logged, task: Task, agent: Agent) -> list[Episode]:
    """All of the log but what is held out; among the task's notes what that is. UserError where it teaches nothing."""
    held_out = {example.prompt for example in (*task.splits.dev, *task.splits.test)}
    kept = [entry for entry in entries if entry.prompt not in held_out]
    rewards = [entry.reward for entry in kept]
    if not kept:
        raise UserError(f"all prompts of --logged {args.logged} are held out, too; there is nothing to learn from")
    if min(rewards) == max(rewards):
        raise UserError(
            f"all answers of --logged {args.logged} are rewarded {rewards[0]:g}: there is nothing to tell good ones "
            "from bad ones by; learn them with train_sft.py if they are good"
        )
    mean, prompts = fmean(rewards), len({entry.prompt for entry in kept})
    note = f"{len(kept):,} logged answers to {prompts:,} prompts, mean reward {mean:.3g}"
    note += f"; {len(entries) - len(kept):,} more, whose prompts are held out, are left out" if kept != entries else ""
    task.notes = [*task.notes, note]
    most = agent.model.config.max_seq_len
    return [episode_of(entry, agent.tokenizer, most, entry.reward - mean) for entry in kept]


def episode_of(entry: Entry, tokenizer: Tokenizer, most: int, advantage: float) -> Episode:
    """UserError for what the model cannot read."""
    try:
        prompt, answer = tokenizer.prompt(entry.prompt), [*tokenizer.encode(entry.answer), tokenizer.end]
    except ValueError as error:  # of a vocabulary of symbols
        raise UserError(f"{entry.place}: this model does not know what that is written in: {error}") from None
    if (size := len(prompt) + len(answer) - 1) > most:
        raise UserError(
            f"{entry.place}: prompt and answer take {size} tokens, but this model reads at most {most}; remove the line"
        )
    example = Example(entry.prompt, ())
    return Episode(example, prompt, answer, (), entry.answer, reward=entry.reward, advantages=[advantage] * len(answer))
