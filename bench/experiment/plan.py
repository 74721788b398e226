"""Arms × starts × seeds as jobs, each a call of a script, in an order in which what one builds on comes before it.

    start   supervised training on a share of the labels, one for each share and seed: all arms begin there
    search  short trials of an arm on the dev examples of the first seed, as many learning rates for each arm
    arm     an arm, at the rate that its search found

Every arm has the same budget: minutes, or a number of steps of reinforcement learning and, for what learns by example,
as many steps as cost the same floating-point operations (rollouts counted).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from experiment.arms import ARMS, Arm
from experiment.studies import Study
from minillm.costs import LEARNED, READ

SHARED = 0.05  # the share of labels whose start all arms have
FACTORS = (1.0, 0.3, 3.0, 0.1, 10.0)  # of an arm's usual learning rate, the likeliest first
OF_TRIALS = 0.5  # of an arm's budget, a trial has


@dataclass(frozen=True)
class Budget:
    steps: int | None = None  # of reinforcement learning, or …
    minutes: float | None = None

    def part(self, share: float) -> "Budget":
        return Budget(self.steps and max(1, round(share * self.steps)), self.minutes and share * self.minutes)


@dataclass(frozen=True)
class Job:
    name: str  # and that of its folder
    kind: str  # "start", "search", "arm"; "half", "pairs", "judge": what an arm is built on
    arm: str
    share: float  # of the labels
    seed: int
    script: str  # "sft", "rl"; "pairs": of answers right and wrong, for the start's own prompts
    task: str
    task_options: Mapping[str, Any]
    options: Mapping[str, Any]
    budget: Budget
    base: float  # the usual learning rate
    factor: float | None = None  # of that; None: as the search of its arm found
    init: str | None = None  # the job that it begins from
    helper: str | None = None  # the job whose pairs or judge it needs


@dataclass(frozen=True)
class Design:
    """What is compared."""

    arms: Sequence[str]
    shares: Sequence[float]
    seeds: int
    budget: Budget
    trials: int

    @property
    def shared(self) -> float:
        """The share at which all arms begin: that nearest to SHARED."""
        return min(self.shares, key=lambda share: abs(share - SHARED))


def jobs(study: Study, design: Design) -> list[Job]:
    """All of them, each after those that it needs, and those first that answer most: where it is stopped early, the
    report has all seeds at the shared start before it has any other."""
    found: dict[str, Job] = {}
    for job in (
        *trials(study, design),
        *arms_of(study, design, at_shared=True),
        *arms_of(study, design, at_shared=False),
    ):
        found.setdefault(job.name, job)
    return list(found.values())


def trials(study: Study, design: Design) -> Iterator[Job]:
    for name in design.arms:
        for factor in FACTORS[: design.trials]:
            yield from of_arm(study, design, ARMS[name], design.shared, 0, factor)


def arms_of(study: Study, design: Design, at_shared: bool) -> Iterator[Job]:
    larger_first = sorted(design.shares, key=lambda share: (share < design.shared, share))
    shares = [share for share in larger_first if (share == design.shared) == at_shared]
    for share, seed in product(shares, range(design.seeds)):
        yield start(study, share, seed)
        for name in design.arms:
            if at_shared or ARMS[name].at_every_start:
                yield from of_arm(study, design, ARMS[name], share, seed, None)


def start(study: Study, share: float, seed: int) -> Job:
    return Job(
        place("start", share, seed), "start", "start", share, seed, "sft", study.task, study.options(share),
        study.start(), Budget(), study.start_lr, 1.0,
    )  # fmt: skip


def of_arm(study: Study, design: Design, arm: Arm, share: float, seed: int, factor: float | None) -> Iterator[Job]:
    """The arm, or a trial of it with a learning rate, behind what it is built on."""
    budget = design.budget.part(0.5) if arm.after else design.budget
    init, helper = place("start", share, seed), None
    yield start(study, share, seed)
    if arm.after:
        half = Arm(arm.after, "", "", "sft")
        yield job(study, half, share, seed, budget, init, name=place("half", share, seed), kind="half")
        init = place("half", share, seed)
    if arm.helper:
        helper = place("pairs", share, seed)
        yield Job(
            helper, "pairs", "pairs", share, seed, "pairs", study.task, study.options(share), {}, Budget(), 0.0, 1.0,
            init,
        )  # fmt: skip
        if arm.helper == "judge":
            yield judge(study, share, seed)
            helper = place("judge", share, seed)
    if factor is None:
        yield job(study, arm, share, seed, budget, init, helper)
    else:
        name = f"search/{place(arm.name, share, seed)}-x{factor:g}"
        yield job(study, arm, share, seed, budget.part(OF_TRIALS), init, helper, name, "search", factor)


def job(
    study: Study, arm: Arm, share: float, seed: int, budget: Budget, init: str, helper: str | None = None,
    name: str | None = None, kind: str = "arm", factor: float | None = None,
) -> Job:  # fmt: skip
    """A call of the arm's script. An arm that learns from preferences has them as its task."""
    options, task, task_options = dict(arm.options), study.task, study.options(share)
    if arm.name == "expert":
        options = {**study.expert(), **options}
    elif arm.script == "rl":
        options = {**study.reinforced(), **options}
    elif arm.helper:
        task, task_options = "preference", {"method": arm.name}
        options = {**preferring(study), **options}
    else:
        options = {**study.supervised(), **options}
        task_options = {**task_options, **(study.diverse if arm.name == "sft-diverse" else {})}
    base = study.lrs.get(arm.name, study.lrs[arm.script])
    found = Job(
        name or place(arm.name, share, seed), kind, arm.name, share, seed, arm.script, task, task_options, options,
        budget, base, factor, init, helper,
    )  # fmt: skip
    return replace(found, budget=Budget(equal(study, found, budget.steps))) if budget.steps else found


