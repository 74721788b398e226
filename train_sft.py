"""Supervised fine-tuning: learn from examples what to answer.

  python train_sft.py                                      pronunciation from scratch, under 3 minutes on two cores
  python train_sft.py --minutes 15                         the same with a larger model, better
  python train_sft.py --train words.txt --dev more.txt     your own lines `WORD  P H O N E S`
  python train_sft.py --task arithmetic                    the start of `python train_rl.py`
  python train_sft.py --task classify --init MODEL --train a.jsonl --dev b.jsonl     fine-tune a published BERT or GPT
  python train_sft.py --task classify --train a.csv --dev b.csv --fields text=review,label=stars     one from scratch
  python train_sft.py --resume runs/pronounce-sft          go on where a run was interrupted

Objective: minimise − 1/n Σ log p(token | prompt, tokens before) over the n tokens of the answers in a batch, the
end token included and prompts excluded; in classification − 1/n Σ log p(class | text) over the n texts in a batch.
Either is the maximum likelihood of the answers that the data shows.
"""

import minillm  # noqa: F401, first: it sets how threads wait

# isort: split

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch
from rich.console import Console
from torch import nn

import kernels
from minillm import cli, curves
from minillm.batching import epochs
from minillm.device import PRECISIONS, place
from minillm.errors import UserError
from minillm.learners import KINDS, Labeller, Learner, Writer
from minillm.optim import Budget, schedule, set_lr
from minillm.report import ProgressBar, figures, flat, introduce, thinned
from minillm.run import Run, resumed
from minillm.tasks import TASKS, Arithmetic, Classify, Recipe, check_owners, load_task

SAVE_SECONDS = 60  # between checkpoints
UNTIL_EVERY = 10  # steps between looks at whether a training is good enough already
GLANCE = 500  # dev examples looked at during training; all of them at the end


@dataclass(frozen=True)
class Args:
    task: str = cli.option("pronounce", "what to learn", choices=tuple(TASKS))
    out: Path | None = cli.option(None, "folder to save to (default: runs/TASK-sft, numbered when taken)")
    resume: Path | None = cli.option(None, "go on with an interrupted run, under the options it was started with")
    init: Path | None = cli.option(
        None, "start from the model of this run instead of from scratch; for classify also a published checkpoint"
    )
    train: Path | None = cli.option(
        None, "file to learn from; classify: .jsonl or .csv, pronounce: `WORD  P H O N E S` (default: CMU dictionary)"
    )
    dev: Path | None = cli.option(None, "such a file to watch progress on (pronounce's default: 2 % of the words)")
    test: Path | None = cli.option(None, "such a file to score at the very end")
    fields: str | None = cli.option(
        None, "classify: names of the fields, e.g. text=review,label=stars, with text2=NAME for pairs"
    )
    model: str | None = cli.option(None, "classify: what a model from scratch is (default: bert)", choices=tuple(KINDS))
    symbols: str | None = cli.option(
        None, "pronounce: letters and phonemes allowed (default: arpabet)", choices=("arpabet", "data")
    )
    examples: int | None = cli.option(
        None, f"arithmetic: number of solved problems to learn from (default: {Arithmetic.num_examples})"
    )
    minutes: float | None = cli.option(None, "wall-clock budget of the training; the learning rate follows it")
    steps: int | None = cli.option(None, "train for a number of steps instead, whatever time they take")
    until: float | None = cli.option(None, "stop once the mean reward of greedy dev answers reaches this")
    seed: int = cli.option(0, "fixes everything random")
    layers: int | None = cli.option(None, "blocks of the model (default here and below: what suits task and budget)")
    width: int | None = cli.option(None, "width of the residual stream")
    heads: int | None = cli.option(None, "attention heads")
    dropout: float | None = cli.option(None, "share of activations dropped in training")
    batch_tokens: int | None = cli.option(None, "tokens in a step")
    lr: float | None = cli.option(None, "peak learning rate of the matrices (Muon); classify: of the encoder (AdamW)")
    embedding_lr: float | None = cli.option(None, "peak learning rate of embeddings and norms; classify: of the head")
    warmup: float | None = cli.option(None, "share of the training in which the learning rates rise")
    evaluations: int = cli.option(4, "looks at the dev set, the last one included")
    precision: str = cli.option("auto", "of the activations; weights stay float32", choices=PRECISIONS)
    kernels: str = cli.option("auto", "implementation of attention and loss", choices=kernels.IMPLS)


