"""What a training starts from: a run, a published checkpoint, or nothing; and the options that nobody gave."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import torch
from torch import nn

from minillm import cli, origin
from minillm.batching import Corpus, example_rng
from minillm.errors import UserError
from minillm.files import fields_from, read_json, write_tensors
from minillm.gpt import GPT
from minillm.layers import dropout_everywhere
from minillm.lora import LR_FACTOR, adapted
from minillm.optim import freeze
from minillm.options import BUDGETS
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.run import START, Run
from minillm.state import read_weights, weights_of
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer

Args = TypeVar("Args")  # the options of a script, a dataclass
UNSAID = {
    "evaluations": 4,
    "keep": "last",
    "schedule": "linear",
    "label_smoothing": 0.0,
    "optimizer": "adamw",
}  # where neither the user nor the recipe says anything
EARLIER = ("until", "patience")  # what ends a training before its budget is spent
SIZES = ("batch_tokens", "batch_examples")  # of a step, likewise
OF_SHAPE = ("layers", "width", "heads")  # options that a checkpoint has decided


def prepare(args: Args, task: Task, run: Run | None = None) -> tuple[Args, nn.Module, Tokenizer, Corpus]:
    """All that supervised training needs before its first step: its options, complete, the model, its tokenizer, the
    documents. Frozen weights are kept in the run, if there is one, which needs no other folder then. UserError."""
    require_examples(task)
    if args.resume:
        args = complete(args, {})
        model, tokenizer = resume_start(args.resume, task)
        if run.path(START).exists():
            read_weights(run.path(START), model)
        restrict(model, args)
    elif args.init:
        torch.manual_seed(args.seed)  # of a head that the checkpoint lacks
        model, tokenizer = open_start(args.init, task)
        args = complete(args, recipe_of(task, model, args))
        torch.manual_seed(args.seed)
        model = with_dropout(model, args.dropout)
        adapt(task, model, tokenizer, args.init)
        if run and (args.lora or args.freeze is not None):
            write_tensors(run.path(START), weights_of(model), {"init": str(args.init)})
        restrict(model, args)
    else:
        task.width = args.width
        tokenizer = task.tokenizer()
        args = complete(args, task.recipe(None, args.minutes))
        torch.manual_seed(args.seed)
        model = new_start(task, tokenizer, args)
    corpus = corpus_of(task, tokenizer, args.seed)
    if args.batch_examples:
        args = dataclasses.replace(args, batch_tokens=max(1, round(args.batch_examples * corpus.table.lengths.mean())))
    if args.epochs:
        args = dataclasses.replace(args, steps=max(1, round(args.epochs * corpus.steps_per_epoch(args.batch_tokens))))
    return dataclasses.replace(args, batch_examples=None, epochs=None), model, tokenizer, corpus


def recipe_of(task: Task, model: nn.Module, args: Args) -> dict[str, Any]:
    """What suits the task with the model of --init, and LoRA with both."""
    recipe = task.recipe(model, args.minutes)
    return {**recipe, "lr": LR_FACTOR * recipe["lr"]} if args.lora else recipe


def restrict(model: nn.Module, args: Any) -> None:
    """Leaves what --freeze and --lora leave to learn. UserError where they don't suit the model."""
    try:
        if args.freeze is not None:
            freeze(model, args.freeze)
        if args.lora:
            adapted(model, args.lora)
    except ValueError as error:
        option = f"--lora {args.lora}" if str(error).startswith("rank") else f"--freeze {args.freeze}"
        raise UserError(f"{option}: {error}") from None


def require_examples(task: Task, by_reward: bool = False, from_log: bool = False) -> None:
    """UserError for files that are only to be answered, and for prompts alone, unless answers to them are judged; from
    a log one may learn without either."""
    if not task.splits.train and task.splits.unlabelled and not by_reward:
        raise UserError(f"no training example of --task {task.name} has an answer; train_rl.py learns from rewards")
    if not task.splits.train and not task.splits.unlabelled and not from_log:
        raise UserError(f"--task {task.name} learns from your own examples: give --train FILE")
    if not task.splits.dev:
        raise UserError(f"--task {task.name} has no examples to watch progress on: give --dev FILE")


def corpus_of(task: Task, tokenizer: Tokenizer, seed: int) -> Corpus:
    """All training examples that have answers."""
    draw = lambda epoch: documents_of_epoch(task, tokenizer, seed, epoch)  # noqa: E731
    return Corpus(draw, seed, task.is_redrawn, task.counts_examples)


def documents_of_epoch(task: Task, tokenizer: Tokenizer, seed: int, epoch: int) -> list[list]:
    """The documents of every training example in one epoch."""
    rngs = (example_rng(seed, epoch, i) if task.is_redrawn else None for i in range(len(task.splits.train)))
    return [task.documents(example, tokenizer, rng) for example, rng in zip(task.splits.train, rngs, strict=True)]


def open_start(init: Path | str, task: Task) -> tuple[nn.Module, Tokenizer]:
    """The model that --init names, made to learn the task, and the tokenizer that it comes with. UserError.

    A run, a folder in Hugging Face's layout, a GGUF file, or the id of a model on the hub.
    """
    path = checkpoint.resolve(init)
    if (path / "args.json").exists() and not (path / "model.safetensors").exists():
        raise UserError(f"{path} is not finished; go on with --resume {quote(str(path))} first")
    saved = checkpoint.open_checkpoint(path)
    classes = task.classes and (saved.matching_classes(task.classes) or task.classes)  # in the checkpoint's order
    of_sequences = saved.matching_sequence_classes(task.sequence_classes) or task.sequence_classes
    fills = task.head == "mlm"  # whose head embedders and classifiers have lost
    return saved.load(task.head, classes, sequence_classes=of_sequences, may_be_new=fills), load_tokenizer(path)


