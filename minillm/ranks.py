"""Several processes that train one model: torchrun --nproc-per-node 2 train_sft.py …, and train_rl.py likewise.

Each process, a rank, has the whole model and knows the whole step, of which it computes its share. What a step is
divided by is counted over all ranks, so that many have the gradient of one, to rounding. The first looks at the dev set
and writes the run; the others work in copies of its folder, which go when they do.

By example PyTorch's DistributedDataParallel (Li et al. 2020, arXiv:2006.15704) adds the gradients up while they are
computed. It wants as many backward passes of each rank, and by reward one may have more than others, or none: there
they are added up when all are done. Each rank draws and judges the answers to its share of the prompts, and all are
told what the others drew, so that each computes for itself whatever depends on a whole step.

A process alone has no team, and never comes here.
"""

import datetime
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from minillm import cli
from minillm.batching import Batch
from minillm.device import Placement
from minillm.errors import UserError
from minillm.functions import RewardError
from minillm.run import LOCK, Run

PATIENCE = datetime.timedelta(days=7)  # that ranks wait for each other; the first may look at a dev set for hours
T = TypeVar("T")
Number = TypeVar("Number", int, float)
SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX


class Team:
    """The processes that torchrun has started, and which of them this one is."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, value: Number) -> Number:
        """The sum of all ranks' values."""
        return type(value)(self.reduced([value], SUM)[0])

    def led(self, share: float, is_over: bool, stop: Event) -> tuple[float, bool]:
        """The first's share of the training that is done, by its clock, and whether it is over; a signal that any of
        them got, all have got."""
        own = (share, is_over) if self.is_first else (0.0, False)
        share, is_over, is_asked = self.reduced([*own, stop.is_set()], MAX)
        if is_asked:
            stop.set()
        return share, bool(is_over)

    def reduced(self, values: Iterable[float], how: Any) -> list[float]:
        numbers = torch.tensor([*values], dtype=torch.float64)
        with heard():
            dist.all_reduce(numbers, how)
        return numbers.tolist()

    def exchange(self, value: Any) -> list[Any]:
        """What each rank has, the first's first: whatever JSON can hold."""
        own = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [int(size) for size in self.reduced([len(own) * (r == self.rank) for r in range(self.size)], SUM)]
        texts = own.new_zeros(self.size, max(sizes))
        texts[self.rank, : len(own)] = own
        with heard():
            dist.all_reduce(texts, SUM)
        return [json.loads(bytes(text[:size].numpy())) for text, size in zip(texts, sizes, strict=True)]

    def add_up(self, parameters: Iterable[Tensor]) -> None:
        """Makes each gradient the sum of all ranks'; one that no rank has stays none."""
        parameters = [*parameters]
        are_known = self.reduced([p.grad is not None for p in parameters], MAX)
        learned = [p for p, is_known in zip(parameters, are_known, strict=True) if is_known]
        with heard():
            for parameter in learned:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for work in [dist.all_reduce(parameter.grad, SUM, async_op=True) for parameter in learned]:
                work.wait()

    def wait(self) -> None:
        """Until all are here."""
        self.reduced([0], SUM)

    def learner(self, model: nn.Module) -> "Learner":
        return Learner(model)

    def reseed(self, seed: int, step: int, *more: int) -> None:
        """Each rank draws numbers of its own in a step, the same ones whenever that step is done."""
        reseed(seed, step, self.rank, *more)

    def reseed_alike(self, seed: int, step: int) -> None:
        """From here on in a step all ranks draw the same numbers, which are those of none of them."""
        reseed(seed, step, self.size)


def reseed(*numbers: int) -> None:
    """All generators, also those that a reward of somebody's may draw from."""
    own, pythons, numpys = np.random.default_rng(numbers).integers(2**32, size=3)
    torch.manual_seed(int(own))
    random.seed(int(pythons))
    np.random.seed(int(numpys))


