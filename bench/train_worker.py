"""What both sides of bench/train.py do in processes of their own: a step of AdamW for every line they are sent."""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

LR = 1e-4


def serve(model: nn.Module, backward: Callable[[], Tensor], lr: float = LR) -> None:
    """Answers each line of standard input with a step: its loss, its milliseconds, the peak memory so far.

    `backward` computes the gradients and returns the loss.
    """
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, fused=True)
    send(parameters=sum(p.numel() for p in model.parameters()))
    for _ in sys.stdin:
        start = time.perf_counter()
        value = backward()
        optimizer.step()
        optimizer.zero_grad()
        number = value.item()
        send(loss=number, ms=1e3 * (time.perf_counter() - start), peak_mb=peak_mb())


def peak_mb() -> float | None:
    """The most that this process ever held, libraries included; None where the system does not say."""
    status = Path("/proc/self/status")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024 / 1e6 if status.exists() else None


def send(**fields: float | None) -> None:
    print(json.dumps(fields), flush=True)
