"""Reinforcement learning: learn from nothing but a reward for one's own answers.

  python train_rl.py                                             arithmetic, under 4 minutes on two cores
  python train_rl.py --task pronounce --init runs/pronounce-sft  start from a run of train_sft.py

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
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path
from threading import Event

import torch
from rich.console import Console
from torch import Tensor

import kernels
import train_sft
from minillm import cli, curves
from minillm.batching import Batch, Document, pack
from minillm.device import PRECISIONS, place
from minillm.errors import UserError
from minillm.evaluate import answer, evaluate
from minillm.generate import Sample, generate
from minillm.gpt import GPT
from minillm.objective import weighted_nll
from minillm.optim import Budget, adamw, schedule, set_lr
from minillm.policy import has_variance, kl_estimate, leave_one_out
from minillm.report import SAMPLES, ProgressBar, figures, flat, introduce, samples_table, thinned
from minillm.run import Run, resumed
from minillm.sampling import Sampling
from minillm.tasks import ANSWER_TASKS, AnswerTask, Example, check_owners, load_task

DEFAULT_MINUTES = 3.0
WARMUP = 0.1  # share of the training; AdamW's first steps are all noise
LOOK_EVERY = 10  # steps between looks at the KL to the start, which costs a pass of the starting model
GLANCE = 500  # dev examples looked at during training; all of them before and after
SAVE_SECONDS = 60  # between checkpoints


@dataclass(frozen=True)
class Args:
    task: str = cli.option("arithmetic", "what to learn", choices=tuple(ANSWER_TASKS))
    init: Path | None = cli.option(None, "run to start from (default: runs/arithmetic-sft, made if missing)")
    out: Path | None = cli.option(None, "folder to save to (default: runs/TASK-rl, numbered when taken)")
    resume: Path | None = cli.option(None, "go on with an interrupted run, under the options it was started with")
    train: Path | None = cli.option(None, "pronounce: file of lines `WORD  P H O N E S` (default: what --init used)")
    dev: Path | None = cli.option(None, "pronounce: such a file to watch progress on (default: likewise)")
    test: Path | None = cli.option(None, "pronounce: such a file to score before and after (default: likewise)")
    symbols: str | None = cli.option(None, "pronounce: letters and phonemes allowed", choices=("arpabet", "data"))
    minutes: float | None = cli.option(None, "wall-clock budget; the learning rate follows it (default: 3)")
    steps: int | None = cli.option(None, "train for a number of steps instead, whatever time they take")
    prompts: int = cli.option(128, "prompts in a step")
    samples: int = cli.option(8, "answers drawn for each prompt")
    temperature: float = cli.option(0.5, "of the policy: answers are drawn, and gradients taken, at this temperature")
    lr: float = cli.option(0.001, "peak learning rate (AdamW)")
    seed: int = cli.option(0, "fixes everything random")
    evaluations: int = cli.option(4, "looks at the dev set after the first, the last one included")
    precision: str = cli.option("auto", "of the activations; weights stay float32", choices=PRECISIONS)
    kernels: str = cli.option("auto", "implementation of attention and loss", choices=kernels.IMPLS)


@dataclass
class State:
    """How far a training is; saved with every checkpoint."""

    step: int = 0
    evaluations: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Rollout:
    examples: list[Example]  # P
    samples: list[Sample]  # P·K, those of one prompt in a row
    answers: list[str]  # their texts, for the reward and for people; the model learns from the ids
    rewards: Tensor  # (P, K)

    def informative(self) -> "Rollout":
        """Only the prompts whose answers were not all rewarded alike: the others have no advantage to learn from."""
        K = self.rewards.shape[1]
        keep = has_variance(self.rewards)
        rows = keep.repeat_interleave(K)
        return Rollout(
            list(compress(self.examples, keep)),
            list(compress(self.samples, rows)),
            list(compress(self.answers, rows)),
            self.rewards[keep],
        )

    def entropy(self) -> float:
        """Nats a token, estimated by the mean of − log p over the tokens drawn."""
        logprobs = [logprob for sample in self.samples for logprob in sample.logprobs]
        return -sum(logprobs) / len(logprobs)


def roll_out(model: GPT, task: AnswerTask, examples: list[Example], num_samples: int, temperature: float) -> Rollout:
    """Draw answers to prompts and have them judged."""
    prompts = [task.tokenizer.encode(example.prompt) for example in examples]
    samples = generate(model, prompts, task.max_answer_tokens, task.tokenizer.end, Sampling(temperature), num_samples)
    answers = [task.tokenizer.decode(sample.tokens) for sample in samples]
    judged = [task.reward(examples[i // num_samples], answer) for i, answer in enumerate(answers)]
    return Rollout(examples, samples, answers, torch.tensor(judged).view(len(examples), num_samples))


def to_batch(task: AnswerTask, rollout: Rollout) -> Batch:
    """The drawn answers behind their prompts, token for token as they were drawn."""
    prompts = [task.tokenizer.encode(example.prompt) for example in rollout.examples]
    num_samples = rollout.rewards.shape[1]
    return pack([Document(prompts[i // num_samples], sample.tokens) for i, sample in enumerate(rollout.samples)])


def update(model: GPT, task: AnswerTask, rollout: Rollout, optimizers: list, temperature: float = 1.0) -> float:
    """One step along the policy gradient; returns the norm of the gradient, 0 where there is none to follow."""
    informative = rollout.informative()  # the rest would add nothing but zeros
    if not informative.examples:
        return 0.0
    batch = to_batch(task, informative).to(model.tokens.weight.device)
    advantages = leave_one_out(informative.rewards).flatten().to(batch.tokens.device)  # (P·K,)
    weights = advantages[batch.packing.sequence] / rollout.rewards.numel()  # (N,): each token has its answer's
    loss = weighted_nll(model, batch, weights, temperature)
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return float(norm)


def describe(seen: Mapping[str, float]) -> str:
    """One line of what is watched beside the reward."""
    kl = f"KL to the start {seen['kl']:.2f} nats an answer · " if "kl" in seen else ""
    return (
        f"reward {seen['reward']:.3f} · {kl}entropy {seen['entropy']:.3f} nats a token · "
        f"gradient norm {seen['gradient_norm']:.2f} · {seen['groups_without_variance']:.0%} of groups without variance"
    )


@torch.no_grad()
def kl_to(start: GPT, model: GPT, task: AnswerTask, rollout: Rollout, temperature: float = 1.0) -> float:
    """KL(model ‖ start) of an answer in nats, estimated on answers that the model has drawn."""
    batch = to_batch(task, rollout).to(model.tokens.weight.device)
    nll, start_nll = (
        m.loss(m(batch.tokens, batch.packing), batch.targets, temperature=temperature) for m in (model, start)
    )
    return float(kl_estimate(-nll, -start_nll).sum() / len(batch.packing.lengths))


def fit(
    args: Args,
    console: Console,
    run: Run,
    task: AnswerTask,
    start: GPT,
    model: GPT,
    optimizers: list[torch.optim.Optimizer],
    state: State,
    stop: Event,
) -> None:
    """Roll out, judge, update, until the budget is spent."""
    budget = Budget(args.minutes, args.steps, spent_seconds=state.seconds)
    practice = islice(task.practice(args.seed), state.step * args.prompts, None)
    saved = state.seconds
    model.eval()  # no dropout: the model that learns is the model that drew
    with ProgressBar(console) as bar:
        while (progress := budget.progress(state.step)) < 1 and not stop.is_set():
            rollout = roll_out(model, task, list(islice(practice, args.prompts)), args.samples, args.temperature)
            seen = {
                "reward": float(rollout.rewards.mean()),
                "entropy": rollout.entropy(),
                "groups_without_variance": 1 - float(has_variance(rollout.rewards).float().mean()),
            }
            due = progress >= (state.evaluations + 1) / args.evaluations
            if due or state.step % LOOK_EVERY == 0:
                seen["kl"] = kl_to(start, model, task, rollout, args.temperature)
            set_lr(optimizers, schedule(progress, WARMUP))
            seen["gradient_norm"] = update(model, task, rollout, optimizers, args.temperature)

            if not math.isfinite(seen["gradient_norm"]) or not math.isfinite(seen["entropy"]):
                raise UserError(f"the policy is no longer a number at step {state.step + 1}; try a lower --lr")
            state.step += 1
            state.seconds = budget.seconds
            run.log(step=state.step, seconds=round(state.seconds, 3), lr=optimizers[0].param_groups[0]["lr"], **seen)
            rate = state.step / state.seconds
            bar.update(progress, state.seconds, f"step {state.step} · reward {seen['reward']:.3f} · {rate:.1f} steps/s")
            if due:
                state.evaluations += 1
                some = thinned(task.splits.dev, GLANCE)
                glance = evaluate(model, task, some)
                # The first answer to each of three prompts.
                samples = list(zip(rollout.examples[:3], rollout.answers[:: args.samples], strict=False))
                shown = [{"prompt": example.prompt, "answer": text} for example, text in samples]
                run.log(step=state.step, seconds=round(state.seconds, 3), samples=shown, **flat(glance, "dev"))
                console.print(f"step {state.step}: {figures(glance)} on {len(some)} dev examples")
                console.print(describe(seen), highlight=False)
                console.print(samples_table(*zip(*samples, strict=True), "answers drawn in practice"))
            if state.seconds - saved > SAVE_SECONDS:
                saved = state.seconds
                run.save_checkpoint(model, optimizers, vars(state))


def find_start(args: Args, console: Console) -> Run:
    """The run to start from; for arithmetic one is made where there is none."""
    if args.init:
        return Run.open(args.init)
    if args.task != "arithmetic":
        raise UserError(f"--task {args.task} needs a model to start from: give a run of train_sft.py with --init RUN")
    default = Run(Path("runs/arithmetic-sft"))
    if default.is_finished:
        return default
    if default.path("checkpoint.safetensors").exists():  # its making was interrupted
        return train_sft.train(resumed(train_sft.Args(resume=default.folder)), console)
    console.print(f"there is no {default.folder} to start from, so supervised training comes first\n")
    sft_args = train_sft.Args(task="arithmetic", out=default.folder, seed=args.seed, precision=args.precision)
    run = train_sft.train(sft_args, console)
    console.print("\nand now reinforcement learning from there\n")
    return run


def with_data_of(start: Run, args: Args) -> Args:
    """The options with the data that the starting run was trained on where no other is given."""
    used = start.read_json("args.json")
    if used.get("task") != args.task:
        raise UserError(f"{start.folder} was trained on --task {used.get('task')}, not on {args.task}")
    files = {name: Path(used[name]) for name in ("train", "dev", "test") if used.get(name)}
    given = {name: vars(args)[name] for name in ("train", "dev", "test", "symbols") if vars(args)[name]}
    return dataclasses.replace(args, init=start.folder, **{"symbols": used.get("symbols"), **files, **given})


def train(args: Args, console: Console) -> Run:
    """From the arguments to the finished run folder."""
    started = time.monotonic()
    if not args.resume:
        check_owners(args)
        Run.vacant(args.out, f"{args.task}-rl")  # noticed before, and not after, a start is trained
    placement = place(args.precision, args.kernels)
    args = dataclasses.replace(args, precision=placement.precision)
    start_run = find_start(args, console)
    args = with_data_of(start_run, args)
    task = load_task(args.task, args.train, args.dev, args.test, args.symbols)
    start = start_run.load_model(task).to(placement.device).eval()
    start.compute_dtype = placement.dtype
    model = copy.deepcopy(start)
    optimizers = adamw(model, args.lr)
    torch.manual_seed(args.seed)
    if args.resume:
        run = Run.open(args.resume)
        state = State(**run.load_checkpoint(model, optimizers))
        run.cut_log(state.step)
        started -= state.seconds  # what the interrupted process took
    else:
        run = Run.create(args.out, f"{args.task}-rl")
        run.describe(model, task.tokenizer, args)
        state = State()
    introduce(console, placement, task, model, run)
    before = score(console, task, start, "before")
    if not args.resume:
        run.log(step=0, seconds=0.0, **{name: value for name, value in before.items() if name.startswith("dev")})

    with cli.postponed_interrupt() as stop:
        fit(args, console, run, task, start, model, optimizers, state, stop)
    run.save_checkpoint(model, optimizers, vars(state))
    if stop.is_set():
        console.print(
            f"stopped at step {state.step}; go on with: python train_rl.py --resume {run.folder}", markup=False
        )
        raise KeyboardInterrupt
    finish(console, run, task, model, state, before, started)
    return run


def score(console: Console, task: AnswerTask, model: GPT, when: str) -> dict[str, float]:
    """Greedy answers to all held-out examples; the same before and after."""
    metrics: dict[str, float] = {}
    for split in ("dev", "test"):
        if examples := vars(task.splits)[split]:
            measured = evaluate(model, task, examples)
            metrics |= flat(measured, split)
            console.print(f"{when}: {split} {figures(measured)} on {len(examples):,} held-out examples")
    return metrics


def finish(
    console: Console, run: Run, task: AnswerTask, model: GPT, state: State, before: Mapping[str, float], started: float
) -> None:
    """Score the model on the examples it was scored on before, and save what remains to be saved."""
    run.save_model(model)
    after = score(console, task, model, "after")
    shown = thinned(task.splits.dev, SAMPLES)
    console.print(samples_table(shown, answer(model, task, shown), "held-out examples, greedy"))
    run.log(step=state.step, seconds=round(state.seconds, 3), **{k: v for k, v in after.items() if k.startswith("dev")})
    names = ["reward", f"dev_{task.headline}", "kl", "entropy", "gradient_norm", "groups_without_variance"]
    curves.draw(run.read_log(), names, run.path("curves.png"), f"{run.folder}: {task.name}, by reward")
    counts = {"steps": state.step, "seconds": round(time.monotonic() - started, 1)}
    run.finish({**{f"start_{name}": value for name, value in before.items()}, **after, **counts})
    console.print(f"saved to {run.folder}: model, log, checkpoint, metrics.json, curves.png", markup=False)


def main() -> None:
    args = cli.parse(Args, __doc__)
    cli.require_seed(args)
    cli.require_positive(args, "minutes", "steps", "prompts", "temperature", "lr", "evaluations")
    if args.samples < 2:
        raise UserError(f"--samples {args.samples}: the leave-one-out baseline needs at least 2")
    if args.minutes and args.steps:
        raise UserError("--minutes and --steps exclude each other: give one budget")
    if not args.minutes and not args.steps:
        args = dataclasses.replace(args, minutes=DEFAULT_MINUTES)
    train(resumed(args) if args.resume else args, Console(soft_wrap=True))


if __name__ == "__main__":
    cli.run(main)