class Learner:
    """Has the loss of a model, as `objective.Model` says, but one whose gradients are the sum over all ranks."""

    def __init__(self, model: nn.Module):
        self.parallel = DistributedDataParallel(Losses(model))
        self.parallel.register_comm_hook(None, summed)

    def passes(self, things: Iterable[T]) -> Iterator[T]:
        """These things, each for a backward pass, the last of which adds up what all of them found."""
        things = [*things]
        for thing in things[:-1]:
            with self.parallel.no_sync():
                yield thing
        yield things[-1]

    def loss(self, *args: Any) -> Tensor:
        with heard():
            return self.parallel(*args)


class Losses(nn.Module):
    """A module whose call is the loss, since that is what DistributedDataParallel gets ready for."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, *args: Any) -> Tensor:
        losses = self.model.loss(batch, *args)
        return losses * 0 if batch.is_spare else losses


def summed(_: None, bucket: dist.GradBucket) -> Future[Tensor]:
    """The sum where DistributedDataParallel would take the mean: what it is divided by stands in the weights."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda done: done.value()[0])


@contextmanager
def heard() -> Iterator[None]:
    """Within it other ranks are listened to. UserError where one of them is gone."""
    try:
        yield
    except dist.DistBackendError as error:
        raise gone() from error
    except RuntimeError as error:
        if "gloo" not in str(error).lower():
            raise
        raise gone() from error


def gone() -> UserError:
    return UserError("another rank has ended; what it said is the reason")


@contextmanager
def joined() -> Iterator[Team | None]:
    """The team of this process; None where it is alone. A process group that there is already is made use of."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if dist.is_initialized():
        yield Team(dist.get_rank(), dist.get_world_size())
        return
    if size == 1 or not dist.is_torchelastic_launched():
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield Team(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()


def console_of(team: Team | None, console: Console | None) -> Console:
    """Where a process says what happens: those that are not the first, nowhere."""
    return Console(quiet=True) if team and not team.is_first else console or cli.console()


def alike(team: Team | None, placement: Placement) -> Placement:
    """With the precision that the first has chosen, by its own clock."""
    if team is None:
        return placement
    is_bf16 = team.exchange(placement.dtype == torch.bfloat16)[0]
    dtype, precision = (torch.bfloat16, "bf16") if is_bf16 else (torch.float32, "fp32")
    return placement._replace(dtype=dtype, precision=precision)


@contextmanager
def opened(team: Team | None, args: Any, name: str) -> Iterator[Run]:
    """The run of a script's options, one of this name unless there is an --out, or that of --resume; with a team it is
    the first rank's, of which the others have copies. UserError; see also `saying_how_to_go_on`."""

    def run_in(folder: Path | None) -> Run:
        return Run.open(folder) if args.resume else Run.create(folder, name, cli.given(args))

    folder = args.resume or args.out
    if team is None or team.is_first:
        with run_in(folder) as run:
            run.processes = team.size if team else 1
            for _ in range(2 if team else 0):  # it is there; the others have their copies
                team.wait()
            with saying_how_to_go_on(run, is_first=True):
                yield run
        return
    team.wait()
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "run"
        if folder and folder.exists():  # to be gone on with
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(LOCK))
        team.wait()
        with run_in(copy) as run, saying_how_to_go_on(run, is_first=False):
            yield run


@contextmanager
def saying_how_to_go_on(run: Run, is_first: bool) -> Iterator[None]:
    """A KeyboardInterrupt or a RewardError within it, which leave an unfinished run, name the command that goes on with
    it; the latter is a UserError then. Who works in a copy leaves that to the first."""
    try:
        yield
    except KeyboardInterrupt:
        known = [f"go on with: {run.resume_command}"] if is_first and run.is_unfinished else []
        raise KeyboardInterrupt(*known) from None
    except RewardError as error:
        if not is_first:
            raise gone() from None
        raise UserError(f"{error}; nothing is lost: mend it, and go on with: {run.resume_command}") from None
