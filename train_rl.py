"""Reinforcement learning: learn from nothing but a reward for one's own answers.

  python train_rl.py                                             arithmetic, under 4 minutes on two cores
  python train_rl.py --task pronounce --init runs/pronounce-sft  start from a run of train_sft.py
  python train_rl.py --task arithmetic --init MODEL              or from any GPT: a published folder, a .gguf file

Objective: maximise E[reward] over answers drawn from the model itself. The estimator is REINFORCE (Williams 1992)
with a leave-one-out baseline: for each of P prompts draw K answers from the policy and step along

    1/(P·K) Σ (reward − mean reward of the prompt's other answers) · ∇ Σ log p(token | prompt, tokens before)

where the inner sum runs over all tokens of the answer, the end token included. The policy is the model at
--temperature: answers are drawn from it, and log p differentiated, at that same temperature. No division by lengths
or standard deviations, no clipping of ratios, no KL penalty; every answer is used once, by the model that drew it. So
this is an unbiased estimate of the gradient of the expected reward, which AdamW then scales. Dropout is off, so that
the model that learns is, up to rounding, the model that drew.
"""

import minillm  # noqa: F401, first: it sets how threads wait

# isort: split

import copy
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

import kernels
import train_sft
from minillm import cli
from minillm.batching import Batch, answering, pack
from minillm.device import PRECISIONS, place, settle
from minillm.errors import UserError
from minillm.generate import Sampling, generate
from minillm.gpt import GPT
from minillm.inference import ready
from minillm.lora import LR_FACTOR
from minillm.objective import backward
from minillm.optim import Optimisation, adamw, check_optimisation
from minillm.origin import data_of
from minillm.policy import BASELINES, WEIGHTS, Episode, entropy, has_variance, kl_estimate, rewards_of
from minillm.report import SAMPLES, evenly_spaced, figures, flat, introduce, samples_table
from minillm.run import Run
from minillm.session import Session
from minillm.start import complete, inherited_options, open_policy, refuse_beside_resume, restrict, resumed
from minillm.tasks import TASKS
from minillm.tasks.base import Task, WritingTask
from minillm.tokenizer import Tokenizer

WRITING = {name: task for name, task in TASKS.items() if issubclass(task, WritingTask)}  # which have policies
DEFAULT_MINUTES = 3.0
WARMUP = 0.1  # share of the training
LR = 1e-3  # of a model of width 128; AdamW's rates fall with the width (arXiv:2203.03466)
LOOK_EVERY = 10  # steps between looks at the KL to the start, which costs a pass of the starting model
LEAST_TEMPERATURE = 1e-3  # of the policy: its gradients are divided by it, and soon all its answers are alike
MOST_ANSWERS = 2**20  # in a step, all of which lie in memory
GLANCE = 500  # dev examples looked at during training; all of them before and after


@dataclass(frozen=True)
class Args(Optimisation):
    task: str = cli.option("arithmetic", "what to learn", choices=tuple(WRITING))
    init: Path | None = cli.option(
        None,
        "GPT to start from: a run, a published folder, a .gguf file, an id of the hub "
        "(default: runs/arithmetic-sft, made if missing)",
    )
    out: Path | None = cli.option(None, "folder to save to (default: runs/TASK-rl, numbered when taken)")
    resume: Path | None = cli.option(None, "go on with an interrupted run, under the options it was started with")
    minutes: float | None = cli.option(None, "wall-clock budget; the learning rate follows it (default: 3)")
    steps: int | None = cli.option(None, "train for a number of steps instead, whatever time they take")
    prompts: int = cli.option(128, "prompts in a step")
    samples: int = cli.option(8, "answers drawn for each prompt")
    temperature: float = cli.option(0.5, "of the policy: answers are drawn, and gradients taken, at this temperature")
    baseline: str = cli.option("leave-one-out", "what is subtracted from a reward", choices=tuple(BASELINES))
    lr: float | None = cli.option(None, "peak learning rate, AdamW (default: 0.001; for models wider than 128 less)")
    warmup: float | None = cli.option(
        None, "share of the training in which it rises; AdamW's first steps are all noise (default: 0.1)"
    )
    seed: int = cli.option(0, "fixes everything random")
    evaluations: int = cli.option(4, "looks at the dev set after the first, the last one included")
    precision: str = cli.option("auto", "of the activations; weights stay float32", choices=PRECISIONS)
    kernels: str = cli.option("auto", "implementation of attention and loss", choices=kernels.IMPLS)
    options: Any = None  # those of the task, an instance of its Options; None: its defaults, or the starting run's


