"""All that an experiment has measured: matrices of seeds × examples, what each run cost, and the CSV of it.

Letters: S seeds, n examples.
"""

import csv
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiment import measure, plan
from experiment.arms import ARMS
from experiment.effects import bounded, effect, mean_of
from experiment.noise import NOISE
from experiment.plan import Design, Job
from experiment.runner import Runner
from experiment.studies import Study
from minillm.files import read_json, replacing
from minillm.metrics import Interval
from minillm.run import Run

START = "start"
TERA = 1e12
COLUMNS = (
    *("task", "arm", "labels_share", "labels", "seed", "kind", "set", "metric", "value"),
    *("step", "seconds", "operations", "verdicts", "learning_rate"),
)
COUNTED = ("right", "passed", "entropy", "kl", "distinct", "nats", "error")


class Cost(NamedTuple):
    """Of a run, without that of its start."""

    labels: int  # examples whose answers were learned from, those of the start included
    verdicts: int  # answers of its own that were judged, at most
    operations: float  # floating-point, at most
    seconds: float


class Results:
    def __init__(self, study: Study, design: Design, work: Runner):
        self.study, self.design, self.work = study, design, work
        self.finished = [job for job in work.jobs.values() if work.is_done(job)]

    # ---- results of arms ----

    def job(self, arm: str, share: float, seed: int) -> Job | None:
        """A finished one."""
        name = plan.place(arm, share, seed)
        return next((job for job in self.finished if job.name == name), None)

    def seeds(self, *cells: tuple[str, float]) -> list[int]:
        """Those with which all of these arms at shares were finished."""
        return [seed for seed in range(self.design.seeds) if all(self.job(*cell, seed) for cell in cells)]

    def has(self, arm: str, share: float | None = None) -> bool:
        return bool(self.seeds((arm, share or self.design.shared)))

    def matrix(self, arm: str, what: str, of: str, share: float, seeds: Sequence[int]) -> np.ndarray | None:
        """(S, n): `what` of each example of the set, the mean of several answers to it. A training that broke is right
        nowhere; of what else it did nothing is known → None."""
        rows = [self.row(self.path(arm, share, seed), what, of) for seed in seeds]
        known = next((row for row in rows if row is not None), None)
        if known is None or (what not in ("right", "passed") and any(row is None for row in rows)):
            return None
        return np.stack([np.zeros_like(known) if row is None else row for row in rows])

    def path(self, arm: str, share: float, seed: int) -> Path:
        return self.work.folder / plan.place(arm, share, seed)

    def row(self, folder: Path, what: str, of: str) -> np.ndarray | None:
        some = self.loaded(folder).get(of, {})
        if what == "any":  # of several answers drawn: whether one is right; of a classifier what 8 draws would give
            passed = some.get("passed")
            return None if passed is None else pass_at_k(passed)
        return None if what not in some else some[what].reshape(len(some[what]), -1).mean(axis=1)

    def loaded(self, folder: Path) -> dict[str, dict[str, np.ndarray]]:
        if folder not in self.cache:
            self.cache[folder] = measure.load(folder)
        return self.cache[folder]

    @cached_property
    def cache(self) -> dict[Path, Any]:
        return {}

    def value(self, arm: str, what: str = "right", of: str = "test", share: float | None = None) -> Interval | None:
        share = share or self.design.shared
        found = self.matrix(arm, what, of, share, self.seeds((arm, share)))
        if found is None:
            return None
        return bounded(mean_of(found, form_of(what)))

    def difference(
        self, first: str, second: str, what: str = "right", of: str = "test",
        share: float | None = None, other_share: float | None = None,
    ) -> Interval | None:  # fmt: skip
        """The first arm's less the second's, on the same examples, from the same starts; None where one is missing."""
        pair = self.pair(first, second, what, of, share, other_share)
        return pair and effect(*pair, form_of(what))

    def pair(
        self, first: str, second: str, what: str, of: str, share: float | None = None, other_share: float | None = None
    ) -> tuple[np.ndarray, np.ndarray] | None:
        share = share or self.design.shared
        other_share = other_share or share
        seeds = self.seeds((first, share), (second, other_share))
        found = [self.matrix(arm, what, of, s, seeds) for arm, s in ((first, share), (second, other_share)) if seeds]
        return None if len(found) < 2 or any(each is None for each in found) else (found[0], found[1])

    def agreement(self, told: str, share: float) -> list[float]:
        """Of each seed the mean cosine of the gradients of two batches at its start, of "labels" or of "verdicts"."""
        found = [self.row(self.path(START, share, seed), told, NOISE) for seed in self.seeds((START, share))]
        return [float(row.mean()) for row in found if row is not None]

    def failures(self) -> list[str]:
        found = [job for job in self.finished if measure.has_failed(self.work.path(job))]
        return [f"{job.name}: {read_json(self.work.path(job) / measure.FAILURE)['why']}" for job in found]

    # ---- what it cost ----

    def cost(self, job: Job) -> Cost:
        run = Run(self.work.path(job))
        log = run.read_log()
        steps, seconds = max((r["step"] for r in log), default=0), max((r["seconds"] for r in log), default=0.0)
        tokens = max((r["tokens"] for r in log if "tokens" in r), default=0)
        before = self.cost(self.work.jobs[job.init]) if self.goes_on(job) else Cost(0, 0, 0.0, 0.0)
        operations = plan.operations(self.study, job, steps, tokens) * self.parameters(run)
        verdicts = plan.verdicts(self.study, job, steps)
        labels = len(self.study.made(job.share, job.seed).splits.train)
        return Cost(labels, verdicts + before.verdicts, operations + before.operations, seconds + before.seconds)

    def goes_on(self, job: Job) -> bool:
        return job.init is not None and self.work.jobs[job.init].kind == "half"

    def parameters(self, run: Run) -> int:
        path = run.path("report.json")
        return read_json(path).get("model", {}).get("parameters", 0) if path.exists() else 0

    def mean_cost(self, arm: str, share: float | None = None) -> Cost | None:
        share = share or self.design.shared
        found = [self.cost(self.job(arm, share, seed)) for seed in self.seeds((arm, share))]
        return Cost(*(np.mean(column) for column in zip(*found, strict=True))) if found else None

    def command(self, job: Job) -> str:
        """What does it again, in the folder where the experiment is by default; nothing where it was lost."""
        path = self.work.path(job) / "command.txt"
        text = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        return text.replace(str(self.work.folder), f"runs/{self.study.name}-sft-vs-rl")

    # ---- in training ----

    def looks(self, arm: str, axis: str) -> list[tuple[list[float], list[float]]]:
        """For each seed where the looks at dev were, on "operations" or "seconds", and the share that was right."""
        share, found = self.design.shared, []
        for seed in self.seeds((arm, share)):
            job = self.job(arm, share, seed)
            cost, run = self.cost(job), Run(self.work.path(job))
            looks = [r for r in run.read_log() if f"dev_{self.headline}" in r]
            last = max((r["step"] for r in looks), default=0)
            if last and job.task == self.study.task and not self.goes_on(job):
                whole = cost.operations / TERA if axis == "operations" else cost.seconds
                found.append(([whole * r["step"] / last for r in looks], [self.share_right(r) for r in looks]))
        return found

    @cached_property
    def headline(self) -> str:
        return self.study.made(self.design.shared, 0).headline

    @cached_property
    def lower_is_better(self) -> bool:
        return self.study.made(self.design.shared, 0).lower_is_better

    def share_right(self, record: dict[str, Any]) -> float:
        value = record[f"dev_{self.headline}"]
        return 1 - value if self.lower_is_better else value

    # ---- the CSV ----

    def rows(self) -> Iterator[dict[str, Any]]:
        for job in self.finished:
            if job.kind not in ("start", "search", "arm"):
                continue
            cost, kind = self.cost(job), job.kind
            options = Run(self.work.path(job)).path("args.json")
            same = {
                "task": self.study.name, "arm": job.arm, "labels_share": job.share, "labels": cost.labels,
                "seed": job.seed, "learning_rate": read_json(options)["lr"] if options.exists() else None,
            }  # fmt: skip
            for record in Run(self.work.path(job)).read_log():
                if f"dev_{self.headline}" in record:
                    at = {"step": record["step"], "seconds": record["seconds"]}
                    yield {
                        **same,
                        **at,
                        "kind": "look",
                        "set": "dev",
                        "metric": "right",
                        "value": self.share_right(record),
                    }
            paid = {"seconds": cost.seconds, "operations": cost.operations, "verdicts": cost.verdicts}
            for of, some in self.loaded(self.work.path(job)).items():
                for what in (name for name in COUNTED if name in some):
                    yield {**same, **paid, "kind": kind, "set": of, "metric": what, "value": float(some[what].mean())}
                if "passed" in some:
                    value = float(pass_at_k(some["passed"]).mean())
                    yield {**same, **paid, "kind": kind, "set": of, "metric": "pass@8", "value": value}

    def write_csv(self, path: Path) -> None:
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: rounded(value) for name, value in row.items()} for row in self.rows())


def pass_at_k(passed: np.ndarray, k: int = measure.DRAWN) -> np.ndarray:
    """Whether one of k answers is right: as drawn, or where one column has the probability, that of it."""
    return 1 - (1 - passed[:, 0]) ** k if passed.shape[1] == 1 else passed.max(axis=1)


def form_of(what: str) -> str:
    return ".3f" if what in ("nats", "entropy", "kl") else ".1%"


def rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def title_of(arm: str) -> str:
    return "the start" if arm == START else ARMS[arm].title


def told(arm: str) -> str:
    return ARMS[arm].is_told if arm in ARMS else "labels"
