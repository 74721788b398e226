"""Supervised fine-tuning: learn from examples what to answer.

  python train_sft.py                                      pronunciation from scratch, under 3 minutes on two cores
  python train_sft.py --minutes 15                         the same with a larger model, better
  python train_sft.py --train words.txt --dev more.txt     your own lines `WORD  P H O N E S`
  python train_sft.py --task arithmetic                    the start of `python train_rl.py`
  python train_sft.py --task classify --init MODEL --train a.jsonl --dev b.jsonl     fine-tune a published BERT or GPT
  python train_sft.py --task classify --train a.csv --fields text=review,label=stars     one from scratch
  python train_sft.py --task seq2seq --train a.jsonl --fields prompt=en,answer=de     translation from scratch
  python train_sft.py --task chat --init MODEL --train a.jsonl     conversations, in the model's own template
  python train_sft.py --task tag --init MODEL --train a.conll --dev b.conll          entities, or slots and intents
  python train_sft.py --resume runs/pronounce-sft          go on where a run was interrupted

Objective: minimise − 1/n Σ log p(target | what the model has read) over the n targets of a step: the tokens of answers,
the end token included and prompts excluded; in classification the class of each text, in tagging that of each word.
The count n is taken once a step, however the step is cut. A step is a sample of the examples, of long and short ones
alike: about as many tokens each time, or, where one class stands for a whole text, as many texts. But for a count that
varies a little from step to step, this is the maximum likelihood of the answers in the data.
"""

import minillm  # noqa: F401, first: it sets how threads wait

# isort: split

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from minillm import cli, held_out, ranks
from minillm.batching import Corpus
from minillm.costs import memory_lines
from minillm.device import place, settle
from minillm.errors import UserError
from minillm.inspection import inspect
from minillm.objective import backward
from minillm.optim import optimizers_of
from minillm.options import Common, Supervised, check_common
from minillm.origin import begin, data_of
from minillm.report import introduce
from minillm.run import Run
from minillm.session import Session
from minillm.start import OF_SHAPE, prepare, refuse_beside_resume, resumed
from minillm.tasks import TASKS
from minillm.tasks.base import Task
from minillm.tokenizer import Tokenizer

UNTIL_EVERY = 10  # steps between looks at whether a training is good enough already


@dataclass(frozen=True)
class Args(Supervised, Common):
    task: str = cli.option("pronounce", "what to learn", choices=tuple(TASKS))
    init: Path | None = cli.option(
        None, "start from this model instead of from scratch: a run, a published folder, a .gguf file, an id of the hub"
    )
    epochs: float | None = cli.option(None, "train for so many passes over the examples, whatever time they take")
    until: float | None = cli.option(None, "stop once the mean reward of greedy dev answers reaches this")
    layers: int | None = cli.option(None, "blocks of the model (default here and below: what suits task and budget)")
    width: int | None = cli.option(None, "width of the residual stream")
    heads: int | None = cli.option(None, "attention heads")
    dropout: float | None = cli.option(None, "share of activations dropped in training")
    batch_tokens: int | None = cli.option(None, "tokens in a step, about")
    batch_examples: int | None = cli.option(None, "or examples in a step, of average length")
    micro_tokens: int | None = cli.option(None, "tokens computed at once; a step is cut up, with the same gradient")
    evaluations: int | None = cli.option(
        None, "looks at the dev set, the last included; fewer where they would take a fifth of --minutes"
    )
    inspect: int | None = cli.option(
        None, "print what so many examples teach, token by token; check all; train nothing"
    )


def check(args: Args) -> None:
    """UserError for options that make no sense whatever the data is."""
    check_common(args, TASKS)
    if args.batch_tokens and args.batch_examples:
        raise UserError("--batch-tokens and --batch-examples exclude each other")
    cli.require_positive(args, "until", "evaluations", "layers", "width", "heads")
    cli.require_positive(args, "batch_tokens", "batch_examples", "micro_tokens", "inspect")
    cli.require_share(args, "dropout", "activations")
    if args.init and (given := [name for name in OF_SHAPE if vars(args)[name] is not None]):
        raise UserError(
            f"--{given[0]} is for a model from scratch, but --init {args.init} brings its own; leave one out"
        )


