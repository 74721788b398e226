"""Reinforcement learning: learn from nothing but a reward for one's own answers.

  python train_rl.py                                             arithmetic, under 4 minutes on two cores
  python train_rl.py --task pronounce --init runs/pronounce-sft  start from a run of train_sft.py
  python train_rl.py --task arithmetic --init MODEL              or from any GPT: a published folder, a .gguf file
  python train_rl.py --task classify --train a.csv               a classifier, from "right" or "wrong" alone
  python train_rl.py --reward my_reward.py:score                 judged by a function of your own
  python train_rl.py --task guess --init runs/guess-sft          a game of several turns, in which it learns to halve
  python train_rl.py --task seq2seq --environment my_game.py:reply --reward my_game.py:score    or one of your own
  python train_rl.py --update clip --passes 2 --kl k3            other estimators; bench/estimators.py judges them all
  python train_rl.py --method expert                             or learn what was right like given answers, in rounds
  python train_rl.py --method soft-q --logged answers.jsonl      or from answers and rewards that others gave

Objective: maximise E[reward] over answers drawn from the model itself. The estimator is REINFORCE (Williams 1992)
with a leave-one-out baseline: for each of P prompts draw K answers from the policy and step along

    1/(P·K) Σ (reward − mean reward of the prompt's other answers) · ∇ Σ log p(token | prompt, tokens before)

where the inner sum runs over all tokens of the answer, the end token included; of an answer of several turns over those
of every turn, and not over what an environment replies between them (minillm/turns.py). The policy is the model at
--temperature: answers are drawn from it, and log p differentiated, at that same temperature. Unless options ask for
it, there is no division by lengths or standard deviations, no clipping of ratios, no KL penalty, and every answer is
used once, by the model that drew it. So this is an unbiased estimate of the gradient of the expected reward, which
AdamW then scales. Dropout is off, so that the model that learns is, up to rounding, the model that drew; the script
looks whether it is, and stops if it is not.

Where a task's own reward judges, --sft-share of the gradient is that of answers which the data gives, one half unless
the task says otherwise: rewards alone first cost a model what they don't ask for. With 0 it is REINFORCE alone.
`--method expert` and `--logged FILE` are other algorithms, in files of their own: minillm/expert.py, minillm/logged.py.
"""

import minillm  # noqa: F401, first: it sets how threads wait

# isort: split

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from rich.console import Console

import train_sft
from minillm import actors, cli, estimator, expert, logged, ranks
from minillm.batching import Batch
from minillm.device import place
from minillm.episodes import Agent, Episode, chance_kept, judge, judge_greedy, look, pieces, pooled, recalled, refer
from minillm.errors import UserError
from minillm.expert import Rounds
from minillm.logged import Entry, Logged
from minillm.objective import backward
from minillm.optim import optimizers_of
from minillm.options import Common, Rewarded, check_common, check_rewarded
from minillm.origin import begin, data_of
from minillm.policy import Estimator, Rewards, is_beyond, moved
from minillm.report import introduce
from minillm.rewards import Reward, RewardError, open_rewards
from minillm.run import Run
from minillm.session import Session
from minillm.soft_q import backward_consistency
from minillm.start import refuse_beside_resume, resumed
from minillm.start_by_reward import given_answers, inheriting, open_agent
from minillm.tasks import TASKS
from minillm.tasks.base import Judged, WritingTask
from minillm.turns import open_environment
from minillm.unjudged import skip
from minillm.values import appraise, backward_value, follow, gae
from minillm.watch import finish, look_before, report, require_parity, sound_alarms

JUDGED = {name: task for name, task in TASKS.items() if actors.is_judged(task)}
LOOK_EVERY = 10  # steps between looks at the KL to the start, which costs a pass of the starting model
UNFINISHED = 1.0  # what an answer that does not end costs with --overlong penalise


@dataclass(frozen=True)
class Args(Estimator, Rounds, Logged, Rewarded, Common):
    task: str = cli.option("arithmetic", "what to learn", choices=tuple(JUDGED))
    init: Path | None = cli.option(
        None,
        "model to start from: a run, a published folder, a .gguf file, an id of the hub "
        "(default: for arithmetic runs/arithmetic-sft, made if missing; for classify and tag from scratch)",
    )


def check(args: Args) -> None:
    """UserError for options that make no sense whatever the data is."""
    check_common(args, [name for name, task in TASKS.items() if actors.is_judged(task)])
    check_rewarded(args)
    estimator.check(args, args.samples)
    expert.check(args)
    logged.check(args)
    actors.check(args, TASKS[args.task])