def adapt(task: Task, model: nn.Module, tokenizer: Tokenizer, init: Path | str) -> None:
    """Has the task take the model that --init named. UserError where that does not suit the data."""
    try:
        task.adapt(model, tokenizer)
    except UserError as error:
        raise UserError(f"--init {init}: {error}") from None


def resume_start(folder: Path, task: Task) -> tuple[nn.Module, Tokenizer]:
    """A model of the shape that an unfinished run has, its weights still to be filled in, and its tokenizer."""
    model = checkpoint.Checkpoint(folder, read_json(folder / "config.json"), {}).new(task.head)
    tokenizer = load_tokenizer(folder)
    task.adapt(model, tokenizer)
    return model, tokenizer


def new_start(task: Task, tokenizer: Tokenizer, args: Any) -> nn.Module:
    """A model from scratch of the shape that `args` have. UserError where that cannot be."""
    require_memory(args)
    try:
        model = task.new_model(tokenizer, args)
    except ValueError as error:
        raise UserError(f"there is no such model: {error}") from None
    except (RuntimeError, MemoryError) as error:
        sizes = " ".join(f"--{name} {vars(args)[name]}" for name in OF_SHAPE)
        raise UserError(f"there is no memory for a model of {sizes}: {error}") from None
    task.adapt(model, tokenizer)
    return model


def require_memory(args: Any) -> None:
    """UserError for blocks that this machine could not train, before hours go by in making them."""
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        # A block has about 12 width² parameters, each with a gradient and two moments, and Python's objects around.
        needed = args.layers * (16 * 12 * args.width**2 + 50_000) / 2**30
        if needed > memory:
            raise UserError(
                f"to train a model of --layers {args.layers} --width {args.width} takes over {needed:,.0f} GiB of "
                f"memory, but this machine has {memory:,.0f}"
            )


def with_dropout(model: nn.Module, p: float | None) -> nn.Module:
    """The same model with dropout p wherever its family has any; as it is where p is None."""
    if p is None:
        return model
    try:
        config = dataclasses.replace(model.config, **dropout_everywhere(type(model.config), p))
    except ValueError as error:
        raise UserError(f"there is no such model: {error}") from None
    other = GPT(config) if isinstance(model, GPT) else type(model)(config, *model.outputs)
    other.load_state_dict(model.state_dict())
    if not isinstance(model, GPT):
        other.transform_is_trained, other.head_is_trained = model.transform_is_trained, model.head_is_trained
    return other


def complete(args: Args, recipe: Mapping[str, Any]) -> Args:
    """The options with the recipe's where none was given. A budget of one's own is used up."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    if given.keys() & set(BUDGETS):
        recipe = {name: value for name, value in recipe.items() if name not in (*BUDGETS, *EARLIER)}
    if given.keys() & set(SIZES):
        recipe = {name: value for name, value in recipe.items() if name not in SIZES}
    unsaid = {name: value for name, value in UNSAID.items() if name in vars(args)}
    return dataclasses.replace(args, **{**unsaid, **recipe, **given})


def inherited_options(start: Path | None, task: type[Task], options: Any = None) -> Any:
    """The task's options, and where none was given (None) those of the run to start from, so that data is the same.

    UserError for a run of another task.
    """
    options = options or task.Options()
    if not (start and (start / "args.json").exists()):
        return options
    used = Run(start).options()
    if used.get("task") != task.name:
        raise UserError(f"{start} was trained on --task {used.get('task')}, not on {task.name}")
    not_given = {name for name, value in vars(options).items() if value is None}
    taken = {name: value for name, value in used.items() if name in not_given and value is not None}
    return dataclasses.replace(options, **fields_from(task.Options, taken, start / "args.json"))


def resumed(args: Args, script: str, tasks: Mapping[str, type[Task]]) -> Args:
    """The options that the run --resume was started with; those that came later have their defaults. UserError."""
    run = Run.open(args.resume)
    if run.is_finished:
        raise UserError(f"{args.resume} is finished; to train its model further use --init {quote(str(args.resume))}")
    saved = run.options()
    saved.pop("given", None)
    if (maker := saved.pop("script", None)) is None:
        raise UserError(f"{args.resume}: args.json is of another version of this program; start a new run")
    if maker != script:
        raise UserError(f"{args.resume} is a run of another script; resume it with the script that made it")
    task = tasks.get(name) if isinstance(name := saved.get("task"), str) else None
    if task is None:
        raise UserError(f"{args.resume}: args.json names no task that there is, but {name!r}")
    if args.task not in (type(args).task, task.name):
        raise UserError(f"{args.resume} is a run of --task {task.name}; leave out --task {args.task}")
    origin.require_same_files(run)
    general, own = (set(cli.names_of(kind)) for kind in (type(args), task.Options))
    if unknown := saved.keys() - general - own:
        raise UserError(f"{args.resume}: args.json holds {min(unknown)!r}, which no option is called")
    where = args.resume / "args.json"
    options = task.Options(**fields_from(task.Options, {name: saved[name] for name in own & saved.keys()}, where))
    chosen = fields_from(type(args), {name: saved[name] for name in general & saved.keys()}, where)
    return type(args)(**{**chosen, "options": options, "resume": args.resume})


def refuse_beside_resume(args: Any) -> None:
    """UserError for an option, of the script or of its task, that --resume would ignore: from Python, where one that
    was given its default cannot be told from one that was not given. See cli.parse_with_task, too."""
    for given in (args, args.options) if args.options else (args,):
        for field in dataclasses.fields(given):
            if field.name not in ("resume", "options", "task") and vars(given)[field.name] != field.default:
                raise UserError(cli.BESIDE_RESUME.format(field.name.replace("_", "-"), quote(str(args.resume))))
