"""What surrounds the steps of a training: budget, learning rate, Ctrl-C, saving, logging, the end.

    for step in session:            # until the budget is spent
        …                           # the algorithm: backward passes
        norm = session.update()     # the optimisers' step
        session.log(loss=…, gradient_norm=norm)

A session is no trainer: it calls nothing of the script, and what a step does stands in the script's loop.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from threading import Event
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from torch import nn

from minillm import cli, state
from minillm.batching import Batch
from minillm.errors import UserError
from minillm.files import write_tensors
from minillm.metrics import Interval
from minillm.optim import Optimizers, swap_average
from minillm.ranks import Team
from minillm.report import figures, flat
from minillm.run import BEST, CHECKPOINT, Run
from minillm.state import Progress
from minillm.trackers import Tracker
from minillm.wording import counted

SAVE_SECONDS = 60  # between checkpoints
LINE_SECONDS = 10  # between lines of progress where there is no terminal
LOOKING = 0.2  # of a training by the clock, the share that looks at the dev set may take
SURE_SECONDS, SURE_SHARE = 20, 0.01  # of the training, after either of which it is told how long the rest will take


class Session:
    def __init__(
        self,
        budget: Any,  # the options of a script: `steps` or `minutes`, `warmup`, `schedule`, `evaluations` and more
        run: Run,
        model: nn.Module,
        optimizers: Optimizers,
        console: Console,
        team: Team | None = None,
        sharded: Any = None,
    ):
        self.budget, self.run, self.model, self.optimizers, self.console = budget, run, model, optimizers, console
        self.team = team  # the processes that train together, see ranks.py
        self.sharded = sharded  # the model in parts, which learn then, see sharding.py
        self.parts = sharded.model if sharded else model
        self.rank, self.ranks = (team.rank, team.size) if team else (0, 1)
        self.leads = self.rank == 0  # whether this is the process that looks at the dev set and writes the run
        self.progress = Progress()
        self.peak_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
        self.share = 0.0  # of the training that was over when the step began
        self.looked = 0.0  # seconds of this process for looks at the dev set
        self.log_file: TextIO | None = None
        self.tracker: Tracker | None = None  # which gets the log, too
        self.born = time.monotonic()  # when the work began, had one process done all of it
        self.started: float | None = None  # likewise when its first step did
        self.step_began = self.born

    # ---- around a step ----

    def __iter__(self) -> Iterator[int]:
        """The number of one step after the other. KeyboardInterrupt, saved, where a signal asked to stop."""
        saved = self.progress.seconds
        self.started = time.monotonic() - saved
        with cli.postponed_signals() as stop, ProgressBar(self.console) as self.bar:
            while self.goes_on(stop):
                # Of a number of steps each has the rate of its middle, so that a single step learns, too.
                half = 0.5 / self.budget.steps if self.budget.steps else 0.0
                self.set_lr(schedule(self.share + half, self.budget.warmup, self.budget.schedule))
                self.step_began = time.monotonic()
                yield self.progress.step
                if self.total(self.leads and self.seconds() - saved > SAVE_SECONDS):  # by the first's clock
                    self.save()
                    saved = self.progress.seconds
            self.progress.is_over |= not stop.is_set()
            self.save()
        if stop.is_set():
            self.console.print(f"stopped at step {self.progress.step}", markup=False)
            raise KeyboardInterrupt

    def goes_on(self, stop: Event) -> bool:
        """Whether there is another step, in which all ranks agree: the first's clock counts, and anyone's signal."""
        self.share = self.share_done()
        if self.team:
            self.share, self.progress.is_over = self.team.led(self.share, self.progress.is_over, stop)
            self.team.reseed(self.budget.seed, self.progress.step)
        return self.share < 1 and not self.progress.is_over and not stop.is_set()

    def total(self, value: float) -> float:
        """Its sum over all ranks."""
        return self.team.total(value) if self.team else value

    @cached_property
    def learner(self) -> Any:
        """The model, or what adds its gradients up over all ranks in its `passes`."""
        return self.sharded or (self.team.learner(self.model) if self.team else self.model)

    def passes(self, things: Iterable[Any]) -> Iterable[Any]:
        """These things, each for a backward pass of a step, of which all ranks have as many."""
        return self.learner.passes(things) if self.team else things

    def add_up(self) -> None:
        """Makes the gradients the sum of all ranks', where each had passes of its own."""
        if self.team:
            self.team.add_up(self.model.parameters())

    def exchange(self, value: Any) -> list[Any]:
        """What each rank has, the first's first: whatever JSON can hold."""
        return self.team.exchange(value) if self.team else [value]

    def share_done(self) -> float:
        """Of the budget, from 0 to 1 and beyond."""
        if self.budget.steps:
            return self.progress.step / self.budget.steps
        return self.seconds() / (60 * self.budget.minutes)

    def seconds(self) -> float:
        """Of training so far, looks at the dev set included."""
        return time.monotonic() - self.started

    def process_seconds(self) -> float:
        """Of all processes that worked on it, from their beginning on."""
        return time.monotonic() - self.born

    def set_lr(self, factor: float) -> None:
        """Every learning rate to `factor` times its peak."""
        for optimizer, peaks in zip(self.optimizers, self.peak_lrs, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = factor * peak

    def update(self, clip: float | None = None, apart: nn.Module | None = None) -> float:
        """One step of the optimisers along the gradients, which are then forgotten; returns their norm before they
        were cut to a norm of `clip`: of all but those of `apart`, which are cut to it by themselves."""
        learned = [p for p in self.parts.parameters() if p.grad is not None]
        others = {*apart.parameters()} if apart else ()
        parts = [[p for p in learned if (p in others) == is_apart] for is_apart in (False, True)]
        norms = [torch.nn.utils.get_total_norm([p.grad for p in part]) for part in parts]
        norms[0] = norms[0].full_tensor() if self.sharded and learned else norms[0]
        for part, norm in zip(parts, norms, strict=True) if clip else ():
            torch.nn.utils.clip_grads_with_norm_(part, clip, norm)
        for optimizer in self.optimizers if learned else ():
            optimizer.step()
            optimizer.zero_grad()
        return float(norms[0])

    def count(self, batches: Iterable[Batch]) -> None:
        """Notes what a step learns from, so that `costs.operations` can tell what was computed."""
        lengths = self.progress.lengths
        for batch in batches:
            if batch.is_spare:
                continue
            self.progress.targets += batch.count
            for length in map(str, batch.packing.lengths):
                lengths[length] = lengths.get(length, 0) + 1

    def log(self, counts: Mapping[str, int] | None = None, **values: float) -> None:
        """Ends a step: counts it, writes its values to log.jsonl and shows them. `counts` are added up over steps.

        UserError for a value that is NaN or infinite.
        """
        progress = self.progress
        progress.step += 1
        progress.seconds, progress.of_steps = self.seconds(), progress.of_steps + time.monotonic() - self.step_began
        for name, count in (counts or {}).items():
            progress.totals[name] = progress.totals.get(name, 0) + count
        if strangers := progress.totals.keys() - (counts or {}):
            raise UserError(f"{self.run.path(CHECKPOINT)} counts {min(strangers)!r}, but this training does not")
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(f"the {name} became {value} at step {progress.step}; try a lower --lr")
        self.write(lr=self.optimizers[0].param_groups[0]["lr"], **values, **progress.totals)
        shown = " · ".join(f"{name} {value:.3f}" for name, value in list(values.items())[:1])
        rates = "".join(f" · {total / progress.seconds:,.0f} {name}/s" for name, total in progress.totals.items())
        rate = rates or f" · {progress.step / progress.seconds:.1f} steps/s"
        self.bar.update(self.share_done(), progress.seconds, f"step {progress.step} · {shown}{rate}")

    def write(self, **values: Any) -> None:
        """A line of log.jsonl. UserError if it cannot be written."""
        if self.log_file is None:
            self.log_file = self.run.open_log()
        record = {"step": self.progress.step, "seconds": round(self.progress.seconds, 3), **values}
        try:
            self.log_file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.log_file.name}: {error.strerror}") from None
        if self.tracker:
            self.tracker.write(record)
        self.progress.records += 1

    def close(self) -> None:
        """Nothing more is written."""
        self.log_file.close()
        if self.tracker:
            self.tracker.close()

    def end(self, reason: str) -> None:
        """No further step, though the budget is not spent."""
        self.progress.is_over = True
        self.console.print(f"step {self.progress.step}: {reason}")

    # ---- looks at the dev set ----

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has the weights that are judged and saved: where there is an average, that."""
        began = time.monotonic()
        swap_average(self.optimizers)
        try:
            yield
        finally:
            swap_average(self.optimizers)  # the other way round
            self.looked += time.monotonic() - began

    def evaluation_is_due(self) -> bool:
        """True once for each of the evaluations that are spread over the training, the last one excepted, and those for
        which the clock leaves no time; on all ranks, of which the first looks."""
        is_due = self.share >= (self.progress.evaluations + 1) / self.budget.evaluations
        self.progress.evaluations += is_due
        if is_due and not self.budget.steps:
            is_due = not self.total(self.leads and self.looked > LOOKING * self.seconds())
        if is_due:
            self.gather()
        return is_due

    def gather(self) -> None:
        """Where the model learns in parts, the first rank's whole one gets their weights."""
        if self.sharded:
            self.sharded.gather(self.model)

    def report(self, metrics: Mapping[str, Interval], count: int, **more: Any) -> None:
        """Shows and logs what was measured on so many dev examples."""
        self.write(**flat(metrics, "dev"), **more)
        self.console.print(f"step {self.progress.step}: {figures(metrics)} on {counted(count, 'dev example')}")

    def keep_if_best(self, score: float) -> None:
        """Remember the weights if no score before, of which higher is better, was higher: of equal looks, as of few dev
        examples, the later one has learned more."""
        self.progress.look(score)
        # The file is replaced more often than the checkpoint: after an interruption a look may be repeated, and by the
        # clock's budget with another result.
        path = self.run.path(BEST)
        if not path.exists() or score >= state.read_score(path):
            with self.averaged():
                write_tensors(path, state.weights_of(self.model), {state.SCORE: score})

    def take_best(self) -> None:
        """The weights that `keep_if_best` remembered."""
        if self.run.path(BEST).exists():
            state.read_weights(self.run.path(BEST), self.model)

    # ---- the run folder ----

    def save(self) -> None:
        """All that a process needs to go on from here. UserError, also for weights that are no numbers any more."""
        weights = self.sharded.local() if self.sharded else self.model.parameters()
        if self.total(not all(weight.isfinite().all() for weight in weights)):
            raise UserError(f"the weights became NaN or infinite by step {self.progress.step}; try a lower --lr")
        self.progress.process_seconds = self.process_seconds()
        if self.started is not None:
            self.progress.seconds = self.seconds()
        if self.log_file:
            os.fsync(self.log_file.fileno())
        if self.tracker:
            self.tracker.flush()
        path = self.run.path(CHECKPOINT) if self.leads else None
        state.save(path, self.parts, self.optimizers, vars(self.progress), self.sharded or state.Undivided)
        if self.team:  # or torchrun, which ends all soon after one has ended, might end the first while it writes
            self.team.wait()

    def restore(self) -> None:
        """The state in which `save` left the training, and its log. UserError."""
        path = self.run.path(CHECKPOINT)
        saved = state.load(path, self.parts, self.optimizers, self.sharded or state.Undivided)
        self.progress = Progress.of(saved, path)
        state.require_ranks(self.progress, self.ranks)
        if self.run.path(BEST).exists() or self.progress.best is not None:
            state.read_score(self.run.path(BEST))  # or it is spoiled
        there = self.run.cut_log(self.progress.records)
        if lost := self.progress.records - there:
            self.console.print(f"log.jsonl lacks {lost} of its records, lost or spoiled; going on without them")
        self.progress.records = there
        self.gather()


