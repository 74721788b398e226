"""Which implementation of a kernel runs, and why: the only place that decides.

eager    kernels/reference.py: the definition in plain PyTorch, any dtype up to float64, nothing clever
torch    the best that PyTorch offers on this device without Triton
triton   our own GPU kernels; on a CPU only inside Triton's interpreter (TRITON_INTERPRET=1, for tests)
auto     triton on a GPU where Triton is installed and takes the tensors, else torch; within torch.func.grad, vmap and
         their like eager, which alone is made of what these know
"""

import importlib.util
import os
from functools import cache
from typing import NamedTuple

import torch

from kernels.operators import constant

IMPLS = ("auto", "triton", "torch", "eager")
MAX_HEAD_DIM = 256  # of the Triton attention, whose tiles hold whole heads
is_transformed = torch._C._are_functorch_transforms_active  # () → whether within torch.func.grad, vmap and their like
_default = "auto"
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # looking takes 50 µs: once


class Choice(NamedTuple):
    impl: str  # "triton", "torch" or "eager"
    reason: str  # why, in words a user can act on


def set_default(impl: str) -> None:
    """Make `impl` the meaning of `impl=None` in this process; scripts call it once with their --kernels."""
    global _default
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(IMPLS)}")
    _default = impl
    implementation.cache_clear()


def choose(
    device: torch.device, impl: str | None = None, dtype: torch.dtype | None = None, head_dim: int = 0
) -> Choice:
    """The implementation that runs on `device`; `dtype` and `head_dim` are those of the tensors, where known.

    ValueError if `impl` is unknown or cannot run there.
    """
    impl = impl or _default
    if impl not in IMPLS:
        raise ValueError(f"impl={impl!r} is not one of {', '.join(IMPLS)}")
    if impl != "eager" and is_transformed():
        if impl == "auto":
            return Choice("eager", "the definition, because torch.func sees through nothing else")
        raise ValueError(f"impl={impl!r} is closed to the transforms of torch.func; use impl='eager' there")
    if impl in ("torch", "eager"):
        return Choice(impl, "as asked for")
    obstacle = triton_obstacle(device, dtype, head_dim)
    if impl == "triton":
        if obstacle:
            raise ValueError(f"impl='triton' cannot run here: {obstacle}")
        return Choice("triton", "as asked for")
    if obstacle:
        return Choice("torch", f"PyTorch's own kernels, because {obstacle}")
    if device.type == "cpu":  # the interpreter proves kernels; it is no way to run them
        return Choice("torch", "PyTorch's own kernels, because Triton's interpreter is for tests only")
    return Choice("triton", f"our Triton kernels, because the tensors are on a {torch.cuda.get_device_name(device)}")


@constant  # torch.compile shall not trace the search
def implementation_in_graph(
    device: torch.device, impl: str | None, dtype: torch.dtype, head_dim: int = 0, *, transformed: bool = False
) -> str:
    """`choose(...).impl`, for torch.compile, which asks once; `transformed`: is_transformed()."""
    return choose(device, impl, dtype, head_dim).impl


implementation = cache(implementation_in_graph)  # for all others: every layer of every step asks


def triton_obstacle(device: torch.device, dtype: torch.dtype | None = None, head_dim: int = 0) -> str | None:
    """What keeps Triton kernels from running on `device`, or None."""
    if not _TRITON_INSTALLED:
        return "Triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton needs a GPU and the tensors are on '{device.type}'"
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        return f"our kernels take numbers of 16 and 32 bits, not {dtype}"  # float64 has no fast units to speak of
    if head_dim > MAX_HEAD_DIM:
        return f"our kernels take head dims to {MAX_HEAD_DIM}, not {head_dim}"
    if head_dim and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        # The launch table of attention: tiles of 96 KB, where a Turing GPU has 64.
        return f"our attention wants the shared memory of Ampere, which a {torch.cuda.get_device_name(device)} lacks"
    return None