def train(args: Args, console: Console | None = None) -> Run:
    """From the arguments to the finished run folder. UserError for all that the user can mend."""
    started, args = time.monotonic(), cli.with_paths(args)
    refuse_beside_resume(args) if args.resume else check(args)
    with ranks.joined() as team, ranks.opened(team, args, f"{TASKS[args.task].variant(args.options)}-sft") as run:
        console = ranks.console_of(team, console)
        args = resumed(dataclasses.replace(args, resume=run.folder), "sft", TASKS) if args.resume else args
        placement = ranks.alike(team, place(args.precision, args.kernels))
        options = args.options or TASKS[args.task].Options()
        args = dataclasses.replace(args, precision=placement.precision, options=options)
        task = TASKS[args.task](options, args.seed)
        data = data_of(run, task)
        args, model, tokenizer, corpus = prepare(args, task, run)
        settle(model, placement, args.checkpointing, args.compile)
        task.begin(model, corpus, run)
        parts = in_parts(args, model, team)
        session = Session(args, run, model, optimizers_of(parts.model if parts else model, args), console, team, parts)
        begin(session, "sft", args, task, tokenizer, data, started)
        introduce(console, placement, task, model, run, memory_lines(session, args, corpus))
        if task.looks_first and session.leads:
            held_out.look_first(session, task, model, tokenizer)
        fit(args, session, task, model, tokenizer, corpus)
        session.gather()
        if session.leads:
            held_out.keep(session, task, model, tokenizer)
            held_out.finish(session, task, model, tokenizer, corpus)
    return run


def in_parts(args: Args, model: nn.Module, team: ranks.Team | None) -> Any:
    """The model divided over the team, as --shard says. UserError."""
    if not args.shard:
        return None
    from minillm import sharding  # half a second to load, and only needed here

    return sharding.sharded(model, team, args)


def made(args: Args, console: Console, team: ranks.Team | None = None) -> Path:
    """The finished run in the folder --out, as it is where there is one: another training starts from it."""
    run = Run(args.out)
    there = run.is_finished, run.is_unfinished
    is_finished, is_unfinished = team.exchange(there)[0] if team else there  # before any of them begins
    if is_unfinished:  # its making was interrupted
        train(Args(resume=run.folder), console)
    elif not is_finished:
        console.print(f"there is no {run.folder} to start from, so supervised training comes first\n")
        train(args, console)
        console.print("\nand now reinforcement learning from there\n")
    if team:
        team.wait()  # for the first, who writes it
    return run.folder


def look_into(args: Args, console: Console | None = None) -> None:
    """What `train` would learn from, for a person. UserError likewise, and where a rule is broken."""
    check(args)
    task = TASKS[args.task](args.options or TASKS[args.task].Options(), args.seed)
    inspect(cli.with_paths(args), task, console or cli.console())


def fit(args: Args, session: Session, task: Task, model: nn.Module, tokenizer: Tokenizer, corpus: Corpus) -> None:
    """One step after the other until the budget is spent."""
    device, learner = next(model.parameters()).device, session.learner
    model.train()
    for step in session:
        parts = corpus.step(step, args.batch_tokens, args.micro_tokens, session.rank, session.ranks)
        batches = [batch.to(device) for batch in parts]
        session.count(parts)
        count = session.total(sum(task.count(batch) for batch in batches if not batch.is_spare))
        weights = zip(batches, task.weights(model, batches, count), strict=True)  # 1 / count, or see preference.py
        loss = sum(backward(learner, *each, 1.0, args.label_smoothing) for each in session.passes(weights))
        tokens = sum(len(batch.tokens) for batch in batches if not batch.is_spare)
        loss, tokens = session.total(float(loss)), session.total(tokens)
        session.log({"tokens": tokens}, loss=loss, gradient_norm=session.update(args.clip))

        if session.evaluation_is_due() and session.leads:
            held_out.look(session, task, model, tokenizer)
        if args.until and session.leads and (step + 1) % UNTIL_EVERY == 0:
            held_out.end_if_good(args.until, session, task, model, tokenizer)


def main() -> None:
    args = cli.parse_with_task(Args, TASKS, __doc__)
    look_into(args) if args.inspect else train(args)


if __name__ == "__main__":
    cli.run(main)