def check(args: Args) -> Args:
    """The options with a budget. UserError for those that make no sense whatever the data is."""
    if not issubclass(TASKS.get(args.task, object), WritingTask):
        raise UserError(f"--task {args.task} is not one of {', '.join(WRITING)}")
    cli.require_choices(args, skip=("task",))
    if args.options:
        cli.require_choices(args.options)
    cli.require_seed(args)
    cli.require_positive(args, "minutes", "steps", "prompts", "samples", "temperature", "evaluations")
    check_optimisation(args)
    if args.baseline == "leave-one-out" and args.samples < 2:
        raise UserError(f"--samples {args.samples}: the leave-one-out baseline needs at least 2")
    if args.prompts * args.samples > MOST_ANSWERS:
        raise UserError(
            f"--prompts {args.prompts} with --samples {args.samples} are too many answers in a step; "
            f"{MOST_ANSWERS} are the most there can be"
        )
    if args.temperature < LEAST_TEMPERATURE:
        raise UserError(
            f"--temperature {args.temperature} leaves nothing to chance; give at least {LEAST_TEMPERATURE} to learn"
        )
    if args.minutes and args.steps:
        raise UserError("--minutes and --steps exclude each other: give one budget")
    return args if args.minutes or args.steps else dataclasses.replace(args, minutes=DEFAULT_MINUTES)


# ---- the algorithm: roll out, judge, weigh, update --------------------------------------------------


def rollout(model: GPT, tokenizer: Tokenizer, task: Task, examples: Sequence[Any], args: Args) -> list[Episode]:
    """Answers to the examples, `args.samples` of each in a row, not judged yet."""
    prompts = [tokenizer.prompt(example.prompt) for example in examples]
    room, sampling = task.max_answer_tokens(tokenizer), Sampling(args.temperature)
    drawn = generate(ready(model), prompts, room, tokenizer.stops, sampling, args.samples)
    sources = [i for i in range(len(examples)) for _ in range(args.samples)]
    return [
        Episode(examples[i], prompts[i], sample.tokens, sample.logprobs, tokenizer.decode(sample.tokens))
        for i, sample in zip(sources, drawn, strict=True)
    ]


def judge(task: Task, episodes: list[Episode]) -> list[Episode]:
    """Fills in the task's reward of each and its parts, all of them judged at once; returns the same episodes."""
    parts = task.reward([episode.example for episode in episodes], [episode.text for episode in episodes])
    for i, episode in enumerate(episodes):
        episode.parts = {name: float(values[i]) for name, values in parts.items()}
        episode.reward = sum(episode.parts.values())
    return episodes


def to_batch(episodes: Sequence[Episode], device: torch.device) -> Batch:
    """The drawn answers behind their prompts, token for token as they were drawn."""
    return pack([answering(episode.prompt, episode.answer) for episode in episodes]).to(device)


def update(model: GPT, episodes: list[Episode], advantages: Tensor, session: Session, args: Args) -> float:
    """One step along the policy gradient; returns the norm of the gradient, 0 where there is none to follow."""
    learning = [i for i, advantage in enumerate(advantages.flatten().tolist()) if advantage != 0]
    if not learning:  # the rest would add nothing but zeros
        return 0.0
    batch = to_batch([episodes[i] for i in learning], model.tokens.weight.device)
    answer = torch.tensor(learning)[batch.packing.sequence.cpu()]  # (N,) the episode of each token
    weights = WEIGHTS["reinforce"](advantages, answer)
    backward(model, batch, weights.to(batch.tokens.device), args.temperature)
    return session.update(args.clip)


@torch.no_grad()
def kl_to(start: GPT, model: GPT, episodes: Sequence[Episode], temperature: float) -> float:
    """KL(model ‖ start) of an answer in nats, estimated on answers that the model has drawn."""
    batch = to_batch(episodes, model.tokens.weight.device)
    logprobs, start_logprobs = (-m.loss(batch, temperature=temperature) for m in (model, start))
    return float(kl_estimate(logprobs, start_logprobs).sum() / len(episodes))


def fit(args: Args, session: Session, task: Task, start: GPT, model: GPT, tokenizer: Tokenizer) -> None:
    """Roll out, judge, update, until the budget is spent."""
    practice = islice(task.practice(args.seed), session.progress.step * args.prompts, None)
    model.eval()  # no dropout: the model that learns is the model that drew
    for step in session:
        episodes = judge(task, rollout(model, tokenizer, task, list(islice(practice, args.prompts)), args))
        rewards = rewards_of(episodes, args.samples)
        seen = {
            "reward": float(rewards.mean()),
            "entropy": entropy(episodes),
            "groups_without_variance": 1 - float(has_variance(rewards).float().mean()),
        }
        is_due = session.evaluation_is_due()
        if is_due or step % LOOK_EVERY == 0:
            seen["kl"] = kl_to(start, model, episodes, args.temperature)
        advantages = BASELINES[args.baseline](rewards)
        seen["gradient_norm"] = update(model, episodes, advantages, session, args)
        session.log(**seen)

        if is_due:
            some = evenly_spaced(task.splits.dev, GLANCE)
            shown = episodes[: 3 * args.samples : args.samples]  # the first answer to each of three prompts
            samples = [{"prompt": episode.example.prompt, "answer": episode.text} for episode in shown]
            session.report(task.measure(some, task.answer(model, tokenizer, some)), len(some), samples=samples)
            session.console.print(describe(seen), highlight=False)
            texts = [episode.text for episode in shown]
            session.console.print(samples_table([e.example for e in shown], texts, "answers drawn in practice"))


