"""Options of both scripts, of learning by example, and of learning by reward; and what makes no sense among them."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernels
from minillm import cli, trackers
from minillm.device import PRECISIONS
from minillm.errors import UserError
from minillm.functions import SECONDS
from minillm.optim import OPTIMIZERS
from minillm.session import SCHEDULES
from minillm.turns import TURNS

BUDGETS = ("minutes", "steps", "epochs")  # options, of which one is given
LEAST_TEMPERATURE = 1e-3  # of the policy: its gradients are divided by it, and soon all its answers are alike
MOST_ANSWERS = 2**20  # in a step, all of which lie in memory


@dataclass(frozen=True)
class Common:
    """What any training is told."""

    out: Path | None = cli.option(None, "folder to save to (default: runs/TASK-sft or TASK-rl, numbered when taken)")
    resume: Path | None = cli.option(None, "go on with an interrupted run, under the options it was started with")
    minutes: float | None = cli.option(
        None,
        "wall-clock budget of the training, beside what it prepares and measures; the learning rate follows it",
    )
    steps: int | None = cli.option(None, "train for a number of steps instead, whatever time they take")
    keep: str | None = cli.option(
        None,
        "the model to save: of the last step, or the best of the looks at the dev set (default: as the task has it)",
        ("last", "best"),
    )
    patience: int | None = cli.option(None, "stop after so many looks in a row that were no better than the best")
    seed: int = cli.option(0, "fixes everything random")
    precision: str = cli.option("auto", "of the activations; weights stay float32", choices=PRECISIONS)
    kernels: str = cli.option("auto", "implementation of attention and loss", choices=kernels.IMPLS)
    log_to: str | None = cli.option(None, "write the log there, too", choices=tuple(trackers.TRACKERS))
    options: Any = None  # those of the task, an instance of its Options; None: its defaults, or the starting run's


@dataclass(frozen=True)
class Optimisation:
    """What both scripts let a user choose. None: what suits the task."""

    lr: float | None = cli.option(
        None, "peak learning rate of the blocks, or of a classifier's encoder; of LoRA, ten times as high"
    )
    embedding_lr: float | None = cli.option(
        None, "peak learning rate of embeddings and norms, or of a classifier's head"
    )
    optimizer: str | None = cli.option(
        None, "what moves the weights; with another than the task's own, give --lr, too", choices=tuple(OPTIMIZERS)
    )
    beta2: float | None = cli.option(
        None, "share of its mean of squared gradients that AdamW keeps: nearer to 1 where gradients are noisy"
    )
    warmup: float | None = cli.option(None, "share of the training in which the learning rates rise")
    schedule: str | None = cli.option(
        None, "how they fall from there (default: linear); wsd: in the last fifth", choices=tuple(SCHEDULES)
    )
    weight_decay: float | None = cli.option(None, "share, times the learning rate, that matrices lose in a step")
    clip: float | None = cli.option(None, "largest norm of a step's gradient; a longer one is cut to it")
    lora: int | None = cli.option(None, "adapt the model of --init by LoRA of this rank, such as 16, and freeze it")
    freeze: int | None = cli.option(None, "keep the embeddings and so many of the first blocks as they are")
    checkpointing: bool = cli.option(False, "keep no activations within blocks, but compute them twice: less memory")
    compile: bool = cli.option(False, "compile the blocks with torch.compile: a minute first, then maybe faster")


@dataclass(frozen=True)
class Supervised(Optimisation):
    """And what supervised learning lets them choose besides."""

    label_smoothing: float | None = cli.option(None, "share of each target that is spread over all there could be")
    shard: bool = cli.option(False, "divide the model over the processes of torchrun (FSDP2): less memory for each")
    ema: float | None = cli.option(None, "judge and save a moving average of the weights, of this decay, such as 0.999")


@dataclass(frozen=True)
class Rewarded(Optimisation):
    """And what learning by reward lets them choose, whatever the method."""

    reward: tuple[str, ...] = cli.option(
        (), "of the task by name, FILE.py:FUNCTION, or a run; =WEIGHT behind it; may be given several times"
    )
    reward_errors: str = cli.option(
        "stop",
        "where a function of yours fails: stop, saved, to go on at that step; or leave it out",
        ("stop", "skip"),
    )
    reward_seconds: float = cli.option(SECONDS, "that a function of yours may take for the answers of a step")
    environment: str | None = cli.option(
        None, "FILE.py:FUNCTION that replies to what the model says, which then goes on: answers of several turns"
    )
    turns: int | None = cli.option(None, f"of --environment: the most that an answer has (default: {TURNS})")
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
    evaluations: int = cli.option(
        4, "looks at the dev set after the first, the last included; fewer where they would take a fifth of --minutes"
    )


def check_common(args: Any, tasks: Collection[str]) -> None:
    """UserError for options of a script, which learns these tasks, that make no sense whatever the data is."""
    if args.task not in tasks:
        raise UserError(f"--task {args.task} is not one of {', '.join(tasks)}")
    budgets = [name for name in BUDGETS if name in vars(args)]
    cli.require_positive(args, *budgets, "patience")
    if len(given := [f"--{name}" for name in budgets if vars(args)[name] is not None]) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: give one budget")
    cli.require_choices(args, skip=("task",))
    if args.options:
        cli.require_choices(args.options)
    cli.require_seed(args)
    trackers.require(args.log_to)
    check_optimisation(args)


def check_rewarded(args: Rewarded) -> None:
    """UserError for answers that cannot be drawn, or judged, so many or so."""
    cli.require_positive(args, "prompts", "samples", "temperature", "evaluations", "micro_tokens", "reward_seconds")
    if args.watch is not None and not 0 <= args.watch <= cli.MOST_COUNTED:
        raise UserError(f"--watch {args.watch} must be 0 or more")
    if (args.prompts or 1) * (args.samples or 1) > MOST_ANSWERS:
        raise UserError(
            f"--prompts {args.prompts} with --samples {args.samples} are too many answers in a step; "
            f"{MOST_ANSWERS} are the most there can be"
        )
    if args.temperature is not None and args.temperature < LEAST_TEMPERATURE:
        raise UserError(
            f"--temperature {args.temperature} leaves nothing to chance; give at least {LEAST_TEMPERATURE} to learn"
        )


def check_optimisation(args: Optimisation) -> None:
    """UserError for options that make no sense whatever the model is."""
    cli.require_positive(args, "lr", "embedding_lr", "beta2", "clip", "lora")
    cli.require_share(args, "warmup", "the training")
    cli.require_share(args, "beta2", "that mean")
    if isinstance(args, Supervised):
        cli.require_share(args, "label_smoothing", "each target")
        cli.require_share(args, "ema", "the average")
    if isinstance(args, Supervised) and not args.init and (args.lora or args.freeze is not None):
        raise UserError("--lora and --freeze keep what a model knows: name it with --init")
    for name in ("weight_decay", "freeze"):
        value = vars(args)[name]
        if value is not None and not 0 <= value < cli.LARGEST:
            raise UserError(f"--{name.replace('_', '-')} {value} must be 0 or more")
