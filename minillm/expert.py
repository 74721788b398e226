"""Expert iteration: try many prompts, keep the answers that are right, learn them like given ones, and try again.

    round:  draw K answers to each of many prompts → judge → keep what is right → maximum likelihood of given and kept

(Anthony et al. 2017, arXiv:1705.08439; for language models STaR, arXiv:2203.14465, and ReST, arXiv:2308.08998.) Against
policy gradients: a verdict says only "learn it" or "don't", and wrong answers teach nothing; but what is right stays so
whoever drew it, and is learned from many times, with dropout and any optimiser.

Right is an answer that is rewarded at least like the given ones (their median, see `threshold_of`): of a reward of 0 or
1 that is 1, and of a graded one what a person's answer gets. --threshold names another bound.

The budget is cut into rounds of equal length. With --steps a round that learns for n steps tries n times --prompts
prompts before; with --minutes half of its time goes to trying. In no round more prompts are tried than there are. The
learning rate rises and falls in every round, so that it is a finished model that tries.
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, median_low

from minillm import cli, held_out
from minillm.batching import IGNORE, Corpus, Document, answering
from minillm.episodes import Agent, Episode, chance_kept, judge, look, pooled
from minillm.errors import UserError
from minillm.files import fields_from, write_text
from minillm.objective import backward
from minillm.policy import Estimator
from minillm.report import evenly_spaced
from minillm.rewards import Reward, RewardError
from minillm.run import CHECKPOINT, FINDS
from minillm.session import Session, schedule
from minillm.start import documents_of_epoch
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer
from minillm.unjudged import leave_out
from minillm.watch import sound_alarms
from minillm.wording import counted

ANSWERS = 1024  # drawn at once
TRYING = 0.5  # share of a round's time, under --minutes
UNKNOWN = 32  # tokens of an answer, where none is given
JUDGED = 1000  # given answers of which it is seen how they are rewarded
MOST_FINDS = 10  # different answers to a prompt, as in arXiv:2312.06585; more of one say little of others


@dataclass(frozen=True)
class Rounds:
    """The options of --method expert."""

    rounds: int | None = cli.option(None, "of --method expert: how often it tries prompts and learns what was right")
    threshold: float | None = cli.option(
        None, "reward from which on an answer is right (default: what the given answers get, their median)"
    )
    batch_tokens: int | None = cli.option(None, "tokens that a step of it learns from, about")
    dropout: float | None = cli.option(None, "share of activations that it drops in learning")


@dataclass
class Progress:
    """How far it is, in a checkpoint's numbers."""

    tried: int = 0  # prompts, in all rounds
    finds: int = 0  # different right answers, lines of the file FINDS
    first: int = 0  # step of the round's learning
    begun: float = 0.0  # share of the round that was over then


def check(args: Rounds) -> None:
    """UserError for options that the method does not heed."""
    cli.require_positive(args, "rounds", "batch_tokens")
    cli.require_share(args, "dropout", "activations")
    if args.threshold is not None and not math.isfinite(args.threshold):
        raise UserError(f"--threshold {args.threshold} must be a number")
    others = Estimator if args.method == "expert" else Rounds
    for field in dataclasses.fields(others):
        if field.name != "method" and vars(args)[field.name] != field.default:
            option = f"--{field.name.replace('_', '-')}"
            own = "of policy gradients, and has no effect with" if others is Estimator else "of --method expert, not of"
            raise UserError(f"{option} is {own} --method {args.method}; leave it out")


def fit(args: Rounds, session: Session, task: Task, reward: Reward, agent: Agent) -> None:
    """Rounds until the budget is spent. While a round tries, the number of the step stays what it is."""
    threshold = args.threshold if args.threshold is not None else agreed_threshold(session, task, reward)
    progress, model = progress_of(session), agent.model
    finds = Finds(session.run.path(FINDS), progress.finds)
    practice = islice(task.practice(args.seed), progress.tried, None)
    plan, corpus = Plan(args, task, documents_of_epoch(task, agent.tokenizer, args.seed, 0)), None
    for step in session:
        if count := plan.to_try(session.share, progress.tried):
            model.eval()
            examples, corpus = list(islice(practice, count)), None
            episodes = attempt(session, reward, agent, examples, args, progress)
            right = finds.add([episode for episode in episodes if episode.reward >= threshold])
            progress = Progress(progress.tried + count, len(finds), step, plan.place(session.share)[1])
            session.progress.numbers.update(vars(progress))
            tell(session, episodes, count, right, progress)
            continue
        if corpus is None:
            require_finds(session, args, progress)
            corpus = corpus_of_round(args, task, agent.tokenizer, finds, progress.first)
            model.train()
        parts = corpus.share(step - progress.first, args.batch_tokens, args.micro_tokens, session.rank, session.ranks)
        count = session.total(sum(batch.count for batch in parts))
        loss = sum(backward(model, batch.to(agent.device), 1 / count) for batch in parts)
        session.set_lr(schedule(plan.learned(session.share, progress.begun), args.warmup, args.schedule))
        session.add_up()
        norm = session.update(args.clip)
        session.log(loss=session.total(float(loss)), gradient_norm=norm)
        if session.evaluation_is_due() and session.leads:
            held_out.look(session, task, model, agent.tokenizer, samples=finds.last(3))
            sound_alarms(session, task)