# ---- the algorithm: roll out, judge, weigh, update --------------------------------------------------


def fit(args: Args, session: Session, task: Judged, reward: Reward, agent: Agent) -> None:
    """Roll out, judge, weigh, update, until the budget is spent."""
    practice = islice(task.practice(args.seed), session.progress.step * args.prompts, None)
    corpus, given_tokens = given_answers(args, task, agent.tokenizer)
    agent.model.eval()  # no dropout: the model that learns is the model that drew
    for step in session:
        examples = list(islice(practice, args.prompts))
        try:
            own = answers(agent, reward, session, examples, args)
        except RewardError as error:
            skip(session, error)
            continue
        is_due = session.evaluation_is_due()
        if is_looked_at := is_due or step % LOOK_EVERY == 0:
            require_parity(agent, own)
        if is_looked_at or args.kl != "off" or args.kl_limit:
            refer(agent, own)
        if args.learns_value:
            appraise(agent, own)
        episodes = pooled(session, own, examples, args.samples)
        weigh(episodes, session, args)
        given = corpus.share(step, given_tokens, args.micro_tokens, session.rank, session.ranks) if corpus else []
        seen = look(episodes, args.samples) | update(agent, episodes, given, session, args)
        session.progress.numbers["beta"] = args.next_beta(beta_of(session, args), seen.get("kl"))
        session.log({"answers": len(episodes)}, **seen)
        if args.kl_limit and seen["kl"] > args.kl_limit:
            session.end(f"the KL to the start is beyond --kl-limit {args.kl_limit} nats an answer")
        if is_due:
            report(session, task, reward, agent, own[:: args.samples][:3], seen)
        if is_looked_at:
            sound_alarms(session, task)


def answers(agent: Agent, reward: Reward, session: Session, examples: Sequence, args: Args) -> list[Episode]:
    """Several to each example of this rank's, drawn and judged, for --baseline greedy the likeliest ones, too.
    RewardError, as if nothing had been drawn."""
    with chance_kept(session):
        episodes = judge(reward, agent.rollout(agent.own(examples), args.samples))
        if args.baseline == "greedy":
            judge_greedy(reward, agent, episodes, args.samples)
    return episodes


def weigh(episodes: list[Episode], session: Session, args: Args) -> None:
    """Fills in the advantage of each token of each answer: of what was earned, less what the options take off it."""
    beta = beta_of(session, args) if args.kl == "reward" else 0.0
    fine = UNFINISHED if args.overlong == "penalise" else 0.0
    earned = [episode.earned(beta, fine * episode.is_cut) for episode in episodes]
    if args.learns_value:
        for episode, own in zip(episodes, earned, strict=True):
            episode.advantages = gae(own, episode.values, args.gae_lambda, args.discount)
        return
    rewards = torch.tensor([sum(each) for each in earned]).view(-1, args.samples)
    greedy = torch.tensor([episode.greedy for episode in episodes[:: args.samples]])
    average = recalled(session, "average reward", None)
    session.progress.numbers["average reward"] = moved(average, rewards)
    advantages = args.advantages(Rewards(rewards, average or 0.0, greedy)).flatten().tolist()
    for episode, advantage in zip(episodes, advantages, strict=True):
        episode.advantages = [advantage] * len(episode.answer)


def update(
    agent: Agent, episodes: list[Episode], given: Sequence[Batch], session: Session, args: Args
) -> dict[str, float]:
    """Of the weights, by each part of the answers and by answers that were given; returns what is watched of it, above
    all the norm of the last gradient, 0 where there is none to follow."""
    seen = follow(agent.model, episodes) if args.learns_value else {}
    counted = [each for each in episodes if args.counts(max(each.advantages, default=0.0), each.is_cut)]
    beta, norm, out_of_bounds = beta_of(session, args), 0.0, 0.0
    share = args.sft_share / max(1, session.total(sum(batch.count for batch in given)))
    for _ in range(args.passes):
        for part in torch.randperm(len(counted)).tensor_split(max(1, min(args.minibatches, len(counted)))):
            some = [counted[i] for i in part.tolist()]  # none, where no answer counts: what was given is still learned
            out_of_bounds += climb(agent, some, beta, args) if some else 0.0
            for batch in given:
                backward(agent.model, batch.to(agent.device), share)
            session.add_up()
            norm = session.update(args.clip, apart=agent.model.value if args.learns_value else None)
    count = args.passes * sum(len(each.answer) for each in counted)
    beyond = {"ratios_beyond": session.total(out_of_bounds) / max(count, 1)} if args.uses_ratios else {}
    return {**seen, "gradient_norm": norm, **beyond}


