"""Launch configurations around the shipped ones: which is the fastest on this card, and by how much?

A search from the shipped configuration of each kernel: all its neighbours (one tile side or the warps doubled or
halved, one stage more or less, for the forward the copy engine or none) are timed beside it, then those of the best,
until nothing is better. Each is compiled and checked against float64 on a small problem first, in processes of their
own: a bad program can abort the compiler. The times of the attention backward are those of both its kernels, of which
one changes; those of a step of generation include the merge.

Letters: B batch, T queries and keys, H query heads, D head dim, N rows, V vocabulary.
"""

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import NamedTuple
from unittest.mock import patch

import harness  # first: puts the repository root on the path
import torch
from harness import BACKWARD, BOTH, FORWARD, Call, Work

from kernels import attention, cross_entropy, linear_cross_entropy, reference

LIMITS = {"block_m": (16, 256), "block_n": (16, 256), "block": (256, 32768), "warps": (1, 16), "stages": (1, 5)}
CHUNKS = (1024, 2048, 4096, 8192)


class Tile(NamedTuple):
    """A launch of the cross-entropy kernels."""

    block: int
    warps: int


class Problem(NamedTuple):
    """A kernel and what it works on; nothing but words and numbers, so that other processes understand it."""

    kernel: str  # a field of attention_launch.Launches, or "cross_entropy.forward", "cross_entropy.backward"
    dtype: str
    size: int  # D or V
    causal: bool = False

    def __str__(self) -> str:
        mask = "" if self.is_cross_entropy or self.kernel == "decode" else " causal" if self.causal else " full"
        return f"{self.kernel} {'V' if self.is_cross_entropy else 'D'}={self.size} {self.dtype}{mask}"

    @property
    def is_cross_entropy(self) -> bool:
        return self.kernel.startswith("cross_entropy")

    @property
    def mode(self) -> str:
        return FORWARD if self.kernel.endswith(("forward", "decode")) else BACKWARD


def problems(dry: bool) -> Iterator[Problem]:
    kernels = ("forward", "backward_kv", "backward_q")
    if dry:
        yield Problem("forward", "float32", 16, True)
        yield Problem("decode", "float32", 16, True)
        yield Problem("cross_entropy.backward", "float32", 700)
        return
    for size in (128, 64):
        for causal in (True, False):
            yield from (Problem(kernel, "bfloat16", size, causal) for kernel in kernels)
        yield Problem("decode", "bfloat16", size, True)
    for V in (131072, 32000):
        yield from (Problem(f"cross_entropy.{mode}", "bfloat16", V) for mode in ("forward", "backward"))
    yield from (Problem(kernel, "bfloat16", 256, True) for kernel in (*kernels, "decode"))
    yield from (Problem(kernel, "float32", 64, True) for kernel in kernels)
    yield from (Problem(kernel, "float16", 128, True) for kernel in kernels)


# ---- a configuration -----------------------------------------------------------------------------------


def shipped(p: Problem, device: torch.device) -> NamedTuple:
    from kernels.gpu import attention_launch, cross_entropy

    if p.kernel == "cross_entropy.forward":
        return Tile(*cross_entropy.launch_shape(p.size)[1:])
    if p.kernel == "cross_entropy.backward":
        return Tile(*cross_entropy.tile_shape(p.size))
    return getattr(attention_launch.launches(device, getattr(torch, p.dtype), p.size), p.kernel)


def launched(p: Problem, launch: NamedTuple, device: torch.device) -> AbstractContextManager:
    """The kernels launch like this inside; in every thread, because autograd has its own."""
    from kernels.gpu import attention_launch, cross_entropy

    if p.kernel == "cross_entropy.forward":
        return patch.object(cross_entropy, "launch_shape", lambda V: (launch.block >= V, *launch))
    if p.kernel == "cross_entropy.backward":
        return patch.object(cross_entropy, "tile_shape", lambda V: tuple(launch))
    table = attention_launch.launches(device, getattr(torch, p.dtype), p.size)._replace(**{p.kernel: launch})
    return patch.object(attention_launch, "launches", lambda *_: table)


