"""What the benchmarks share: fair timing, peak memory, one table, JSON and a picture.

Fair means interleaved: every provider runs in every round, so that a slow minute of the machine hits all;
the median round is reported. Importing this file puts the repository root first on the path.
"""

import argparse
import ctypes
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
sys.path.insert(0, str(ROOT))

import kernels  # noqa: E402

if Path(kernels.__file__).resolve().parent != ROOT / "kernels":
    raise ImportError(
        f"another package named 'kernels' ({kernels.__file__}) hides the one of this repository; "
        f"uninstall it in this environment, or start Python with PYTHONPATH={ROOT}"
    )


@dataclass
class Row:
    """One measured line of the table."""

    case: str  # what was computed, e.g. "T=512 causal bfloat16"
    provider: str  # by whom
    mode: str  # "forward", "backward" or "both"
    ms: float | None = None  # median of the rounds
    ms_low: float | None = None  # the fastest and
    ms_high: float | None = None  # the slowest round
    rate: float | None = None  # in the unit that the script states
    peak_mb: float | None = None  # memory beyond what was allocated before the call
    ratio: float | None = None  # time of the baseline / time of this provider: above 1 is faster
    note: str = ""  # why there is no figure


# ---- measuring -----------------------------------------------------------------------------------------


def measure(
    functions: dict[str, Callable[[], object]], device: torch.device, rounds: int = 9, seconds: float = 0.1
) -> dict[str, list[float]]:
    """Milliseconds per call of each function, one figure a round that lasts about `seconds` a function."""
    sample = _time_cuda if device.type == "cuda" else _time_cpu
    calls = {}
    for name, function in functions.items():
        function()  # compile, allocate
        calls[name] = max(1, min(1000, int(1e3 * seconds / max(sample(function, 1), 1e-3))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(sample(function, calls[name]))
    return times


def _time_cpu(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return 1e3 * (time.perf_counter() - start) / calls


def _time_cuda(function: Callable[[], object], calls: int) -> float:
    """Median over calls. Before each, writing a buffer empties the L2 cache and hides the launch."""
    flush = torch.empty(256 * 2**20, dtype=torch.int8, device="cuda")
    times = []
    for _ in range(min(calls, 100)):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.zero_()
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def peak_memory_mb(function: Callable[[], object], device: torch.device) -> float | None:
    """What a second call holds at most beyond what was allocated before it; None where that can't be seen."""
    function()  # code, workspaces and caches that stay
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc: or memory freed earlier would be used again unseen
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here: proc(5)
    before = _status_mb("VmRSS")
    function()
    return max(0.0, _status_mb("VmHWM") - before)


def _status_mb(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def compare(
    case: str,
    mode: str,
    functions: dict[str, Callable[[], object]],
    device: torch.device,
    baseline: str,
    work: float | None = None,
    rounds: int = 9,
    seconds: float = 0.1,
) -> list[Row]:
    """A row for each function. `work` per call, in units of 1e9, gives the rate per second / 1e9."""
    rows, able = {}, {}
    for name, function in functions.items():
        rows[name] = Row(case, name, mode)
        try:
            rows[name].peak_mb = peak_memory_mb(function, device)
            able[name] = function
        except (torch.OutOfMemoryError, NotImplementedError, RuntimeError, ValueError) as error:
            rows[name].note = str(error).strip().splitlines()[0][:80]
    times = measure(able, device, rounds, seconds)
    for name, samples in times.items():
        row = rows[name]
        row.ms, row.ms_low, row.ms_high = statistics.median(samples), min(samples), max(samples)
        row.rate = work / row.ms * 1e3 if work else None
        if baseline in times:
            row.ratio = statistics.median(times[baseline]) / row.ms
    return list(rows.values())


# ---- showing -------------------------------------------------------------------------------------------


def environment(device: torch.device) -> dict[str, str | int]:
    """What a figure depends on besides the code."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "kind": device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "fp32 products": torch.get_float32_matmul_precision(),
    }


def _cpu_name() -> str:
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def print_table(rows: list[Row], rate_unit: str, environment: dict) -> None:
    print(" · ".join(f"{key} {value}" for key, value in environment.items()))
    head = ("case", "mode", "provider", "ms", "min … max", rate_unit, "peak MB", "ratio", "")
    body = [head]
    for r in rows:
        span = "" if r.ms is None else f"{r.ms_low:.4g} … {r.ms_high:.4g}"
        cells = (_number(r.ms), span, _number(r.rate), _number(r.peak_mb), _number(r.ratio, "×"))
        body.append((r.case, r.mode, r.provider, *cells, r.note))
    widths = [max(len(line[i]) for line in body) for i in range(len(head))]
    for i, line in enumerate(body):
        cells = [f"{cell:{'<' if j < 3 else '>'}{widths[j]}}" for j, cell in enumerate(line[:-1])]
        print("  ".join([*cells, line[-1]]).rstrip())
        if i == 0 or (i + 1 < len(body) and i > 0 and body[i + 1][:2] != line[:2]):
            print()


def _number(x: float | None, unit: str = "") -> str:
    if x is None:
        return ""
    return f"{x:.2f}{unit}" if 0.1 <= x < 100 else f"{x:.3g}{unit}" if x < 0.1 else f"{x:,.0f}{unit}"


def save(rows: list[Row], name: str, title: str, out: Path | None, environment: dict) -> None:
    """Write `<out>.json` and `<out>.png`; by default bench/results/<name>_<device>."""
    slug = re.sub(r"[^a-z0-9]+", "_", str(environment["device"]).lower()).strip("_")
    out = out or RESULTS / f"{name}_{slug}"
    out = out.with_suffix("") if out.suffix in (".json", ".png") else out
    out.parent.mkdir(parents=True, exist_ok=True)
    record = {"title": title, "environment": environment, "rows": [asdict(row) for row in rows]}
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    draw(rows, f"{title}\n{environment['device']}, torch {environment['torch']}", out.with_suffix(".png"))
    for suffix in (".json", ".png"):
        path = out.with_suffix(suffix)
        print("saved", os.path.relpath(path) if path.is_relative_to(Path.cwd()) else path)


def draw(rows: list[Row], title: str, path: Path) -> None:
    """A panel for each mode, a group of bars for each case, one for each provider; logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row.ms is not None]
    modes = list(dict.fromkeys(row.mode for row in rows))
    cases = list(dict.fromkeys(row.case for row in rows))
    providers = list(dict.fromkeys(row.provider for row in rows))
    height = 0.8 / max(1, len(providers))
    size = (6 * max(1, len(modes)), 1.5 + 0.28 * len(cases) * max(2, len(providers)))
    figure, axes = plt.subplots(1, max(1, len(modes)), figsize=size, sharey=True, squeeze=False)
    for axis, mode in zip(axes[0], modes, strict=False):
        for i, provider in enumerate(providers):
            bars = {cases.index(r.case): r.ms for r in rows if (r.mode, r.provider) == (mode, provider)}
            places = [case + (i - (len(providers) - 1) / 2) * height for case in bars]
            axis.barh(places, list(bars.values()), height, label=provider)
        axis.set(xscale="log", xlabel="milliseconds, less is better", title=mode)
        axis.xaxis.set_minor_formatter("")
        axis.set_yticks(range(len(cases)), cases)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].invert_yaxis()
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower left", fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


# ---- command line --------------------------------------------------------------------------------------


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; finish with `device_of(args)`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a round for each provider")
    parser.add_argument("--quick", action="store_true", help="the smallest cases, to see that everything runs")
    parser.add_argument("--out", type=Path, help="path of the JSON and PNG without suffix")
    return parser


def device_of(args: argparse.Namespace) -> torch.device:
    if args.threads:
        torch.set_num_threads(args.threads)
    return torch.device(args.device)