def climb(agent: Agent, episodes: Sequence[Episode], beta: float, args: Args) -> float:
    """Adds the gradient of what these answers teach, of which each rank computes a part; returns for how many tokens of
    that the ratio is beyond the bounds of --update clip."""
    lengths, out_of_bounds = torch.tensor([float(len(each.answer)) for each in episodes]), 0.0
    counts = (1 - args.sft_share) * args.shares(lengths, agent.actor.longest)
    for drawn, tokens, copies, shares, returns in pieces(agent, episodes, counts, args.all_teach):
        if args.method == "soft-q":
            backward_consistency(agent.model, agent.start, drawn.batch, tokens, shares, beta, agent.temperature)
            continue
        if args.looks_back:
            tokens = tokens._replace(now=agent.logprobs(drawn))
            out_of_bounds += float((copies * is_beyond(tokens, args)).sum())
        weights = drawn.weights(args.weights(tokens, shares, beta), agent.dtype)
        backward(agent.model, drawn.batch, weights, agent.temperature)
        if args.learns_value:
            backward_value(agent.model, drawn.batch, returns, shares, args.value_coefficient)
    return out_of_bounds


def beta_of(session: Session, args: Args) -> float:
    return recalled(session, "beta", args.beta)


# ---- where it starts, and how it ends ---------------------------------------------------------------


def find_start(args: Args, console: Console, team: ranks.Team | None = None) -> Path | None:
    """What to start from; for arithmetic a run is made where there is none. Who only has to choose is right now and
    then by chance and may start from scratch, None; who writes may not: UserError."""
    if args.init or not issubclass(TASKS[args.task], WritingTask):
        return args.init
    if args.task != "arithmetic":
        raise UserError(f"--task {args.task} needs a model to start from: give a run of train_sft.py with --init RUN")
    same = {name: vars(args)[name] for name in ("task", "seed", "precision", "kernels", "options")}
    out = Path(f"runs/{TASKS[args.task].variant(args.options)}-sft")
    return train_sft.made(train_sft.Args(out=out, **same), console, team)


def method_of(args: Args, log: Sequence[Entry], task: Judged, agent: Agent) -> Callable[..., None]:
    """The loop that learns. UserError for a log that teaches nothing, before anything is begun."""
    if args.logged:
        return partial(logged.fit, logged.to_learn_from(log, args, task, agent))
    return expert.fit if args.method == "expert" else fit


def train(args: Args, console: Console | None = None) -> Run:
    """From the arguments to the finished run folder. UserError for all that the user can mend."""
    started, args = time.monotonic(), cli.with_paths(args)
    refuse_beside_resume(args) if args.resume else check(args)
    with ranks.joined() as team, ranks.opened(team, args, f"{TASKS[args.task].variant(args.options)}-rl") as run:
        console = ranks.console_of(team, console)
        if args.resume:
            args = resumed(dataclasses.replace(args, resume=run.folder), "rl", TASKS)
        else:
            args = inheriting(args, find_start(args, console, team), TASKS)
        placement = ranks.alike(team, place(args.precision, args.kernels))
        args = dataclasses.replace(args, precision=placement.precision)
        task = TASKS[args.task](args.options, args.seed)
        log = logged.read(args)
        data = data_of(run, task, log)
        if args.environment:
            task.environment = open_environment(args.environment, args.turns, args.reward_seconds)
        actors.require_actor(task)
        is_text = isinstance(task, WritingTask)
        reward = open_rewards(args.reward, task.rewards, placement.device, is_text, args.reward_seconds)
        args, agent = open_agent(args, run, task, placement, team)
        check(args)
        learn = method_of(args, log, task, agent)
        session = Session(args, run, agent.model, optimizers_of(agent.model, args), console, team)
        begin(session, "rl", args, task, agent.tokenizer, data, started)
        introduce(console, placement, task, agent.model, run)
        before = look_before(args, session, task, reward, agent)
        learn(args, session, task, reward, agent)
        finish(args, session, task, reward, agent, before)
    return run


def main() -> None:
    train(cli.parse_with_task(Args, JUDGED, __doc__))


if __name__ == "__main__":
    cli.run(main)
