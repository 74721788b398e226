"""The options of optimisation, which both scripts share."""

from dataclasses import dataclass

from minillm import cli
from minillm.errors import UserError
from minillm.optim import OPTIMIZERS
from minillm.session import SCHEDULES


@dataclass(frozen=True)
class Optimisation:
    """What both scripts let a user choose. None: what suits the task."""

    lr: float | None = cli.option(
        None, "peak learning rate of the blocks, or of a classifier's encoder; of LoRA, ten times as high"
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

    optimizer: str | None = cli.option(None, "what moves the weights", choices=tuple(OPTIMIZERS))
    embedding_lr: float | None = cli.option(
        None, "peak learning rate of embeddings and norms, or of a classifier's head"
    )
    label_smoothing: float | None = cli.option(None, "share of each target that is spread over all there could be")
    ema: float | None = cli.option(None, "judge and save a moving average of the weights, of this decay, such as 0.999")


def check_optimisation(args: Optimisation) -> None:
    """UserError for options that make no sense whatever the model is."""
    cli.require_positive(args, "lr", "clip", "lora", *(["embedding_lr"] if isinstance(args, Supervised) else []))
    cli.require_share(args, "warmup", "the training")
    if isinstance(args, Supervised):
        cli.require_share(args, "label_smoothing", "each target")
        cli.require_share(args, "ema", "the average")
    if isinstance(args, Supervised) and not args.init and (args.lora or args.freeze is not None):
        raise UserError("--lora and --freeze keep what a model knows: name it with --init")
    for name in ("weight_decay", "freeze"):
        value = vars(args)[name]
        if value is not None and not 0 <= value < cli.LARGEST:
            raise UserError(f"--{name.replace('_', '-')} {value} must be 0 or more")
