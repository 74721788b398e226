"""An experiment whose results are made up, with a truth that is known: what its report must find."""

import json
from dataclasses import asdict

import numpy as np
from experiment import measure, plan, runner, studies
from experiment.plan import Budget, Design
from rich.console import Console

TRUTH = {"start": 0.2, "sft": 0.2, "rl": 0.35, "expert": 0.35, "shuffled": 0.05}  # shares of right answers
EVIL = "<script>alert(1)</script>"


def design(**changes):
    given = {"arms": ["sft", "rl", "sft-rl", "shuffled"], "shares": [0.05, 0.3, 1.0], "seeds": 3, "trials": 2}
    return Design(**{**given, "budget": Budget(steps=4), **changes})


def study(folder):
    sizes = studies.Sizes(layers=1, width=32, heads=2, start_steps=4, batch_tokens=256, prompts=4, samples=2)
    return studies.Additions(folder / "data", sizes)


def made(folder, what=None):
    """All jobs done, with logs and results as the scripts would leave them."""
    about, what = study(folder), what or design()
    work = runner.Runner(about, plan.jobs(about, what), folder, Console(quiet=True))
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 0.05, 400)
    for job in work.jobs.values():
        path = work.path(job)
        path.mkdir(parents=True)
        (path / "report.json").write_text(json.dumps({"model": {"parameters": 1000}}))
        (path / "args.json").write_text(json.dumps({"lr": 0.01}))
        (path / "command.txt").write_text(f"python train_{job.script}.py --out '{EVIL}'\n")
        looks = [{"step": k, "seconds": 10.0 * k, "dev_accuracy": 0.2 + k / 100, "tokens": 99 * k} for k in (1, 2, 4)]
        (path / "log.jsonl").write_text("".join(json.dumps(look) + "\n" for look in looks))
        p = TRUTH.get(job.arm, 0.25) + 0.01 * rng.normal()
        measure.save(path, {name: results(rng, p, difficulty) for name in ("dev", "test", "shift")})
    return about, what, work


def results(rng, p, difficulty):
    n = len(difficulty)
    right = rng.random(n) < p + difficulty
    passed = rng.random((100, measure.DRAWN)) < p
    return {
        "right": right, "error": 1.0 - right, "nats": 1 - p + 0.1 * rng.random(n), "passed": passed,
        "entropy": rng.random(100), "kl": p + rng.random(100), "distinct": rng.random(100),
    }  # fmt: skip


def asked(what):
    return asdict(what)
