"""Reinforcement learning: learn from nothing but a reward for one's own answers.

  python train_rl.py                                             arithmetic, under 4 minutes on two cores
  python train_rl.py --task pronounce --init runs/pronounce-sft  start from a run of train_sft.py
  python train_rl.py --task arithmetic --init MODEL              or from any GPT: a published folder, a .gguf file
  python train_rl.py --task classify --train a.csv               a classifier, from "right" or "wrong" alone
  python train_rl.py --reward my_reward.py:score                 judged by a function of your own
  python train_rl.py --update clip --passes 2 --kl k3            other estimators; bench/estimators.py judges them all
  python train_rl.py --method expert                             or learn what was right like given answers, in rounds

Objective: maximise E[reward] over answers drawn from the model itself. The estimator is REINFORCE (Williams 1992)
with a leave-one-out baseline: for each of P prompts draw K answers from the policy and step along

    1/(P·K) Σ (reward − mean reward of the prompt's other answers) · ∇ Σ log p(token | prompt, tokens before)

where the inner sum runs over all tokens of the answer, the end token included. The policy is the model at
--temperature: answers are drawn from it, and log p differentiated, at that same temperature. Unless options ask for
it, there is no division by lengths or standard deviations, no clipping of ratios, no KL penalty, and every answer is
used once, by the model that drew it. So this is an unbiased estimate of the gradient of the expected reward, which
AdamW then scales. Dropout is off, so that the model that learns is, up to rounding, the model that drew; the script
looks whether it is, and stops if it is not.

Where a task's own reward judges, --sft-share of the gradient is that of answers which the data gives, one half unless
the task says otherwise: rewards alone first cost a model what they don't ask for. With 0 it is REINFORCE alone.
`--method expert` is another algorithm, in a file of its own: minillm/expert.py.
"""

import minillm  # noqa: F401, first: it sets how threads wait

# isort: split

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

import train_sft
from minillm import actors, cli, estimator, expert, ranks
from minillm.actors import actor_of, is_judged, require_actor, unweighted
from minillm.batching import Batch, Corpus, by_length
from minillm.device import place
from minillm.episodes import (
    Actor,
    Episode,
    distinct,
    logprobs_of,
    look,
    recalled,
    refer,
    require_parity,
    rewards_of,
    tokens_of,
)
from minillm.errors import UserError
from minillm.expert import Rounds
from minillm.findings import comparison
from minillm.generate import GREEDY, Sampling
from minillm.objective import backward
from minillm.optim import optimizers_of
from minillm.options import Common, Optimisation, check_common, check_draws
from minillm.origin import begin, data_of
from minillm.policy import Estimator, Rewards, is_beyond, moved
from minillm.report import flat, introduce
from minillm.rewards import Reward, open_rewards
from minillm.run import Run
from minillm.session import Session
from minillm.soft_q import backward_consistency
from minillm.start import (
    complete_by_reward,
    documents_of_epoch,
    inherited_options,
    learner,
    open_policy,
    refuse_beside_resume,
    resumed,
)
from minillm.tasks import TASKS
from minillm.tasks.base import Judged, WritingTask
from minillm.tokenizer import Tokenizer
from minillm.values import appraise, backward_value, follow, gae, with_value, without_value
from minillm.watch import finish, look_at, remember, report, sound_alarms, take_best

JUDGED = {name: task for name, task in TASKS.items() if is_judged(task)}
LOOK_EVERY = 10  # steps between looks at the KL to the start, which costs a pass of the starting model
UNFINISHED = 1.0  # what an answer that does not end costs with --overlong penalise


