"""One job after the other, by the two scripts' own `train`. What is done is not done again; what was begun goes on."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

import train_rl
import train_sft
from experiment import measure
from experiment.noise import NOISE, noise
from experiment.plan import Job
from experiment.studies import Study
from minillm import cli
from minillm.errors import UserError
from minillm.files import read_json, write_json, write_text
from minillm.run import Run
from minillm.tasks import TASKS

SCRIPTS = {"sft": train_sft, "rl": train_rl}
PRECISION = "fp32"  # the same on every machine
BROKE = "try a lower --lr"  # ends what the scripts say where numbers became infinite
MOST_ASKED = 2000  # prompts that pairs are made of
MOST_PAIRS = 4  # of a prompt
MAY_GROW = ("arms", "shares", "seeds", "trials")


class Runner:
    def __init__(self, study: Study, jobs: Sequence[Job], folder: Path, console: Console):
        self.study, self.folder, self.console = study, folder, console
        self.jobs = {job.name: job for job in jobs}

    def run(self) -> None:
        """All that is not done yet. KeyboardInterrupt, with everything saved, where it was asked to stop."""
        started, begun = time.monotonic(), self.done()
        for i, job in enumerate(self.jobs.values()):
            if self.is_done(job):
                continue
            done = self.done()
            self.console.print(
                f"[{i + 1}/{len(self.jobs)}] {job.name}{left(started, done - begun, len(self.jobs) - done)}"
            )
            self.do(job)

    def done(self) -> int:
        return sum(map(self.is_done, self.jobs.values()))

    def is_done(self, job: Job) -> bool:
        return (self.path(job) / (measure.FILE if job.script in SCRIPTS else "pairs.jsonl")).exists()

    def path(self, job: Job) -> Path:
        return self.folder / job.name

    def do(self, job: Job) -> None:
        if job.script == "pairs":
            self.path(job).mkdir(parents=True, exist_ok=True)
            return write_text(self.path(job) / "pairs.jsonl", "".join(map(line, self.pairs(job))))
        try:
            self.train(job)
        except UserError as error:
            if BROKE not in str(error):
                raise
            return measure.save_failure(self.path(job), str(error))
        write_text(self.path(job) / "command.txt", self.command(job) + "\n")
        if job.kind in ("judge", "half"):
            return measure.save(self.path(job), {})
        sets = ["dev"] if job.kind == "search" else [*self.study.sets]
        found = measure.measured(self.study, self.path(job), self.origin(job), sets)
        of_gradients = {NOISE: noise(self.study, self.path(job), job)} if job.kind == "start" else {}
        return measure.save(self.path(job), {**found, **of_gradients})

    def origin(self, job: Job) -> Path:
        """The start that an arm went away from, whatever it went through."""
        while job.init:
            job = self.jobs[job.init]
        return self.path(job)

    def train(self, job: Job) -> None:
        script, run = SCRIPTS[job.script], Run(self.path(job))
        if run.is_finished:
            return
        if run.is_unfinished:
            script.train(script.Args(resume=run.folder), Console(quiet=True))
            return
        script.train(self.args(job), Console(quiet=True))

    def args(self, job: Job) -> Any:
        """What the script is called with."""
        kind = TASKS[job.task].Options
        task_options = dict(job.task_options)
        rate = job.base * (self.factor(job.arm) if job.factor is None else job.factor)
        options = {**job.options, "lr": rate, "task": job.task, "seed": job.seed, "out": self.path(job)}
        options |= {"embedding_lr": rate, "precision": PRECISION}
        if job.init:
            options["init"] = self.folder / job.init  # of a start that of the study, if any
        if job.helper:
            helper = self.folder / job.helper
            if job.script == "rl":
                options["reward"] = (str(helper),)  # the judge's
            else:
                task_options["train"] = helper / "pairs.jsonl"
        options |= {name: value for name, value in vars(job.budget).items() if value}
        return SCRIPTS[job.script].Args(**options, options=kind(**task_options))

    def command(self, job: Job) -> str:
        return f"python train_{job.script}.py {cli.command_line(cli.given(self.args(job)))}"

    # ---- the search ----

    def trials(self, arm: str) -> dict[float, float]:
        """Share of dev examples that were right after each of its trials, by the factor of the learning rate; NaN where
        it broke."""
        jobs = (job for job in self.jobs.values() if job.kind == "search" and job.arm == arm)
        return {job.factor: measure.share_right(self.path(job), "dev") for job in jobs if self.is_done(job)}

    def factor(self, arm: str) -> float:
        """That of the best trial; of equal ones, the one tried first."""
        found = {factor: right for factor, right in self.trials(arm).items() if right == right}
        return max(found, key=found.get, default=1.0)

    # ---- pairs ----

    def pairs(self, job: Job) -> list[dict[str, str]]:
        """Of the prompts whose answers are known: the right one, and wrong ones that the start gives."""
        task = self.study.made(job.share, job.seed)
        model, tokenizer = measure.opened(self.folder / job.init, task)
        examples = task.splits.train[:MOST_ASKED]
        answers = measure.draw(task, model, tokenizer, examples, job.seed)
        texts = [tokenizer.decode(tokens) for _, tokens, _ in answers]
        found = []
        for i, example in enumerate(examples):
            drawn = dict.fromkeys(texts[i * measure.DRAWN : (i + 1) * measure.DRAWN])
            wrong = [text for text in drawn if text.strip() and not example.is_right(text)]
            found += [
                {"prompt": example.prompt, "chosen": example.answers[0], "rejected": t} for t in wrong[:MOST_PAIRS]
            ]
        return found


def line(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def left(started: float, done: int, rest: int) -> str:
    """How long the rest takes if it goes on like this."""
    if not done:
        return ""
    return f" · about {(time.monotonic() - started) / done * rest / 60:.0f} min left"


def require_same(folder: Path, asked: Mapping[str, Any]) -> None:
    """What a folder holds must be of the same experiment; it may grow by arms, starts, seeds, trials. UserError."""
    path = folder / "experiment.json"
    asked = json.loads(json.dumps(asked))
    if path.exists():
        there = read_json(path)
        if different := [name for name in asked if name not in MAY_GROW and there.get(name) != asked[name]]:
            name = different[0]
            raise UserError(
                f"{folder} holds an experiment with {name} = {there.get(name)}, not {asked[name]}; "
                "give the same options, or another --out"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, asked)
