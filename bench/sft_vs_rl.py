"""Supervised against reinforcement learning, compared fairly: one command, one report.

  python bench/sft_vs_rl.py --quick                                 a taste, two minutes
  python bench/sft_vs_rl.py --task arithmetic --minutes 2           needs no data
  python bench/sft_vs_rl.py --task points24 --minutes 5             a rule that changes
  python bench/sft_vs_rl.py --task pronounce --steps 60 --seeds 3   a budget that no busy machine distorts
  python bench/sft_vs_rl.py --task sentiment --data DATA            folders with train.jsonl and dev.jsonl in DATA
  python bench/sft_vs_rl.py --task seq2seq --train a.jsonl --dev b.jsonl --test c.jsonl --reward my.py:score
  python bench/sft_vs_rl.py --report-only --out FOLDER              the report of what is done so far

Every arm begins at the same start, a model that a share of the labels has taught, and has the same budget: --minutes of
the clock, its search not counted, or --steps of reinforcement learning and as many operations for the others. It calls
train_sft.py's and train_rl.py's own functions. Interrupted, it goes on where it stopped, by the same command. It writes
report.html, pictures, evaluations.csv and the commands of all arms into --out.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

import harness  # first: puts the repository root on the path
from experiment import arms, plan, report, runner, studies
from experiment.plan import Budget, Design
from rich.console import Console

from minillm import cli
from minillm.errors import UserError

DEFAULT_STARTS = "2,5,10,30,100"
OF_FILES = ("train", "dev", "test", "shift", "fields", "init")
TASTE = studies.Sizes(layers=1, width=32, heads=2, start_steps=40, batch_tokens=512, prompts=16, samples=4)


@dataclass(frozen=True)
class Args:
    task: str = cli.option("arithmetic", "what to learn", choices=tuple(studies.STUDIES))
    minutes: float | None = cli.option(None, "wall-clock budget of each arm, its search not counted (default: 2)")
    steps: int | None = cli.option(None, "or steps of reinforcement learning, and as many operations for other arms")
    seeds: int = cli.option(3, "how often everything is done")
    starts: str = cli.option(DEFAULT_STARTS, "per cent of the labels that starts have learned from")
    arms: str = cli.option("all", f"which of {', '.join(arms.ARMS)}, with commas between")
    trials: int = cli.option(3, "learning rates that are tried for each arm, on dev")
    data: Path = cli.option(harness.ROOT / ".." / "shared" / "data", "folder of the data sets, for tasks that need one")
    reward: tuple[str, ...] = cli.option((), "of train_rl.py, in place of the task's own; may be given several times")
    train: Path | None = cli.option(None, "of --task seq2seq: your own file of prompts and answers, and likewise …")
    dev: Path | None = cli.option(None, "one by which rates and stopping are chosen")
    test: Path | None = cli.option(None, "one that results are measured on")
    shift: Path | None = cli.option(None, "one that is unlike the training")
    fields: str | None = cli.option(None, "which field is what, e.g. prompt=en,answer=de")
    init: Path | None = cli.option(None, "model that all starts begin from")
    out: Path | None = cli.option(None, "folder for all of it (default: runs/TASK-sft-vs-rl)")
    quick: bool = cli.option(False, "tiny models, few steps, one seed: does everything run?")
    report_only: bool = cli.option(False, "train nothing; write the report of what is there")


def main(argv: list[str] | None = None, console: Console | None = None) -> Path:
    args, console = cli.parse(Args, __doc__, argv), console or cli.console()
    cli.require_positive(args, "minutes", "steps", "seeds", "trials")
    if args.minutes and args.steps:
        raise UserError("--minutes and --steps exclude each other: give one budget")
    folder = args.out or Path("runs") / f"{args.task}-sft-vs-rl"
    study = study_of(args, folder)
    design, left_out = design_of(args, study)
    study.folder.mkdir(parents=True, exist_ok=True)
    study.prepare()
    runner.require_same(
        folder, {"task": args.task, "given": given_of(study), "sizes": asdict(study.sizes), **asdict(design)}
    )
    jobs = plan.jobs(study, design)
    introduce(console, args, design, jobs, left_out)
    work = runner.Runner(study, jobs, folder, console)
    if not args.report_only:
        run(work, console)
    path = report.write(study, design, work, left_out)
    console.print(f"report: {path}", markup=False)
    return path


def run(work: runner.Runner, console: Console) -> None:
    try:
        work.run()
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here, and with --report-only reports what there is")
        raise


def study_of(args: Args, folder: Path) -> studies.Study:
    given = studies.Given(**{field.name: vars(args)[field.name] for field in fields(studies.Given)})
    kind = studies.STUDIES[args.task]
    if kind is not studies.Own and (others := [name for name in OF_FILES if vars(args)[name] is not None]):
        raise UserError(f"--{others[0]} is for --task {studies.Own.name}, not for {args.task}")
    return kind(folder / "data", TASTE if args.quick else kind.usual, given)


def design_of(args: Args, study: studies.Study) -> tuple[Design, dict[str, str]]:
    """What is compared, and which arms are left out, with the reason. UserError."""
    asked = list(arms.ARMS) if args.arms == "all" else [name.strip() for name in args.arms.split(",")]
    if strangers := [name for name in asked if name not in arms.ARMS]:
        raise UserError(f"--arms {strangers[0]} is not one of {', '.join(arms.ARMS)}")
    asked = [name for name in arms.ARMS if name in {arms.CONTROL, *asked}]  # nothing says anything without the control
    left_out = {name: why for name in asked if (why := arms.obstacle(arms.ARMS[name], study))}
    chosen = [name for name in asked if name not in left_out]
    starts = "5,100" if args.quick and args.starts == DEFAULT_STARTS else args.starts
    seeds, trials, steps = (1, 1, args.steps or 3) if args.quick else (args.seeds, args.trials, args.steps)
    minutes = args.minutes or (None if steps else 2.0)
    trials = min(trials, len(plan.FACTORS))
    return Design(chosen, shares_of(starts), seeds, Budget(steps, minutes), trials), left_out


def given_of(study: studies.Study) -> dict[str, str]:
    """What results depend on, and where the data lies is not."""
    return {name: str(value) for name, value in vars(study.given).items() if name != "data" and value}


def shares_of(starts: str) -> list[float]:
    """From `2,5,100` per cent. UserError."""
    try:
        shares = sorted({float(start) / 100 for start in starts.split(",")})
    except ValueError:
        shares = []
    if not shares or not 0 < shares[0] <= shares[-1] <= 1:
        raise UserError(f"--starts {starts}: expected numbers from above 0 to 100 with commas between, such as 5,100")
    return shares


def introduce(console: Console, args: Args, design: Design, jobs: list[plan.Job], left_out: dict[str, str]) -> None:
    """The total, before anything begins, and what is left out."""
    counts = {kind: sum(job.kind == kind for job in jobs) for kind in dict.fromkeys(job.kind for job in jobs)}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    console.print(
        f"{args.task}: {len(design.arms)} arms, {len(design.shares)} starts, {design.seeds} seeds", markup=False
    )
    console.print(f"total: {len(jobs)} jobs ({kinds}), {budget_of(design, jobs)}", markup=False)
    for name, why in left_out.items():
        console.print(f"left out: {name}, as {why}", markup=False)


def budget_of(design: Design, jobs: list[plan.Job]) -> str:
    if design.budget.minutes:
        total = sum(job.budget.minutes or 0.0 for job in jobs)
        return f"{total:.0f} minutes of training, and besides the starts and the measuring"
    return f"{design.budget.steps} steps of reinforcement learning an arm, and as many operations for the others"


if __name__ == "__main__":
    cli.run(main)
