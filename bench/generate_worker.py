"""What both sides of bench/generate.py do in processes of their own: they answer for every line they are sent."""

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from train_worker import send

Model = TypeVar("Model")


def serve(load: Callable[[], Model], answer: Callable[[Model], list[list[int]]]) -> None:
    """Answers each line of standard input with the new tokens, the milliseconds they took and the memory held."""
    times = []
    for _ in range(2):  # the first time, libraries import what they need
        model, start = None, time.perf_counter()
        model = load()
        times.append(1e3 * (time.perf_counter() - start))
    send(load_ms=times[-1])
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = answer(model)
        send(tokens=tokens, ms=1e3 * (time.perf_counter() - start), mb=held_mb())


def held_mb() -> float | None:
    """What this process holds now; None where the system does not say."""
    status = Path("/proc/self/status")
    return int(re.search(r"VmRSS:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e6 if status.exists() else None
