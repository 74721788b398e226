"""What the benchmarks share: a check of every result, fair timing, peak memory, the ceilings of the machine.

Fair means interleaved: every provider runs in every round, so that a slow minute of the machine hits all; the
median round is reported, and the fastest and slowest beside it. No provider is timed whose output or gradients miss
the float64 reference. Importing this file puts the repository root first on the path.
"""

import argparse
import ctypes
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ENVIRONMENT = dict(os.environ)  # without what minillm sets for itself: peers run in processes as their users do

import minillm  # noqa: E402, F401, I001, before PyTorch: its threads wait as users' do
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import kernels  # noqa: E402

if Path(kernels.__file__).resolve().parent != ROOT / "kernels":
    raise ImportError(
        f"another package named 'kernels' ({kernels.__file__}) hides the one of this repository; "
        f"uninstall it in this environment, or start Python with PYTHONPATH={ROOT}"
    )

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward + backward"
# ‖x − truth‖ / ‖truth‖ beyond which a result is called wrong: several times what eager PyTorch shows.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
SLOW_MS = 1500.0  # such a call is timed three times at most, the one that shows its memory included
# Before every timed call on a GPU, writing a buffer empties the L2 cache (50 MB on an H100), and a pause lets the
# launches queue up: what is timed is the card, not Python.
FLUSH_BYTES, PAUSE_CYCLES = 256 << 20, 2_000_000


class Call(NamedTuple):
    """What a provider computes: function(*inputs, *constants), differentiated by the inputs if there are any."""

    function: Callable[..., Tensor]
    inputs: list[Tensor]
    grad: Tensor  # of the output
    constants: tuple[Tensor, ...] = ()


@dataclass
class Case:
    """One thing to compute, and who computes it."""

    name: str
    dtype: torch.dtype
    unit: str  # of the work: "FLOP/s" or "B/s"
    work: dict[str, float]  # of each mode that is timed, in 1e9 operations or bytes
    calls: dict[str, Call]
    sample: Callable[[Call], list[Tensor]]  # parts of output and gradients, the same of every call
    truth: Callable[[], list[Tensor]]  # the same in float64
    absent: dict[str, str] = field(default_factory=dict)  # why a provider has no call


@dataclass
class Row:
    """One measured line of the table, or why there is none."""

    case: str
    provider: str
    mode: str = ""
    ms: float | None = None  # median of the rounds
    ms_low: float | None = None  # the fastest and
    ms_high: float | None = None  # the slowest round
    rate: float | None = None  # in 1e9 of the unit
    unit: str = ""
    share: float | None = None  # of the machine's measured ceiling
    peak_mb: float | None = None  # beyond what was allocated before the call and the gradients
    error: float | None = None  # ‖x − truth‖ / ‖truth‖, the largest of output and gradients
    ratio: float | None = None  # time of the baseline / time of this provider: above 1 is faster
    note: str = ""  # why there is no figure


# ---- one case ------------------------------------------------------------------------------------------


def run(
    case: Case, device: torch.device, baseline: str, ceilings: dict[str, float], rounds: int = 7, seconds: float = 0.1
) -> list[Row]:
    """Check every provider, then time those that are right in every mode."""
    torch.compiler.reset()  # or the ninth shape would silently run uncompiled
    truth = case.truth()
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of its float64
    rows = [Row(case.name, provider, note=reason) for provider, reason in case.absent.items()]
    errors = {}
    for provider, call in case.calls.items():
        error, note = attempt(lambda call=call: relative_error(case.sample(call), truth))
        if error is not None and not error <= TOLERANCE[case.dtype]:  # NaN is wrong, too
            note = f"WRONG: relative error {error:.1e}, allowed {TOLERANCE[case.dtype]:.0e}"
        if note:
            rows.append(Row(case.name, provider, error=error, note=note))
        else:
            errors[provider] = error
    ceiling = ceilings.get("copy" if case.unit == "B/s" else str(case.dtype).removeprefix("torch."))
    for mode, work in case.work.items():
        calls = {provider: case.calls[provider] for provider in errors}
        for row in compare(case.name, mode, calls, device, rounds, seconds):
            row.error, row.unit = errors[row.provider], case.unit
            if row.ms is not None:
                row.rate = work / row.ms * 1e3
                row.share = row.rate / ceiling if ceiling else None
            rows.append(row)
        add_ratios([row for row in rows if row.mode == mode], baseline)
    return rows


