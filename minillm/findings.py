"""What a run found out beside its figures: report.json, which its page is made from.

A task has nothing to provide for it but what the terminal shows, too: `table`, `remarks`, `notes`, and `details`, of
which `confusion` is drawn and whatever maps names to figures (`by_type`) becomes a table.
"""

import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from minillm import costs, curves
from minillm.files import write_json
from minillm.metrics import Interval
from minillm.pages.run_page import write_page
from minillm.report import without_control_characters
from minillm.session import Session
from minillm.tasks.base import Task

GIGA = 1e9


def findings(
    task: Task,
    model: nn.Module,
    tables: Sequence[Table],
    measured: Mapping[str, Interval],
    baselines: Sequence[str] = (),
    remarks: Sequence[str] = (),
    next_command: str = "",
) -> dict[str, Any]:
    """`measured`: the figures of some split, of which it keeps how they are written; `baselines`: the names of those
    that are not the model's."""
    return {
        "task": task.name,
        "headline": task.headline,
        "lower_is_better": task.lower_is_better,
        "baselines": list(baselines),
        "forms": {name: interval.form for name, interval in measured.items()},
        "examples": {name: len(split) for name, split in vars(task.splits).items()},
        "notes": list(task.notes),
        "remarks": list(remarks),
        "tables": [plain(table) for table in tables],
        "model": shape_of(model),
        "environment": environment(model),
        "next": next_command,
    }


def conclude(
    session: Session,
    metrics: Mapping[str, Any],
    dev: Mapping[str, float],
    panels: Sequence[str],
    title: str,
    found: Mapping[str, Any] | None = None,
) -> None:
    """Writes all that remains of a training: the model, the metrics, of them `dev` into the log, its curves, and the
    page of it all with the `findings`. Shows what share of the machine's matrix rate was made use of."""
    run, progress = session.run, session.progress
    run.save_model(session.model)
    session.write(**dev)
    session.close()
    curves.draw(run.read_log(), panels, run.path("curves.png"), f"{run.folder}: {title}")
    lengths = {int(length): number for length, number in progress.lengths.items()}
    done = costs.work_done(session.model, lengths, progress.targets, progress.of_steps)
    seconds = round(session.process_seconds(), 1)
    metrics = {**metrics, **done, "seconds": seconds, "steps": progress.step, **progress.totals}
    if found:
        write_json(run.path("report.json"), found)
    write_page(run, metrics)
    run.finish(metrics)
    if "matrix_share" in done:
        session.console.print(said_of_work(done, progress.of_steps), highlight=False)
    session.console.print(f"saved to {run.folder}: model, log, metrics.json, report.html", markup=False)


def said_of_work(done: Mapping[str, float], seconds: float) -> str:
    """The share of the machine's matrix rate, and what it is a share of."""
    rate, most = done["operations"] / seconds / GIGA, done["matrix_rate"] / GIGA
    return (
        f"steps took {done['matrix_share']:.0%} of this machine's matrix rate: {rate:,.0f} of {most:,.0f} GFLOP/s, "
        f"{done['operations'] / GIGA:,.0f} GFLOP in all"
    )


def comparison(run: Path, other: Path) -> str:
    """The command that says whether a run is better than another, such as what it started from."""
    return shlex.join(["python", "-m", "minillm", "compare", *map(typed, (run, other))])


def typed(path: Path) -> str:
    """As one would type it here: what a resumed run began from is a whole path."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def plain(table: Table) -> dict[str, Any]:
    """What stands in a table."""
    columns = [[without_control_characters(str(cell)) for cell in column.cells] for column in table.columns]
    return {
        "title": str(table.title or ""),
        "columns": [str(column.header) for column in table.columns],
        "rows": [list(row) for row in zip(*columns, strict=True)],
    }


def shape_of(model: nn.Module) -> dict[str, Any]:
    config = model.config
    return {
        "family": type(config).__name__.removesuffix("Config"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": config.num_layers,
        "width": config.width,
        "heads": config.num_heads,
        "vocabulary": config.vocab_size,
    }


def environment(model: nn.Module) -> dict[str, Any]:
    """Where it was computed, as far as it can matter for the figures."""
    weight = next(model.parameters())
    is_gpu = weight.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(weight.device) if is_gpu else f"CPU, {processor()}",
        "threads": torch.get_num_threads(),
        "activations": str(model.compute_dtype or weight.dtype).removeprefix("torch."),
        "weights": str(weight.dtype).removeprefix("torch."),
        "PyTorch": torch.__version__,
        "Python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