@dataclass
class State:
    """How far a training is; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    evaluations: int = 0
    seconds: float = 0.0


def check(args: Args) -> None:
    """UserError for options that make no sense whatever the data is."""
    if args.minutes is not None and args.steps is not None:
        raise UserError("--minutes and --steps exclude each other: give one budget")
    cli.require_seed(args)
    cli.require_positive(args, "minutes", "steps", "until", "examples", "evaluations")
    cli.require_positive(args, "layers", "width", "heads", "batch_tokens", "lr", "embedding_lr")
    if args.warmup is not None and not 0 <= args.warmup < 1:
        raise UserError(f"--warmup {args.warmup} must be a share of the training, from 0 to below 1")
    if not args.resume:
        check_owners(args)
    shape = ["layers", "width", "heads"] + ([] if args.task == "classify" else ["dropout"])
    if args.init and not args.resume and (given := [name for name in shape if vars(args)[name] is not None]):
        raise UserError(
            f"--{given[0]} is for a model from scratch, but --init {args.init} brings its own; leave one out"
        )


def complete(args: Args, recipe: Recipe) -> Args:
    """The arguments with the recipe where nothing was asked for."""
    fields = dataclasses.asdict(recipe)
    if args.minutes is not None or args.steps is not None:  # a budget of one's own is used up
        fields["minutes"] = fields["steps"] = fields["until"] = None
    given = {name: value for name, value in vars(args).items() if value is not None}
    return dataclasses.replace(args, **{**fields, **given})


def load_learner(args: Args) -> Learner:
    """The task with its data, and who is to learn it."""
    task = load_task(args.task, args.train, args.dev, args.test, args.symbols, args.examples, args.seed, args.fields)
    if isinstance(task, Classify):
        return Labeller(task, args.init, args.model)
    return Writer(task, args.init)


def train(args: Args, console: Console) -> Run:
    """From the arguments to the finished run folder."""
    started = time.monotonic()
    check(args)
    torch.manual_seed(args.seed)
    placement = place(args.precision, args.kernels)
    learner = load_learner(args)
    if not args.resume:  # whose arguments are complete
        args = dataclasses.replace(complete(args, learner.recipe(args.minutes)), precision=placement.precision)
    model = learner.make_model(args).to(placement.device)
    model.compute_dtype = placement.dtype
    optimizers = learner.optimizers(model, args)
    if args.resume:
        run = Run.open(args.resume)
        state = State(**run.load_checkpoint(model, optimizers))
        run.cut_log(state.step)
        started -= state.seconds  # what the interrupted process took
    else:
        run = Run.create(args.out, f"{args.task}-sft")
        learner.describe(run, model, args)
        state = State()
    introduce(console, placement, learner.task, model, run, learner.notes)

    with cli.postponed_interrupt() as stop:
        fit(args, console, run, learner, model, optimizers, state, stop)
    run.save_checkpoint(model, optimizers, vars(state))
    if stop.is_set():
        console.print(
            f"stopped at step {state.step}; go on with: python train_sft.py --resume {run.folder}", markup=False
        )
        raise KeyboardInterrupt
    finish(console, run, learner, model, state, started)
    return run


def fit(
    args: Args,
    console: Console,
    run: Run,
    learner: Learner,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    state: State,
    stop: Event,
) -> None:
    """One step after the other until the budget is spent."""
    budget = Budget(args.minutes, args.steps, spent_seconds=state.seconds)
    saved = state.seconds
    device = next(model.parameters()).device
    model.train()
    with ProgressBar(console) as bar:
        for indices in epochs(learner.corpus.lengths, args.batch_tokens, args.seed, start=state.step):
            progress = budget.progress(state.step)
            if progress >= 1 or stop.is_set():
                break
            batch = learner.corpus.batch(indices).to(device)
            set_lr(optimizers, schedule(progress, args.warmup))
            loss = learner.loss(model, batch)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

            state.step += 1
            state.tokens += len(batch.tokens)
            state.seconds = budget.seconds
            value = loss.item()
            if not math.isfinite(value):
                raise UserError(f"the loss became {value} at step {state.step}; try a lower --lr")
            lr = optimizers[0].param_groups[0]["lr"]
            run.log(step=state.step, loss=value, lr=lr, tokens=state.tokens, seconds=round(state.seconds, 3))
            rate = state.tokens / state.seconds
            bar.update(progress, state.seconds, f"step {state.step} · loss {value:.3f} · {rate:,.0f} tokens/s")
            if progress >= (state.evaluations + 1) / args.evaluations:
                state.evaluations += 1
                some = thinned(learner.task.splits.dev, GLANCE)
                glance = learner.task.measure(some, learner.answer(model, some))
                run.log(step=state.step, seconds=round(state.seconds, 3), **flat(glance, "dev"))
                console.print(f"step {state.step}: {figures(glance)} on {len(some)} dev examples")
            if state.seconds - saved > SAVE_SECONDS:
                saved = state.seconds
                run.save_checkpoint(model, optimizers, vars(state))
            if args.until and state.step % UNTIL_EVERY == 0 and mean_reward(learner, model) >= args.until:
                console.print(f"step {state.step}: good enough, as --until {args.until} says")
                break


def mean_reward(learner: Learner, model: nn.Module) -> float:
    """Of greedy answers to some of the dev examples."""
    examples = thinned(learner.task.splits.dev, GLANCE)
    rewards = list(map(learner.task.reward, examples, learner.answer(model, examples)))
    return sum(rewards) / len(rewards)


def finish(console: Console, run: Run, learner: Learner, model: nn.Module, state: State, started: float) -> None:
    """Score the model on all held-out examples, show some of them, and save what remains to be saved."""
    learner.save(run, model)
    task = learner.task
    metrics: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for split in ("test", "dev"):
        if examples := vars(task.splits)[split]:
            answers = learner.answer(model, examples)
            measured = task.measure(examples, answers)
            metrics |= flat(measured, split)
            details |= {f"{split}_{name}": value for name, value in learner.details(examples, answers).items()}
            console.print(f"{split}: {figures(measured)} on {len(examples):,} examples never trained on")
    console.print(learner.table(examples, answers))
    headline = f"dev_{task.headline}"
    run.log(
        step=state.step,
        seconds=round(state.seconds, 3),
        **{k: v for k, v in metrics.items() if k.startswith("dev")},
    )
    curves.draw(
        run.read_log(),
        ["loss", "lr", headline],
        run.path("curves.png"),
        f"{run.folder}: {task.name}, by example",
    )
    metrics |= {"steps": state.step, "tokens": state.tokens, "seconds": round(time.monotonic() - started, 1)}
    run.finish(metrics | details)
    console.print(f"saved to {run.folder}: model, log, checkpoint, metrics.json, curves.png", markup=False)
    console.print(f"next: {learner.next_command(run)}", markup=False)


def main() -> None:
    args = cli.parse(Args, __doc__)
    train(resumed(args) if args.resume else args, Console(soft_wrap=True))


if __name__ == "__main__":
    cli.run(main)