def attempt(function: Callable[[], object]) -> tuple[object | None, str]:
    """Its result, or what it raised in one line: whatever a rival cannot do, the table says."""
    try:
        return function(), ""
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return None, f"{type(error).__name__}: {lines[0]}"[:160]


def relative_error(parts: list[Tensor], truth: list[Tensor]) -> float:
    """The largest of ‖x − truth‖ / ‖truth‖; NaN if anything is not finite."""
    errors = [((x.double() - t).norm() / t.norm()).item() for x, t in zip(parts, truth, strict=True)]
    return max(errors) if all(e == e for e in errors) else float("nan")


def output_and_gradients(call: Call) -> list[Tensor]:
    out = call.function(*call.inputs, *call.constants)
    return [out.detach(), *(torch.autograd.grad(out, call.inputs, call.grad) if call.inputs else ())]


def compare(
    case: str, mode: str, calls: dict[str, Call], device: torch.device, rounds: int, seconds: float
) -> list[Row]:
    """Times and peak memory of one mode, a row for each provider."""
    rows, able, samples = {}, {}, {}
    for provider, call in calls.items():
        rows[provider] = Row(case, provider, mode)
        found, rows[provider].note = attempt(lambda call=call: _prepare_and_watch(mode, call, device))
        if found is not None:
            able[provider], rows[provider].peak_mb, samples[provider] = found
    for provider, times in measure(able, samples, device, rounds, seconds).items():
        row = rows[provider]
        row.ms, row.ms_low, row.ms_high = statistics.median(times), min(times), max(times)
    return list(rows.values())


def add_ratios(rows: list[Row], baseline: str) -> None:
    base = next((row.ms for row in rows if row.provider == baseline), None)
    for row in rows:
        row.ratio = base / row.ms if base and row.ms else None


class Work(NamedTuple):
    """What is timed, and what has to happen before each time."""

    timed: Callable[[object], object]  # of what `before` returned
    before: Callable[[], object] = lambda: None


def prepare(mode: str, call: Call) -> Work:
    def forward(_=None) -> Tensor:
        return call.function(*call.inputs, *call.constants)

    def forward_alone(_) -> Tensor:
        with torch.no_grad():
            return forward()

    if mode == FORWARD:
        return Work(forward_alone)
    if mode == BOTH:
        return Work(lambda _: output_and_gradients(call))
    return Work(lambda out: torch.autograd.grad(out, call.inputs, call.grad), forward)


def _prepare_and_watch(mode: str, call: Call, device: torch.device) -> tuple[Work, float | None, float]:
    work = prepare(mode, call)
    if device.type == "cuda":
        work.timed(work.before())  # whatever is compiled for this mode and size
    peak, ms = watch(work, device)
    if mode == BACKWARD:  # what the forward left behind would be missing
        peak = None
    if mode == BOTH and peak is not None:
        peak = max(0.0, peak - sum(x.nbytes for x in call.inputs) / 1e6)
    return work, peak, ms


# ---- time ----------------------------------------------------------------------------------------------


