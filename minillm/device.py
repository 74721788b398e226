"""Where a model computes and in which precision, each with the reason in words."""

import time
from typing import NamedTuple

import torch
from torch import nn

import kernels
from minillm.errors import UserError
from minillm.wording import counted

PRECISIONS = ("auto", "fp32", "bf16")


class Placement(NamedTuple):
    device: torch.device
    dtype: torch.dtype  # of activations and products; weights and optimiser state are float32
    precision: str  # the same as an option, so that a run that goes on need not measure again
    lines: list[str]  # what was chosen and why, for a person


def place(precision: str, implementation: str = "auto") -> Placement:
    """A CUDA GPU if there is one, else the CPU; bfloat16 where that clearly pays; these kernels."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        where = torch.cuda.get_device_name(device)
    else:
        device = torch.device("cpu")
        where = f"CPU, {counted(torch.get_num_threads(), 'thread')}, because PyTorch sees no CUDA GPU"
    dtype, why = choose_dtype(device, precision)
    kernels.set_default(implementation)
    try:
        choice = kernels.choose(device)
    except ValueError as error:
        raise UserError(f"--kernels {implementation}: {error}") from None
    lines = [
        f"device     {where}",
        f"precision  {str(dtype).removeprefix('torch.')} ({why})",
        f"kernels    {choice.impl} ({choice.reason})",
    ]
    return Placement(device, dtype, {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype], lines)


def settle(model: nn.Module, placement: Placement, checkpointing: bool, compiled: bool) -> None:
    """Has the model compute there, and as --checkpointing and --compile say. UserError where nothing can be compiled.

    Compiled is each block by itself, all of one kind at once: what lies between them is little. Loss and gradients are
    those of the plain model, to rounding, but dropout draws other numbers.
    """
    model.to(placement.device).compute_dtype = placement.dtype
    model.recompute = checkpointing
    if compiled:
        try:
            kernels.leave_untraced()
            torch.compile(torch.sin)(torch.ones(2, device=placement.device))
        except (RuntimeError, OSError) as error:  # a compiler that is missing, most of all
            raise UserError(f"--compile cannot work here: {error}") from None
        for block in getattr(model, "encoder", model).blocks:
            block.compile(dynamic=True)


def choose_dtype(device: torch.device, precision: str) -> tuple[torch.dtype, str]:
    if precision not in PRECISIONS:
        raise UserError(f"--precision {precision} is not one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision], "as asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes in it; weights stay float32"
        return torch.float32, "this GPU has no bfloat16"
    speedup = product_seconds(torch.float32) / product_seconds(torch.bfloat16)
    if speedup > 1.3:  # below, the conversions eat the gain
        return (
            torch.bfloat16,
            f"a matrix product takes 1/{speedup:.1f} of its float32 time here; weights stay float32",
        )
    return torch.float32, f"bfloat16 products are {speedup:.1f} times as fast here, which does not pay"


def product_seconds(dtype: torch.dtype, rows: int = 1024, width: int = 256) -> float:
    """Best of a few timings of a product of the size that a small model computes; about 10 ms in all."""
    x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    torch.mm(x, weight)  # the first call sets the library up
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(x, weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