@dataclass(frozen=True)
class Args(Estimator, Rounds, Optimisation, Common):
    task: str = cli.option("arithmetic", "what to learn", choices=tuple(JUDGED))
    init: Path | None = cli.option(
        None,
        "model to start from: a run, a published folder, a .gguf file, an id of the hub "
        "(default: for arithmetic runs/arithmetic-sft, made if missing; for classify and tag from scratch)",
    )
    reward: tuple[str, ...] = cli.option(
        (), "of the task by name, FILE.py:FUNCTION, or a run; =WEIGHT behind it; may be given several times"
    )
    prompts: int | None = cli.option(
        None, "prompts in a step, or tried for one of --method expert (default here and below: what suits the task)"
    )
    samples: int | None = cli.option(None, "answers drawn for each prompt")
    temperature: float | None = cli.option(
        None, "of the policy: answers are drawn, and gradients taken, at this temperature"
    )
    micro_tokens: int = cli.option(65_536, "tokens computed at once; a step is cut up, with the same gradient")
    watch: int | None = cli.option(
        None,
        "dev examples to which 8 answers are drawn before and after; 0: none (default: all, fewer for large models)",
    )
    evaluations: int = cli.option(4, "looks at the dev set after the first, the last one included")


def check(args: Args) -> None:
    """UserError for options that make no sense whatever the data is."""
    check_common(args, [name for name, task in TASKS.items() if is_judged(task)])
    check_draws(args)
    estimator.check(args, args.samples)
    expert.check(args)
    actors.check(args, TASKS[args.task])


# ---- the algorithm: roll out, judge, weigh, update --------------------------------------------------


def judge(reward: Reward, episodes: list[Episode]) -> list[Episode]:
    """Fills in the reward of each and its parts, all of them judged at once; returns the same episodes."""
    parts = reward([episode.example for episode in episodes], [episode.said for episode in episodes])
    for i, episode in enumerate(episodes):
        episode.parts = {name: float(values[i]) for name, values in parts.items()}
        episode.reward = sum(episode.parts.values())
    return episodes


def weigh(episodes: Sequence[Episode], greedy: Tensor | None, session: Session, args: Args) -> list[list[float]]:
    """The advantage of each token of each answer: of what was earned, less what the options take off it."""
    beta = beta_of(session, args) if args.kl == "reward" else 0.0
    fine = UNFINISHED if args.overlong == "penalise" else 0.0
    earned = [episode.earned(beta, fine * episode.is_cut) for episode in episodes]
    if args.learns_value:
        return [gae(own, e.values, args.gae_lambda, args.discount) for own, e in zip(earned, episodes, strict=True)]
    rewards = torch.tensor([sum(each) for each in earned]).view(-1, args.samples)
    average = recalled(session, "average reward", None)
    session.progress.numbers["average reward"] = moved(average, rewards)
    advantages = args.advantages(Rewards(rewards, average or 0.0, greedy)).flatten().tolist()
    return [[advantage] * len(e.answer) for advantage, e in zip(advantages, episodes, strict=True)]


def climb(
    model: nn.Module,
    start: nn.Module,
    actor: Actor,
    episodes: Sequence[Episode],
    advantages: Sequence[Sequence[float]],
    args: Args,
    beta: float,
) -> float:
    """Adds the gradient of what these answers teach, equal ones scored once, for all of them; returns for how many
    tokens the ratio is beyond the bounds of --update clip."""
    weight = next(model.parameters())
    shares = (1 - args.sft_share) * args.shares(torch.tensor([float(len(e.answer)) for e in episodes]), actor.longest)
    copies, out_of_bounds = distinct(episodes, advantages), 0.0
    # Without advantage an answer teaches nothing, unless it has more to teach than that.
    has_more = args.looks_back or args.learns_value or args.method == "soft-q"
    taught = [i for i in copies if has_more or any(advantages[i])]
    for part in by_length([len(episodes[i].prompt) + len(episodes[i].answer) for i in taught], args.micro_tokens):
        some = [taught[j] for j in part]
        drawn = actor.batch([episodes[i] for i in some], weight.device)
        known = tokens_of([episodes[i] for i in some], [advantages[i] for i in some])
        count = torch.tensor([copies[i] for i in some])[known.answer]
        share = torch.tensor([float(shares[i]) for i in some], dtype=torch.float64)[known.answer] * count
        if args.method == "soft-q":
            backward_consistency(model, start, drawn.batch, known, share, beta, args.temperature)
            continue
        if args.looks_back:
            known = known._replace(now=logprobs_of(model, drawn, args.temperature).cpu())
            out_of_bounds += float((count * is_beyond(known, args)).sum())
        weights = drawn.weights(args.weights(known, share, beta), weight.dtype)
        backward(model, drawn.batch, weights, args.temperature)
        if args.learns_value:
            returns = known.advantages + torch.tensor([value for i in some for value in episodes[i].values])
            backward_value(model, drawn.batch, returns, share, args.value_coefficient)
    return out_of_bounds