def measure(
    works: dict[str, Work],
    first: dict[str, float],
    device: torch.device,
    rounds: int,
    seconds: float,
) -> dict[str, list[float]]:
    """Milliseconds per call, one figure a round of about `seconds`. `first` is how long a call took already."""
    sample = time_cuda if device.type == "cuda" else time_cpu
    most = 100 if device.type == "cuda" else 1000
    calls = {name: max(1, min(most, int(1e3 * seconds / max(first[name], 1e-3)))) for name in works}
    slow = {name for name in works if first[name] > SLOW_MS}
    times = {name: [first[name]] if name in slow else [] for name in works}
    for number in range(rounds):
        for name in works if number % 2 else reversed(works):
            if name not in slow or len(times[name]) < min(3, rounds):
                times[name].append(sample(works[name], calls[name]))
    for name in slow:
        if times[name][0] > 2 * times[name][-1] and len(times[name]) > 1:
            del times[name][0]  # that was compiling
    return times


def time_cpu(work: Work, calls: int) -> float:
    """Mean over calls."""
    total = 0.0
    for _ in range(calls):
        state = work.before()
        start = time.perf_counter()
        done = work.timed(state)
        total += time.perf_counter() - start
        del done, state
    return 1e3 * total / calls


def time_cuda(work: Work, calls: int) -> float:
    """Median over calls of the time between two events; nothing waits for the card until all are queued."""
    events = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        state = work.before()
        _flush_buffer().zero_()
        torch.cuda._sleep(PAUSE_CYCLES)
        start.record()
        work.timed(state)
        end.record()
        del state
        events.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events)


@cache
def _flush_buffer() -> Tensor:
    return torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")


def ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """Rates reached here, in 1e9 a second: bytes of a copy (read and written), operations of a matrix product. Quick
    ones say little: a processor without bfloat16 takes minutes for the others."""
    cuda = device.type == "cuda"
    n, size = (256, 1 << 20) if quick else (8192, 1 << 30) if cuda else (2048, 1 << 28)
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    works, amount = {"copy": Work(lambda _: target.copy_(source))}, {"copy": 2e-9 * size}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))  # zeros would run faster
        name = str(dtype).removeprefix("torch.")
        works[name], amount[name] = Work(lambda _, a=a, b=b: a @ b), 2e-9 * n**3
    for work in works.values():
        work.timed(None)
    first = {name: watch(work, device)[1] for name, work in works.items()}
    times = measure(works, first, device, rounds=5, seconds=0.1)
    return {name: 1e3 * amount[name] / statistics.median(times[name]) for name in times}


# ---- memory --------------------------------------------------------------------------------------------


def watch(work: Work, device: torch.device) -> tuple[float | None, float]:
    """MB that a call holds at most beyond what was allocated before it (None where that can't be seen); its ms."""
    state = work.before()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        start = time.perf_counter()
        work.timed(state)
        torch.cuda.synchronize()
        ms = 1e3 * (time.perf_counter() - start)
        return (torch.cuda.max_memory_allocated() - before) / 1e6, ms
    visible = _restart_peak()
    before = _status_mb("VmRSS") if visible else 0.0
    ms = time_cpu(Work(work.timed, lambda: state), 1)
    return max(0.0, _status_mb("VmHWM") - before) if visible else None, ms


def _restart_peak() -> bool:
    """Let the process's peak memory start again from what it holds now: proc(5). Only Linux can."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc: or memory freed earlier would be used again unseen
        libc.malloc_trim(0)
    with suppress(PermissionError):  # some containers forbid it
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _status_mb(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024 / 1e6


# ---- surroundings and command line ---------------------------------------------------------------------


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
            return f"{found[1].strip()}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; finish with `device_of(args)`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds; the median counts")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a round for each provider")
    parser.add_argument("--quick", action="store_true", help="the smallest cases, to see that everything runs")
    parser.add_argument("--all", action="store_true", help="also what is left out on a CPU because it is slow")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    parser.add_argument("--out", type=Path, help="path of the JSON and PNG without suffix")
    return parser


def device_of(args: argparse.Namespace) -> torch.device:
    if args.threads:
        torch.set_num_threads(args.threads)
    return torch.device(args.device)
