"""What a run found out beside its figures: report.json, which its page is made from.

A task has nothing to provide for it but what the terminal shows, too: `table`, `remarks`, `notes`, and `details`, of
which `confusion` is drawn and whatever maps names to figures (`by_type`) becomes a table.
"""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import nn

from minillm.metrics import Interval
from minillm.report import without_control_characters
from minillm.tasks.base import Task


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