def learn(
    model: nn.Module,
    start: nn.Module,
    actor: Actor,
    episodes: list[Episode],
    advantages: list[list[float]],
    given: Sequence[Batch],
    session: Session,
    args: Args,
) -> dict[str, float]:
    """The updates of a step, each from a part of its answers and from answers that were given; returns what is watched
    of them, above all the norm of the last gradient, 0 where there is none to follow."""
    counted = [i for i, episode in enumerate(episodes) if args.counts(max(advantages[i], default=0.0), episode.is_cut)]
    beta, norm, out_of_bounds = beta_of(session, args), 0.0, 0.0
    for _ in range(args.passes):
        for part in torch.randperm(len(counted)).tensor_split(max(1, min(args.minibatches, len(counted)))):
            some = [counted[i] for i in part.tolist()]  # none, where no answer counts: what was given is still learned
            taken = [episodes[i] for i in some], [advantages[i] for i in some]
            out_of_bounds += climb(model, start, actor, *taken, args, beta) if some else 0.0
            for batch in given:
                backward(model, batch.to(next(model.parameters()).device), args.sft_share / sum(b.count for b in given))
            norm = session.update(args.clip)
    count = args.passes * sum(len(episodes[i].answer) for i in counted)
    return {"gradient_norm": norm, **({"ratios_beyond": out_of_bounds / max(count, 1)} if args.uses_ratios else {})}


def beta_of(session: Session, args: Args) -> float:
    return recalled(session, "beta", args.beta)


def fit(
    args: Args,
    session: Session,
    task: Judged,
    actor: Actor,
    reward: Reward,
    start: nn.Module,
    model: nn.Module,
    tokenizer: Tokenizer,
) -> None:
    """Roll out, judge, weigh, update, until the budget is spent."""
    practice = islice(task.practice(args.seed), session.progress.step * args.prompts, None)
    corpus = None
    if args.sft_share:
        corpus = Corpus(lambda epoch: documents_of_epoch(task, tokenizer, args.seed, epoch), args.seed, task.is_redrawn)
    given_tokens = round(args.prompts * float(corpus.table.lengths.mean())) if corpus else 0
    sampling = Sampling(args.temperature)
    model.eval()  # no dropout: the model that learns is the model that drew
    for step in session:
        examples = list(islice(practice, args.prompts))
        episodes = judge(reward, actor.rollout(model, examples, sampling, args.samples))
        is_due = session.evaluation_is_due()
        if is_looked_at := is_due or step % LOOK_EVERY == 0:
            require_parity(model, actor, episodes, args.temperature)
        if is_looked_at or args.kl != "off" or args.kl_limit:
            refer(start, actor, episodes, args.temperature, args.micro_tokens)
        greedy = None
        if args.baseline == "greedy":
            greedy = rewards_of(judge(reward, actor.rollout(model, examples, GREEDY, 1)), 1).flatten()
        if args.learns_value:
            appraise(model, episodes, args.micro_tokens)
        advantages = weigh(episodes, greedy, session, args)
        given = corpus.step(step, given_tokens, args.micro_tokens) if corpus else []
        seen = look(episodes, args.samples) | (follow(model, episodes, advantages) if args.learns_value else {})
        seen |= learn(model, start, actor, episodes, advantages, given, session, args)
        session.progress.numbers["beta"] = args.next_beta(beta_of(session, args), seen.get("kl"))
        session.log({"answers": len(episodes)}, **seen)
        if args.kl_limit and seen["kl"] > args.kl_limit:
            session.end(f"the KL to the start is beyond --kl-limit {args.kl_limit} nats an answer")
        if is_due:
            report(session, task, reward, model, tokenizer, actor, episodes[:: args.samples][:3], seen)
        if is_looked_at:
            sound_alarms(session, task)


