"""What a training by reward starts from: an agent, and the options that nobody gave."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from minillm import cli
from minillm.actors import actor_of, by_reward
from minillm.batching import Corpus
from minillm.device import Placement, settle
from minillm.episodes import Agent
from minillm.errors import UserError
from minillm.files import fields_from, write_tensors
from minillm.lora import LR_FACTOR
from minillm.ranks import Team
from minillm.rewards import split_weight
from minillm.run import START, Run
from minillm.start import (
    Args,
    adapt,
    complete,
    corpus_of,
    inherited_options,
    new_start,
    open_start,
    require_examples,
    restrict,
    resume_start,
    with_dropout,
)
from minillm.state import read_weights, weights_of
from minillm.tasks.base import Example, Judged, Task
from minillm.tokenizer import Tokenizer
from minillm.values import with_value


def inheriting(args: Args, init: Path | None, tasks: Mapping[str, type[Task]]) -> Args:
    """The options with what to start from; where none was given, those that this was trained with. UserError."""
    options = inherited_options(init, tasks[args.task], args.options)
    return dataclasses.replace(args, init=init, options=by_reward(options, args.sft_share))


def open_agent(args: Args, run: Run, task: Judged, placement: Placement, team: Team | None) -> tuple[Args, Agent]:
    """The options, complete, and who is to learn under them. UserError."""
    start, tokenizer = open_policy(args, run, task)
    args = complete_by_reward(args, task, start)
    actor = actor_of(task, tokenizer)
    model = learner(start, placement, args)
    model = with_value(model) if args.learns_value else model
    place = (team.rank, team.size) if team else (0, 1)
    return args, Agent(model, start, tokenizer, actor, args.temperature, args.micro_tokens, *place)


def given_answers(args: Args, task: Task, tokenizer: Tokenizer) -> tuple[Corpus | None, int]:
    """Those that --sft-share learns from, if any, and how many of their tokens a step takes: of as many prompts as are
    answered in it."""
    if not args.sft_share:
        return None, 0
    corpus = corpus_of(task, tokenizer, args.seed)
    return corpus, round(args.prompts * float(corpus.table.lengths.mean()))


def open_policy(args: Args, run: Run, task: Task) -> tuple[nn.Module, Tokenizer]:
    """What reinforcement learning starts from. Its weights are kept in the run, which needs no other folder then."""
    require_examples(task, by_reward=True, from_log=bool(args.logged))
    if args.resume:
        model, tokenizer = resume_start(run.folder, task)
        read_weights(run.path(START), model)
        return model, tokenizer
    torch.manual_seed(args.seed)  # of what comes with no checkpoint
    if args.init:
        model, tokenizer = open_start(args.init, task)
        adapt(task, model, tokenizer, args.init)
        task.notes = [*task.notes, *notes_of(args)]
    else:
        tokenizer = task.tokenizer()
        model = new_start(task, tokenizer, SimpleNamespace(**task.recipe(None, None)))
    write_tensors(run.path(START), weights_of(model), {"init": str(args.init)})
    return with_dropout(model, args.dropout), tokenizer


def notes_of(args: Any) -> list[str]:
    """What was part of how the start was trained, and is not taken over, as code runs only where it is named."""
    if args.environment or not (used := trained_with(args.init).get("environment")):
        return []
    return [f"its start had answers of several turns; give --environment {used} for them here, too"]


def trained_with(start: Path) -> dict[str, Any]:
    """The options that made a run; nothing of what is none. UserError."""
    return Run(start).options() if (start / "args.json").exists() else {}


def learner(start: nn.Module, placement: Placement, args: Any) -> nn.Module:
    """What reinforcement learning moves away from `start`, which is put where it computes: a copy, which under --lora
    shares with it all that does not learn."""
    start.to(placement.device).eval().compute_dtype = placement.dtype
    torch.manual_seed(args.seed)
    shared = [p for name, p in start.named_parameters() if args.lora and name.startswith(start.pretrained)]
    model = copy.deepcopy(start, {id(p): p for p in shared})
    restrict(model, args)
    settle(model, placement, args.checkpointing, args.compile)
    return model


# ---- options that nobody gave ------------------------------------------------------------------------


def complete_by_reward(args: Args, task: Task, model: nn.Module) -> Args:
    """The options of reinforcement learning with what suits the task and the model, which it starts from, where none
    was given. UserError for what the data does not allow."""
    names = judges_of(args.reward, task)
    if not args.logged:
        require_judge(names, task)
    if args.sft_share and not task.splits.train:
        raise UserError(f"--sft-share {args.sft_share} learns from given answers, but the training examples have none")
    args = complete(args, {} if args.resume else recipe_by_reward(args, task, model, names))
    return dataclasses.replace(args, embedding_lr=args.embedding_lr or args.lr)


def recipe_by_reward(args: Any, task: Task, model: nn.Module, rewards: Sequence[str]) -> dict[str, Any]:
    """What a stranger judges, or a log does, is not pulled towards the task's own answers. UserError."""
    recipe = task.rl_recipe(model if args.init else None)
    if args.logged or not task.splits.train or any(name not in task.rewards for name in rewards):
        recipe |= {"sft_share": 0.0}
    if args.method == "expert":
        recipe |= recipe_of_experts(args.init, task, model)
    return {**recipe, "lr": LR_FACTOR * recipe["lr"]} if args.lora else recipe


def judges_of(rewards: Sequence[str], task: Judged) -> list[str]:
    """Their names, as --reward has them; the task's first where none is given."""
    return [split_weight(each)[0] for each in rewards] or list(task.rewards)[:1]


def require_judge(rewards: Sequence[str], task: Judged) -> None:
    """UserError where one of these compares with answers, and some prompts have none."""
    comparing = [name for name in rewards if name in task.rewards and name != "length"]
    if comparing and any(isinstance(each, Example) and not each.answers for each in task.splits.unlabelled):
        raise UserError(
            f"the reward {comparing[0]!r} compares with given answers, but some training prompts have none: give "
            "--reward FILE.py:FUNCTION, or a run"
        )


@dataclass
class Making:
    """How a run of train_sft.py made its model, as far as others may go on so."""

    optimizer: str
    lr: float
    embedding_lr: float
    batch_tokens: int


def recipe_of_experts(init: Path, task: Task, model: nn.Module) -> dict[str, Any]:
    """Supervised learning of what was found: with the optimiser, the batches and half of the rates that made the model;
    of one from elsewhere, with what suits it. From how many prompts a step comes is left to the method. UserError."""
    if task.head != "lm":
        raise UserError(f"--method expert learns from texts that were right; --task {task.name} writes none")
    recipe = task.recipe(model, None)
    names = cli.names_of(Making)
    used = trained_with(init)
    if used.get("script") == "sft" and not used.get("lora"):
        made = Making(**fields_from(Making, {name: used.get(name) for name in names}, init / "args.json"))
        recipe |= dataclasses.asdict(made) | {"lr": made.lr / 2, "embedding_lr": made.embedding_lr / 2}
    recipe = {name: value for name, value in recipe.items() if name in (*names, "warmup")}
    return {**recipe, "prompts": None, "samples": 4, "temperature": 1.0, "rounds": 3, "sft_share": None}
