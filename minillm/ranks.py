"""Several processes that train one model: torchrun --nproc-per-node 2 train_sft.py …

Each process, a rank, has the whole model and knows the whole step, of whose examples it takes its share. PyTorch's
DistributedDataParallel (Li et al. 2020, arXiv:2006.15704) adds the gradients up while they are computed. What a step is
divided by is counted over all ranks, so that many have the gradient of one, to rounding. The first looks at the dev set
and writes the run; the others work in copies of its folder, which go when they do.

A process alone has no team, and never comes here.
"""

import datetime
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from minillm.batching import Batch
from minillm.device import Placement
from minillm.errors import UserError
from minillm.run import LOCK, Run

PATIENCE = datetime.timedelta(days=7)  # that ranks wait for each other; the first may look at a dev set for hours
T = TypeVar("T")
Number = TypeVar("Number", int, float)


class Team:
    """The processes that torchrun has started, and which of them this one is."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, value: Number) -> Number:
        """The sum of all ranks' values."""
        return type(value)(self.reduced([value], dist.ReduceOp.SUM)[0])

    def led(self, share: float, is_over: bool, stop: Event) -> tuple[float, bool]:
        """The first's share of the training that is done, by its clock, and whether it is over; a signal that any of
        them got, all have got."""
        own = (share, is_over) if self.is_first else (0.0, False)
        share, is_over, is_asked = self.reduced([*own, stop.is_set()], dist.ReduceOp.MAX)
        if is_asked:
            stop.set()
        return share, bool(is_over)

    def reduced(self, values: Iterable[float], how: Any) -> list[float]:
        numbers = torch.tensor([*values], dtype=torch.float64)
        with heard():
            dist.all_reduce(numbers, how)
        return numbers.tolist()

    def wait(self) -> None:
        """Until all are here."""
        self.reduced([0], dist.ReduceOp.SUM)

    def alike(self, placement: Placement) -> Placement:
        """With the precision that the first has chosen, by its own clock."""
        is_bf16 = self.reduced([self.is_first and placement.dtype == torch.bfloat16], dist.ReduceOp.MAX)[0]
        dtype, precision = (torch.bfloat16, "bf16") if is_bf16 else (torch.float32, "fp32")
        return placement._replace(dtype=dtype, precision=precision)

    def reseed(self, seed: int, step: int) -> None:
        """Each rank draws numbers of its own in a step, the same ones whenever that step is done."""
        torch.manual_seed(int(np.random.default_rng((seed, step, self.rank)).integers(2**63)))

    def learner(self, model: nn.Module) -> "Learner":
        return Learner(model)


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


def require_alone(script: str) -> None:
    """UserError where several processes were started for what one does."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_torchelastic_launched():
        raise UserError(f"{script} trains in one process; start it with python, not with torchrun")


@contextmanager
def opened(team: Team | None, folder: Path | None, make: Callable[[Path | None], Run]) -> Iterator[Run]:
    """The run that `make` makes of the folder; with a team it is the first rank's, of which the others have copies."""
    if team is None or team.is_first:
        with make(folder) as run:
            for _ in range(2 if team else 0):  # it is there; the others have their copies
                team.wait()
            yield run
        return
    team.wait()
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "run"
        if folder and folder.exists():  # to be gone on with
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(LOCK))
        team.wait()
        with make(copy) as run:
            yield run