# ---- where it starts, and how it ends ---------------------------------------------------------------


def find_start(args: Args, console: Console) -> Path | None:
    """What to start from; for arithmetic a run is made where there is none. Who only has to choose is right now and
    then by chance and may start from scratch, None; who writes may not: UserError."""
    if args.init or not issubclass(TASKS[args.task], WritingTask):
        return args.init
    if args.task != "arithmetic":
        raise UserError(f"--task {args.task} needs a model to start from: give a run of train_sft.py with --init RUN")
    same = {name: vars(args)[name] for name in ("task", "seed", "precision", "kernels", "options")}
    return train_sft.made(train_sft.Args(out=Path("runs/arithmetic-sft"), **same), console)


def train(args: Args, console: Console | None = None) -> Run:
    """From the arguments to the finished run folder. UserError for all that the user can mend."""
    started = time.monotonic()
    console, args = console or cli.console(), cli.with_paths(args)
    refuse_beside_resume(args) if args.resume else check(args)
    ranks.require_alone("train_rl.py")
    with Run.open(args.resume) if args.resume else Run.create(args.out, f"{args.task}-rl", cli.given(args)) as run:
        if args.resume:
            args = resumed(args, "rl", TASKS)
        else:
            init = find_start(args, console)
            options = unweighted(inherited_options(init, TASKS[args.task], args.options))
            args = dataclasses.replace(args, init=init, options=options)
        placement = place(args.precision, args.kernels)
        args = dataclasses.replace(args, precision=placement.precision)
        task = TASKS[args.task](args.options, args.seed)
        require_actor(task)
        data = data_of(run, task)
        reward = open_rewards(args.reward, task.rewards, placement.device, isinstance(task, WritingTask))
        start, tokenizer = open_policy(args, run, task)
        check(args := complete_by_reward(args, task, start))
        actor = actor_of(task, tokenizer)
        model = learner(start, placement, args)
        model = with_value(model) if args.learns_value else model
        session = Session(args, run, model, optimizers_of(model, args), console)
        begin(session, "rl", args, tokenizer, data, started)
        introduce(console, placement, task, model, run)

        def answer(model: nn.Module, examples: Sequence[Any], samples: int) -> list[Episode]:
            return judge(reward, actor.rollout(model, examples, Sampling(args.temperature), samples))

        before = look_at(args, session, task, start, tokenizer, actor, answer)
        if not session.progress.records:
            session.write(**flat(before["dev"], "dev"))
        if session.progress.best is None:
            remember(session, task, model, tokenizer)
        if args.method == "expert":
            expert.fit(args, session, task, reward, model, tokenizer, answer)
        else:
            fit(args, session, task, actor, reward, start, model, tokenizer)
        take_best(session, task, model, tokenizer)
        after = look_at(args, session, task, without_value(model), tokenizer, actor, answer, start)
        finish(session, task, model, tokenizer, before, after)
        if args.init:
            console.print(f"next: {comparison(run.folder, args.init)}", markup=False)
    return run


def main() -> None:
    train(cli.parse_with_task(Args, JUDGED, __doc__))


if __name__ == "__main__":
    cli.run(main)
