"""Everything worth doing on a card in under ten minutes; leaves bench/results/<card>.md and .json.

    python bench/gpu.py                       # about nine minutes
    python bench/gpu.py --minutes 4           # less of the sweep and of the benchmarks
    python bench/gpu.py --only correctness    # the parts whose name contains this
    python bench/gpu.py --dry-run             # does everything run? On a CPU too; with TRITON_INTERPRET=1 the kernels

Correctness of every kernel in every dtype against float64, fifty equal runs, the benchmarks against the targets, and a
search for better launch configurations. Every part is a process of its own with a time limit and writes what it finds
line by line, so that a crash costs the rest of one part and nothing else.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import attention as attention_bench
import correctness
import cross_entropy as cross_entropy_bench
import decode as decode_bench
import harness
import report
import sweep
import targets
import torch
from harness import Case, Row

from kernels import choose
from kernels.backend import triton_obstacle

SOFT = 0.85  # of a part's time: then it begins nothing new; at the end of its time it is killed


class Context(NamedTuple):
    """What a part knows."""

    device: torch.device
    dry: bool
    deadline: float  # of time.monotonic(), which all processes share
    out: Path

    def write(self, kind: str, record: dict) -> None:
        with self.out.open("a") as file:
            file.write(json.dumps({"kind": kind, **record}, ensure_ascii=False) + "\n")

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    @property
    def impl(self) -> str:
        """Triton wherever it runs, the interpreter included."""
        return "torch" if triton_obstacle(self.device) else "triton"


# ---- parts ---------------------------------------------------------------------------------------------


def check_kernels(dtype: torch.dtype, context: Context) -> None:
    if context.device.type == "cpu" and context.impl == "triton" and dtype == torch.bfloat16:
        return context.write("skipped", {"what": "bfloat16", "why": "Triton's interpreter computes it wrongly"})
    for check in correctness.checks(context.dry):
        name = f"{check.name} {dtype}"
        if context.late:
            context.write("skipped", {"what": name, "why": "out of time"})
            continue
        records, reason = harness.attempt(
            lambda check=check: correctness.judge(check, dtype, context.impl, context.device)
        )
        for record in records or [{"check": check.name, "dtype": str(dtype), "passed": False, "reason": reason}]:
            context.write("check", record)
    return None


def check_repetition(context: Context) -> None:
    half = torch.bfloat16 if context.device.type == "cuda" else torch.float32
    runs = 3 if context.dry else correctness.RUNS
    for check in correctness.checks(context.dry):
        if context.late:
            context.write("skipped", {"what": f"50 runs of {check.name}", "why": "out of time"})
            continue
        record, reason = harness.attempt(
            lambda check=check: correctness.repeat(check, half, context.impl, context.device, runs)
        )
        context.write("repeat", record or {"check": check.name, "passed": False, "reason": reason})


def benchmark(module, context: Context) -> None:
    """The cases of bench/attention.py, decode.py or cross_entropy.py, in their order, while there is time."""
    ceilings = harness.ceilings(context.device, context.dry)
    context.write("ceilings", ceilings)
    how = {"rounds": 2, "seconds": 0.001} if context.dry else {"rounds": 5, "seconds": 0.02}
    for case in module.cases(context.device, quick=context.dry):
        if context.late:
            context.write("skipped", {"what": case.name, "why": "out of time"})
            continue
        leave_out_compilers(case)
        for row in harness.run(case, context.device, module.BASELINE, ceilings, **how):
            context.write("row", asdict(row))
        del case
        if context.device.type == "cuda":
            torch.cuda.empty_cache()


def leave_out_compilers(case: Case) -> None:
    """Compiling takes 20 seconds a case; the longest cases of D = 128 and the vocabularies stand for all."""
    if case.name.startswith("B=") and "D=128 T=8192 causal" not in case.name:
        for name in [name for name in case.calls if name == "torch.compile" or name.startswith("Flex")]:
            del case.calls[name]
            case.absent[name] = "left out here, because compiling takes long: python bench/attention.py"


def sweep_launches(context: Context) -> None:
    if context.impl != "triton":
        return context.write("skipped", {"what": "sweep", "why": "no Triton here"})
    context.write("chunks", sweep.chunk_rows(context.device, context.dry))
    pool = sweep.workers(context.device)
    for problem in sweep.problems(context.dry):
        if context.late:
            context.write("skipped", {"what": f"sweep of {problem}", "why": "out of time"})
            continue
        most = 2 if context.dry else None
        try:
            context.write("sweep", sweep.search(problem, context.device, pool, context.deadline, most))
        except BrokenProcessPool:
            context.write("skipped", {"what": f"sweep of {problem}", "why": "a configuration aborted the compiler"})
            pool = sweep.workers(context.device)
        except (RuntimeError, ValueError, TypeError) as error:
            context.write("skipped", {"what": f"sweep of {problem}", "why": f"{type(error).__name__}: {error}"[:300]})
    return pool.shutdown(wait=False, cancel_futures=True)


class Part(NamedTuple):
    run: Callable[[Context], None]
    share: float  # of the time


# Parts of a stage run side by side: where nothing is timed, that is three times as fast.
STAGES = (
    {
        **{
            f"correctness {str(d).removeprefix('torch.')}": Part(partial(check_kernels, d), 110)
            for d in correctness.DTYPES
        },
        "determinism": Part(check_repetition, 110),
    },
    {"attention": Part(partial(benchmark, attention_bench), 160)},
    {"decode": Part(partial(benchmark, decode_bench), 40)},
    {"cross-entropy": Part(partial(benchmark, cross_entropy_bench), 90)},
    {"sweep": Part(sweep_launches, 170)},
)


# ---- running them --------------------------------------------------------------------------------------


def run_stage(names: list[str], end: float, args: argparse.Namespace, folder: Path) -> list[dict]:
    """Start the parts, wait for all, and say of each how it ended."""
    processes, endings = {}, []
    now = time.monotonic()
    soft = now + SOFT * (end - now)
    for name in names:
        command = [sys.executable, str(Path(__file__).resolve()), "--part", name, "--folder", str(folder)]
        command += ["--deadline", str(soft), "--device", args.device, *(["--dry-run"] if args.dry_run else [])]
        with (folder / f"{name}.log").open("w") as log:
            processes[name] = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    for name, process in processes.items():
        try:
            code = process.wait(max(0.0, end - time.monotonic()))
            ending = "finished" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            ending = "killed: out of time"
        if process.poll() is None or ending != "finished":
            kill(process)
        log = (folder / f"{name}.log").read_text().strip().splitlines()
        endings.append({"part": name, "ending": ending, "last words": log[-3:] if ending != "finished" else []})
        print(f"{name}: {ending}", *endings[-1]["last words"], sep="\n  ", flush=True)
    return endings


def kill(process: subprocess.Popen) -> None:
    """It and the workers it started."""
    with suppress(ProcessLookupError):  # all of them ended already
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read(folder: Path) -> list[dict]:
    """What all parts have written; a part that was killed may have left half a line."""
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):
                records.append(json.loads(line))
    return records


# ---- what it says --------------------------------------------------------------------------------------


BENCHMARKS = "## Benchmarks"  # last: it is long


def summary(records: list[dict], endings: list[dict], environment: dict, minutes: float) -> str:
    """The page bench/results/<card>.md."""

    def of(kind: str) -> list[dict]:
        return [{key: x for key, x in record.items() if key != "kind"} for record in records if record["kind"] == kind]

    rows = [Row(**record) for record in of("row")]
    ceilings = {key: max(found[key] for found in of("ceilings")) for key in (of("ceilings") or [{}])[0]}
    parts = [f"# {environment['device']}", report.surroundings(environment, ceilings)]
    parts += [f"Written by `python bench/gpu.py` in {minutes:.1f} minutes."]
    unfinished = [f"- {e['part']}: {e['ending']}" for e in endings if e["ending"] != "finished"]
    unfinished += [f"- {r['what']}: {r['why']}" for r in of("skipped")]
    parts += ["## Targets", fenced("\n".join(targets.verdicts(rows, environment["kind"], everything=True)))]
    parts += ["## Correctness against float64", fenced(correctness_lines(of("check")))]
    parts += ["## Runs that must agree bit for bit", fenced(repetition_lines(of("repeat")))]
    parts += ["## Launch configurations", fenced("\n".join(map(sweep_line, of("sweep"))))]
    for record in of("chunks"):
        times = "  ".join(f"{rows}: {ms:.2f} ms" for rows, ms in record["ms"].items())
        parts.append(fenced(f"{record['problem']}\n{times}"))
    parts += ["## What is missing", "\n".join(unfinished) or "Nothing."]
    parts += [BENCHMARKS, fenced(report.table(rows))]
    return "\n\n".join(parts) + "\n"


def fenced(text: str) -> str:
    return f"```\n{text or 'nothing was recorded'}\n```"


def correctness_lines(records: list[dict]) -> str:
    lines = []
    for dtype in dict.fromkeys(r["dtype"].removeprefix("torch.") for r in records):
        here = [r for r in records if r["dtype"].removeprefix("torch.") == dtype]
        worst = max((r["error"] / r["pytorch"] for r in here if r.get("pytorch")), default=float("nan"))
        passed = sum(r["passed"] for r in here)
        lines.append(
            f"{dtype}: {passed} of {len(here)} outputs and gradients; largest error over PyTorch's {worst:.2f}"
        )
    for r in records:
        if not r["passed"]:
            what = r.get("reason") or f"{r['of']}: error {r['error']:.2e}, PyTorch's {r['pytorch']:.2e}"
            lines.append(f"FAILED {r['dtype']} {r['check']}: {what}")
    return "\n".join(lines)


def repetition_lines(records: list[dict]) -> str:
    lines = [f"{sum(r['passed'] for r in records)} of {len(records)} calls, forward and backward"]
    for r in records:
        if not r["passed"]:
            lines.append(f"FAILED {r['check']}: {r.get('reason') or '{differ} of {runs} runs differ'.format(**r)}")
    return "\n".join(lines)


def sweep_line(r: dict) -> str:
    gain = f"{r['best_over_shipped']:.2f} of the time" if r["best"] != r["shipped"] else "the shipped one is the best"
    ms = "" if r["ms"] is None else f"{r['ms']:.3f} ms, "
    return f"{r['problem']}: shipped {r['shipped']}, {ms}{len(r['tried'])} tried; best {r['best']}, {gain}"


# ---- command line --------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything")
    parser.add_argument("--only", default="", metavar="TEXT", help="only the parts whose name contains this")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes, results into a temporary folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="folder of the results (default: bench/results)")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a process of our own is to do
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cpu" and not args.dry_run:
        parser.error("there is no GPU here; --dry-run shows on a CPU that everything runs")
    if args.part:
        part = next(stage[args.part] for stage in STAGES if args.part in stage)
        out = args.folder / f"{args.part}.jsonl"
        part.run(Context(device, args.dry_run, args.deadline, out))
        return 0
    return run_all(args, device)


def run_all(args: argparse.Namespace, device: torch.device) -> int:
    started = time.monotonic()
    out = args.out or (Path(tempfile.mkdtemp()) if args.dry_run else report.RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    environment = harness.environment(device)
    print(f"ours is {choose(device).impl}: {choose(device).reason}")
    path = out / report.slug(str(environment["device"]))
    stages = [{name: part for name, part in stage.items() if args.only in name} for stage in STAGES]
    shares = [max((part.share for part in stage.values()), default=0.0) for stage in stages]
    endings: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for i, stage in enumerate(stages):
            left = started + 60 * args.minutes - time.monotonic()  # what a stage does not need, the later ones get
            if stage:
                end = time.monotonic() + left * shares[i] / sum(shares[i:])
                endings += run_stage(list(stage), end, args, Path(folder))
            records = read(Path(folder))
            minutes = (time.monotonic() - started) / 60
            report.write_json(
                path.with_suffix(".json"), {"environment": environment, "endings": endings, "records": records}
            )
            path.with_suffix(".md").write_text(summary(records, endings, environment, minutes))
    page = path.with_suffix(".md").read_text()
    print(page[: page.index(BENCHMARKS)], f"saved {path}.md, with the benchmarks, and .json", sep="\n")
    failed = [r for r in records if r.get("passed") is False] + [e for e in endings if e["ending"] != "finished"]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