def describe(seen: dict[str, float]) -> str:
    """One line of what is watched beside the reward."""
    kl = f"KL to the start {seen['kl']:.2f} nats an answer · " if "kl" in seen else ""
    return (
        f"reward {seen['reward']:.3f} · {kl}entropy {seen['entropy']:.3f} nats a token · "
        f"gradient norm {seen['gradient_norm']:.2f} · {seen['groups_without_variance']:.0%} of groups without variance"
    )


# ---- where it starts, and how it ends ---------------------------------------------------------------


def find_start(args: Args, console: Console) -> Path:
    """What to start from; for arithmetic a run is made where there is none."""
    if args.init:
        return args.init
    if args.task != "arithmetic":
        raise UserError(f"--task {args.task} needs a model to start from: give a run of train_sft.py with --init RUN")
    default = Run(Path("runs/arithmetic-sft"))
    if default.is_finished:
        return default.folder
    if default.is_unfinished:  # its making was interrupted
        return train_sft.train(train_sft.Args(resume=default.folder), console).folder
    console.print(f"there is no {default.folder} to start from, so supervised training comes first\n")
    same = {name: vars(args)[name] for name in ("task", "seed", "precision", "kernels", "options")}
    run = train_sft.train(train_sft.Args(out=default.folder, **same), console)
    console.print("\nand now reinforcement learning from there\n")
    return run.folder


def score(console: Console, task: Task, model: GPT, tokenizer: Tokenizer, when: str) -> dict[str, float]:
    """The task's metrics of greedy answers to all that is held out."""
    metrics: dict[str, float] = {}
    for split in ("dev", "test"):
        if examples := vars(task.splits)[split]:
            measured = task.measure(examples, task.answer(model, tokenizer, examples))
            metrics |= flat(measured, split)
            console.print(f"{when}: {split} {figures(measured)} on {len(examples):,} held-out examples")
    return metrics


def train(args: Args, console: Console | None = None) -> Run:
    """From the arguments to the finished run folder. UserError for all that the user can mend."""
    started = time.monotonic()
    console, args = console or cli.console(), cli.with_paths(args)
    if args.resume:
        refuse_beside_resume(args)
    else:
        args = check(args)
    with Run.open(args.resume) if args.resume else Run.create(args.out, f"{args.task}-rl") as run:
        if args.resume:
            args = resumed(args, "rl", TASKS)
        else:
            init = find_start(args, console)
            options = inherited_options(init, TASKS[args.task], args.options)
            args = dataclasses.replace(args, init=init, options=options)
        placement = place(args.precision, args.kernels)
        args = dataclasses.replace(args, precision=placement.precision)
        task = TASKS[args.task](args.options, args.seed)
        data = data_of(run, task)
        start, tokenizer = open_policy(args, run, task)
        lr = LR * min(1.0, 128 / start.config.width) * (LR_FACTOR if args.lora else 1.0)
        args = complete(args, {"lr": lr, "warmup": WARMUP})
        start.to(placement.device).eval().compute_dtype = placement.dtype
        model = copy.deepcopy(start)
        torch.manual_seed(args.seed)
        restrict(model, args)
        settle(model, placement, args.checkpointing, args.compile)
        session = Session(args, run, model, adamw(model, args.lr, args.lr, args.weight_decay), console)
        session.begin("rl", args, tokenizer, data, started)
        introduce(console, placement, task, model, run)
        before = score(console, task, start, tokenizer, "before")
        if not session.progress.records:
            session.write(**{name: value for name, value in before.items() if name.startswith("dev")})
        fit(args, session, task, start, model, tokenizer)
        finish(session, task, model, tokenizer, before)
    return run


def finish(session: Session, task: Task, model: GPT, tokenizer: Tokenizer, before: dict[str, float]) -> None:
    """Score the model on the examples it was scored on before, and save what remains to be saved."""
    after = score(session.console, task, model, tokenizer, "after")
    shown = evenly_spaced(task.splits.dev, SAMPLES)
    answers = task.answer(model, tokenizer, shown)
    session.console.print(samples_table(shown, answers, "held-out examples, greedy"))
    metrics = {**{f"start_{name}": value for name, value in before.items()}, **after}
    panels = ["reward", f"dev_{task.headline}", "kl", "entropy", "gradient_norm", "groups_without_variance"]
    dev = {name: value for name, value in after.items() if name.startswith("dev")}
    session.finish(metrics, dev, panels, f"{task.name}, by reward")


def main() -> None:
    train(cli.parse_with_task(Args, WRITING, __doc__))


if __name__ == "__main__":
    cli.run(main)