def neighbours(p: Problem, launch: NamedTuple, device: torch.device) -> Iterator[NamedTuple]:
    if p.kernel == "forward" and (device.type == "cpu" or torch.cuda.get_device_capability(device)[0] >= 9):
        yield launch._replace(descriptors=not launch.descriptors)
    for name, (least, most) in LIMITS.items():
        x = getattr(launch, name, None)
        if x is not None:
            for y in (x - 1, x + 1) if name == "stages" else (x // 2, x * 2):
                if least <= y <= most:
                    yield launch._replace(**{name: y})


@cache
def build(p: Problem, device: torch.device, small: bool) -> Call:
    """Sizes are multiples of 16 in both, or Triton would compile the small problem's kernel for itself alone."""
    dtype = getattr(torch, p.dtype)
    if p.is_cross_entropy:
        N = 16 if small or device.type == "cpu" else 8192
        logits = torch.randn(N, p.size, device=device).to(dtype).requires_grad_()
        targets = torch.randint(0, p.size, (N,), device=device)
        function = partial(cross_entropy, reduction="none", impl="triton")
        return Call(function, [logits], torch.randn(N, device=device), (targets,))
    if p.kernel == "decode":
        return build_step(p, device, small)
    T = 256 if small else 1024 if dtype == torch.float32 else 4096
    B, T, H = (1, 64, 2) if device.type == "cpu" else (2 if small else 4, T, 2048 // p.size)
    *inputs, grad = (torch.randn(B, T, H, p.size, device=device).to(dtype) for _ in range(4))
    function = partial(attention, causal=p.causal, impl="triton")
    return Call(function, [x.requires_grad_() for x in inputs], grad)


def build_step(p: Problem, device: torch.device, small: bool) -> Call:
    """Of one query a sequence in groups of four heads; keys to be cut into shares, in the small problem too."""
    B, S, G = (1, 512, 1) if device.type == "cpu" else (1, 1024, 8) if small else (8, 8192, 8)
    shapes = (B, 1, 4 * G, p.size), (B, S, G, p.size), (B, S, G, p.size)
    tensors = tuple(torch.randn(shape, device=device).to(getattr(torch, p.dtype)) for shape in shapes)
    return Call(torch.no_grad()(partial(attention, causal=True, impl="triton")), [], tensors[0], tensors)


def try_out(p: Problem, device: torch.device, launch: NamedTuple) -> str:
    """Compile and run it on the small problem; what is wrong with it, or nothing."""
    call = build(p, device, small=True)

    def error() -> float:
        with launched(p, launch, device):
            return harness.relative_error(harness.output_and_gradients(call), exact(p, call))

    found, reason = harness.attempt(error)
    allowed = harness.TOLERANCE[getattr(torch, p.dtype)]
    return reason if found is None else "" if found <= allowed else f"wrong by {found:.0e}"


def exact(p: Problem, call: Call) -> list[torch.Tensor]:
    inputs = [x.detach().double().requires_grad_() for x in call.inputs]
    function = partial(reference.attention, causal=p.causal)
    if p.is_cross_entropy:
        function = lambda logits, targets: reference.cross_entropy(logits, targets)[0]  # noqa: E731
    constants = [x.double() if x.is_floating_point() else x for x in call.constants]
    return harness.output_and_gradients(Call(function, inputs, call.grad.double(), constants))


# ---- the search ----------------------------------------------------------------------------------------


def search(p: Problem, device: torch.device, pool: ProcessPoolExecutor, deadline: float, most: int | None) -> dict:
    """The fastest found, and everything tried: time over that of the shipped configuration in the same rounds."""
    start = best = shipped(p, device)
    ratios, refused, ms = {start: 1.0}, {}, None
    while time.monotonic() < deadline:
        fresh = [x for x in neighbours(p, best, device) if x not in ratios and x not in refused][:most]
        reasons = dict(zip(fresh, pool.map(partial(try_out, p, device), fresh), strict=True))
        refused |= {x: reason for x, reason in reasons.items() if reason}
        able = [x for x in fresh if x not in refused]
        if not able:
            break
        times = timed(p, [start, *able], device)
        ms = ms or times[start]
        ratios |= {x: times[x] / times[start] for x in able}
        champion = min(ratios, key=ratios.get)
        if champion == best or most:
            break
        best = champion
    best = min(ratios, key=ratios.get)
    record = {"problem": str(p), "shipped": str(start), "ms": ms, "best": str(best), "best_over_shipped": ratios[best]}
    tried = {str(x): ratio for x, ratio in sorted(ratios.items(), key=lambda item: item[1])}
    return record | {"tried": tried, "refused": {str(x): reason for x, reason in refused.items()}}


def timed(p: Problem, launches: list[NamedTuple], device: torch.device) -> dict[NamedTuple, float]:
    work = harness.prepare(p.mode, build(p, device, small=False))

    def patched(launch: NamedTuple) -> Callable[[object], object]:
        def run(state: object) -> object:
            with launched(p, launch, device):
                return work.timed(state)

        return run

    works = {launch: Work(patched(launch), work.before) for launch in launches}
    for each in works.values():
        each.timed(each.before())  # compiled already, but loaded from the disk now
    first = {launch: harness.watch(each, device)[1] for launch, each in works.items()}
    times = harness.measure(works, first, device, rounds=3, seconds=0.03)
    return {launch: statistics.median(samples) for launch, samples in times.items()}


def workers(device: torch.device) -> ProcessPoolExecutor:
    count = min(8, os.cpu_count() or 1) if device.type == "cuda" else 1
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def chunk_rows(device: torch.device, dry: bool) -> dict:
    """Milliseconds, forward and backward, of linear cross-entropy by the rows of logits that exist at a time."""
    N, C, V = (64, 16, 100) if dry else (8192, 4096, 128256)
    hidden = torch.randn(N, C, device=device).bfloat16().requires_grad_()
    weight = (torch.randn(V, C, device=device) * C**-0.5).requires_grad_()
    constants = (torch.randint(0, V, (N,), device=device),)
    works = {}
    for rows in CHUNKS:
        function = partial(linear_cross_entropy, token_weights=1 / N, chunk_rows=rows)
        call = Call(function, [hidden, weight], torch.ones((), device=device), constants)
        works[rows] = harness.prepare(BOTH, call)
        works[rows].timed(None)
    first = {rows: harness.watch(work, device)[1] for rows, work in works.items()}
    times = harness.measure(works, first, device, rounds=3, seconds=0.05)
    return {"problem": f"linear cross-entropy N={N} C={C} V={V}: rows of logits at a time"} | {
        "ms": {rows: statistics.median(samples) for rows, samples in times.items()}
    }