# ---- the learning rate ----

COOLDOWN = 0.2  # share of the training in which the rate of "wsd" falls
SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the peak, at a point of the training behind the warm-up
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,  # arXiv:1608.03983
    # Warm up, stay, decay: arXiv:2404.06395, its fall as in Hägele et al. 2024, arXiv:2405.18392.
    "wsd": lambda x: 1 - max(0.0, (x - 1 + COOLDOWN) / COOLDOWN) ** 0.5,
    "constant": lambda x: 1.0,
}


def schedule(share: float, warmup: float, shape: str = "linear") -> float:
    """Share of the peak learning rate at a point of the training from 0 to 1: linear up, then as one of SCHEDULES."""
    if share < warmup:
        return share / warmup
    return SCHEDULES[shape](min(1.0, (share - warmup) / (1 - warmup)))


class ProgressBar:
    """A bar on a terminal, a line now and then elsewhere. Use it as a context."""

    def __init__(self, console: Console):
        self.console = console
        columns = BarColumn(bar_width=24), TaskProgressColumn(), TextColumn("{task.fields[note]}")
        self.bar = RichProgress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=1.0, note="")
        self.last_line = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def update(self, done: float, seconds: float, note: str) -> None:
        """`done` is a share, `seconds` how long that took, `note` what to say beside it."""
        if done > SURE_SHARE or (done and seconds > SURE_SECONDS):
            note += f" · {clock(seconds * max(0.0, 1 / done - 1))} left"
        self.bar.update(self.task, completed=done, note=note)
        if not self.console.is_terminal and time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(f"{min(done, 1):4.0%}  {note}", highlight=False)


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