def judge(study: Study, share: float, seed: int) -> Job:
    """A reward model of the same kind, from pairs: learned once for each start."""
    options = {**preferring(study), "dropout": 0.1}
    budget = Budget(max(2, study.sizes.start_steps // 2))
    return Job(
        place("judge", share, seed), "judge", "judge", share, seed, "sft", "preference", {"method": "reward"}, options,
        budget, study.lrs["judge"], 1.0, place("start", share, seed), place("pairs", share, seed),
    )  # fmt: skip


def preferring(study: Study) -> dict[str, Any]:
    return {"optimizer": "adamw", "batch_tokens": study.sizes.batch_tokens, "evaluations": 4, "keep": "last"}


def place(what: str, share: float, seed: int) -> str:
    return f"{what}-{100 * share:g}pct-{seed}"


# ---- what steps cost ---------------------------------------------------------------------------------


def operations(study: Study, job: Job, steps: int, tokens: float) -> float:
    """Floating-point operations for each parameter of the model, in so many steps, which learned from so many tokens in
    all where the script counts them. Of reinforcement learning the most that there can be: answers that teach nothing
    are not learned from, and equal ones only once."""
    return LEARNED * tokens if job.script == "sft" else steps * of_step(study, job)


def of_step(study: Study, job: Job) -> float:
    """Of a step of reinforcement learning."""
    if job.options.get("method") == "expert":
        return LEARNED * study.sizes.batch_tokens + READ * tried(study) * study.tokens()
    prompts, samples = job.options["prompts"], job.options["samples"]
    read = prompts * samples if study.writes else prompts  # classes are drawn from one reading
    learned = prompts * min(samples, study.choices)  # equal answers to a prompt are learned from at once
    given = prompts if job.options.get("sft_share") else 0
    judged = read if job.helper else 0  # by a model of like size
    return (READ * (read + judged) + LEARNED * (learned + given)) * study.tokens()


def tried(study: Study) -> float:
    """Answers that expert iteration draws for a step: as many tokens of answers as a step learns from."""
    return study.sizes.batch_tokens / study.answer_tokens()


def verdicts(study: Study, job: Job, steps: int) -> int:
    """Answers that were judged."""
    if job.script != "rl":
        return 0
    is_expert = job.options.get("method") == "expert"
    return round(steps * (tried(study) if is_expert else job.options["prompts"] * job.options["samples"]))


def equal(study: Study, job: Job, steps: int) -> int:
    """As many steps of the job as cost what so many of plain reinforcement learning do."""
    plain = replace(job, script="rl", options=study.reinforced(), helper=None)
    own = LEARNED * study.sizes.batch_tokens if job.script == "sft" else of_step(study, job)
    return max(1, round(steps * of_step(study, plain) / own))