def attempt(
    session: Session, reward: Reward, agent: Agent, examples: Sequence, args: Rounds, progress: Progress
) -> list[Episode]:
    """Answers, judged; none where they could not be and --reward-errors leaves them out."""
    if session.team:  # of a step there are several attempts
        session.team.reseed(args.seed, session.progress.step, progress.tried)
    try:
        with chance_kept(session):
            episodes = judge(reward, agent.rollout(agent.own(examples), args.samples))
        return pooled(session, episodes, examples, args.samples)
    except RewardError as error:
        leave_out(session, error)
        return []


def require_finds(session: Session, args: Rounds, progress: Progress) -> None:
    """UserError where a round has tried and nothing reached the --threshold that was given: it would only learn what
    is given, like train_sft.py."""
    records = session.run.read_log(session.progress.records)
    best = max((record["best_reward"] for record in records if "best_reward" in record), default=None)
    if args.threshold is not None and not progress.finds and best is not None and best < args.threshold:
        raise UserError(
            f"not one of the answers to {counted(progress.tried, 'prompt')} reached --threshold {args.threshold:g}, "
            f"the best was rewarded {best:.3g}: start again with a lower one"
        )


class Plan:
    """What of the budget is for what."""

    def __init__(self, args: Rounds, task: Task, given: Sequence[Sequence[Document]]):
        """Unless --prompts says otherwise, about as many tokens are drawn as are learned from."""
        self.rounds, self.steps, self.at_once = args.rounds, args.steps, max(1, ANSWERS // args.samples)
        self.prompts = task.num_practised  # of a round
        if args.steps:
            lengths = [sum(target != IGNORE for target in each.targets) for documents in given for each in documents]
            length = fmean(lengths or [UNKNOWN])
            of_step = args.prompts or max(1, round(args.batch_tokens / (args.samples * length)))
            self.prompts = min(self.prompts, math.ceil(args.steps / args.rounds) * of_step)

    def place(self, share: float) -> tuple[int, float]:
        """The round, from 0 on, and how much of it is over, when so much of the budget is spent."""
        number = min(int(share * self.rounds + 1e-9), self.rounds - 1)
        return number, max(0.0, share * self.rounds - number)

    def to_try(self, share: float, tried: int) -> int:
        """How many prompts to try next, 0 if it is time to learn."""
        number, over = self.place(share)
        if not self.steps and over >= TRYING:
            return 0
        return max(0, min((number + 1) * self.prompts - tried, self.at_once))

    def learned(self, share: float, begun: float) -> float:
        """How much of a round's learning is over that began at that share of the round; where steps are counted, in
        the middle of one."""
        half = 0.5 * self.rounds / self.steps if self.steps else 0.0
        return min(1.0, max(0.0, self.place(share)[1] + half - begun) / (1 - begun))


def corpus_of_round(args: Rounds, task: Task, tokenizer: Tokenizer, finds: "Finds", first: int) -> Corpus:
    """What a round learns from that begins with that step: all that was given and found, in an order of its own."""
    if not (found := finds.documents(tokenizer)) and not task.splits.train:
        raise UserError("not one answer was right, and none is given, so that there is nothing to learn from yet")
    draw = lambda epoch: [*documents_of_epoch(task, tokenizer, args.seed, epoch), *found]  # noqa: E731
    return Corpus(draw, args.seed + first, task.is_redrawn)


def agreed_threshold(session: Session, task: Task, reward: Reward) -> float:
    """`threshold_of`, as the first rank finds it: a reward that draws numbers of its own tells each another one, and
    ranks that find other answers would learn from other steps. RewardError on all of them."""
    with chance_kept(session):
        own = threshold_of(task, reward) if session.leads else None
    return session.exchange(own)[0]


def threshold_of(task: Task, reward: Reward) -> float:
    """The reward from which on an answer is right: the median of what the given ones get, of which at least as many
    are rewarded so. UserError where that tells no right answers from wrong ones."""
    examples = [example for example in evenly_spaced(task.splits.train, JUDGED) if example.answers]
    answers = [example.answers[0] for example in examples]
    given = rewards_of(reward, examples, answers)
    strange = rewards_of(reward, examples, [*answers[1:], *answers[:1]])
    if not given or fmean(strange) >= (threshold := median_low(given)):
        raise UserError(
            "--method expert keeps what is rewarded like the given answers, but these are rewarded no better than "
            "answers to other prompts: say from which reward on an answer is right with --threshold"
        )
    return threshold - 1e-6  # sums of parts are rounded


def rewards_of(reward: Reward, examples: Sequence, answers: Sequence[str]) -> list[float]:
    return [sum(parts) for parts in zip(*reward(examples, answers).values(), strict=True)] if examples else []


def progress_of(session: Session) -> Progress:
    """What the checkpoint says. UserError where it says something else."""
    numbers, where = session.progress.numbers, session.run.path(CHECKPOINT)
    lacking = vars(Progress()).keys() - numbers.keys()
    if lacking == vars(Progress()).keys() and session.progress.step == 0:
        return Progress()
    if lacking:
        raise UserError(f"{where} is no checkpoint of this training: it lacks {min(lacking)!r}")
    return Progress(**fields_from(Progress, {name: numbers[name] for name in vars(Progress())}, where))


def tell(session: Session, episodes: Sequence[Episode], prompts: int, right: int, progress: Progress) -> None:
    """Into the log, and to whoever waits."""
    if not episodes:
        return
    share = right / prompts
    seen = look(episodes, len(episodes) // prompts)
    session.write(**seen, solved=share, finds=progress.finds)
    tried, found = counted(progress.tried, "prompt"), counted(progress.finds, "answer")
    note = f"{tried} tried · of the last ones {share:.0%} solved · {found} found"
    session.bar.update(session.share, session.seconds(), note)


class Finds:
    """The different right answers that were found, in the order in which they were: a file of the run, of which a
    checkpoint counts how many lines there are. What was written behind them by a process that died is forgotten."""

    def __init__(self, path: Path, count: int):
        """UserError where it holds fewer."""
        self.path, self.found = path, {}
        lines = path.read_bytes().split(b"\n")[:count] if count else []
        try:
            records = [json.loads(line) for line in lines]
            self.found = {(each["prompt"], tuple(each["tokens"])): each["answer"] for each in records}
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is spoiled: {error}") from None
        if len(self.found) != count:
            raise UserError(
                f"{path} holds {counted(len(self.found), 'answer')}, but {count} were found; start a new run"
            )
        self.counts: dict[str, int] = {}
        for prompt, _ in self.found:
            self.counts[prompt] = self.counts.get(prompt, 0) + 1
        write_text(path, "".join(map(line_of, self.found.items())))

    def __len__(self) -> int:
        return len(self.found)

    def add(self, episodes: Sequence[Episode]) -> int:
        """Right answers, of which it keeps those that it has not; returns to how many prompts they are. One that was
        cut is no answer."""
        new, episodes = [], [episode for episode in episodes if not episode.is_cut]
        for episode in episodes:
            key = episode.example.prompt, tuple(episode.answer)
            if key not in self.found and self.counts.get(key[0], 0) < MOST_FINDS:
                self.found[key] = episode.said
                self.counts[key[0]] = self.counts.get(key[0], 0) + 1
                new.append((key, episode.said))
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(map(line_of, new))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from None
        return len({id(episode.example) for episode in episodes})

    def documents(self, tokenizer: Tokenizer) -> list[list[Document]]:
        return [[answering(tokenizer.prompt(prompt), tokens)] for prompt, tokens in self.found]

    def last(self, count: int) -> list[dict[str, str]]:
        """For a person."""
        return [{"prompt": prompt, "answer": text} for (prompt, _), text in list(self.found.items())[-count:]]


def line_of(find: tuple[tuple[str, tuple[int, ...]], str]) -> str:
    (prompt, tokens), text = find
    return json.dumps({"prompt": prompt, "answer": text, "tokens": tokens}) + "\n"
