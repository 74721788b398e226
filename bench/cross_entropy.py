"""Cross-entropy, from logits and from hidden states: PyTorch, Liger where it is installed, and ours, side by side.

    python bench/cross_entropy.py                   # on a GPU if there is one, else on the CPU (10 minutes)
    python bench/cross_entropy.py --only V=70       # the cases whose name contains this
    python bench/cross_entropy.py --quick           # does everything run?

From logits the rate counts the least traffic: logits read once forward, read and their gradient written backward.
From hidden states it counts 2·N·C·V floating-point operations forward and twice as many backward. The ratio is eager
PyTorch's time over the provider's. Peak memory is what a call needs beyond its inputs and their gradients.

Letters: N rows (tokens), C width, V vocabulary.
"""

import importlib.util
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import NamedTuple

import harness  # first: puts the repository root on the path
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import choose, cross_entropy, linear_cross_entropy

Function = Callable[..., Tensor]


class Case(NamedTuple):
    name: str
    work: dict[str, float]  # 1e9 bytes or operations, by mode
    providers: dict[str, tuple[Function, list[Tensor]]]  # function and its differentiable arguments


def from_logits(N: int, V: int, dtype: torch.dtype, device: torch.device) -> Case:
    logits = torch.randn(N, V, dtype=dtype, device=device, requires_grad=True)
    targets = torch.randint(0, V, (N,), device=device)

    def eager(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets, reduction="none")

    functions = {"eager": eager, "ours": lambda logits: cross_entropy(logits, targets)}
    if device.type == "cuda":
        functions["torch.compile"] = torch.compile(eager)
        if importlib.util.find_spec("liger_kernel"):
            from liger_kernel.transformers.functional import liger_cross_entropy

            # Liger forms the gradient in the logits themselves; the copy that others don't need is not on its bill.
            functions["Liger"] = lambda logits: liger_cross_entropy(logits, targets, reduction="none")
    size = N * V * dtype.itemsize / 1e9
    work = {"forward": size, "forward + backward": 3 * size}
    name = f"logits N={N} V={V} {str(dtype).removeprefix('torch.')}"
    return Case(name, work, {provider: (function, [logits]) for provider, function in functions.items()})


def from_hidden(N: int, C: int, V: int, dtype: torch.dtype, device: torch.device, reduction: str = "mean") -> Case:
    """Master weights in float32 and activations in `dtype`, as training has them."""
    hidden = torch.randn(N, C, dtype=dtype, device=device, requires_grad=True)
    weight = (torch.randn(V, C, device=device) * C**-0.5).requires_grad_()
    targets = torch.randint(0, V, (N,), device=device)

    def eager(hidden: Tensor, weight: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight.to(hidden.dtype)).float(), targets, reduction=reduction)

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, targets, reduction=reduction)

    functions = {"eager": eager, "ours": ours}
    if hasattr(F, "linear_cross_entropy"):  # torch >= 2.13
        functions["F.linear_cross_entropy"] = lambda hidden, weight: F.linear_cross_entropy(
            hidden, weight.to(hidden.dtype), targets, reduction=reduction
        )
    if device.type == "cuda":
        functions["torch.compile"] = torch.compile(eager)
        if importlib.util.find_spec("liger_kernel") and reduction == "mean":
            from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

            functions["Liger"] = lambda hidden, weight: liger_fused_linear_cross_entropy(
                hidden, weight.to(hidden.dtype), targets
            )
    name = f"hidden N={N} C={C} V={V} {str(dtype).removeprefix('torch.')} {reduction}"
    work = {"forward": 2e-9 * N * C * V, "forward + backward": 6e-9 * N * C * V}
    return Case(name, work, {provider: (f, [hidden, weight]) for provider, f in functions.items()})


def cases(device: torch.device, quick: bool) -> Iterator[tuple[str, list[Case]]]:
    """Groups by unit. On a GPU the shapes that papers report; on a CPU a small and a large vocabulary."""
    half, single = torch.bfloat16, torch.float32
    if quick:
        yield "GB/s", (from_logits(64, 100, single, device) for _ in range(1))
        yield "GFLOP/s", (from_hidden(64, 16, 1000, single, device) for _ in range(1))
    elif device.type == "cuda":
        logits = [(8192, V, dtype) for V in (32000, 131072) for dtype in (half, single)]
        hidden = [(8192, 768, 50257), (8192, 4096, 32000), (8192, 4096, 128256)]
        yield "GB/s", (from_logits(*shape, device) for shape in logits)
        yield "GFLOP/s", (from_hidden(*shape, half, device) for shape in hidden)
    else:
        small = [(5000, 192, 70, dtype, device, kind) for dtype in (single, half) for kind in ("mean", "none")]
        large = [(2048, 768, 50257, half, device, "mean"), (2048, 768, 50257, single, device, "none")]
        largest = [(8192, 768, 50257, single, device, "mean")]
        yield "GB/s", (from_logits(2048, 50257, dtype, device) for dtype in (single, half))
        yield "GFLOP/s", (from_hidden(*shape) for shape in small + large + largest)


def forward(function: Function, inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return function(*inputs)


def forward_and_backward(function: Function, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    loss = function(*inputs)
    return torch.autograd.grad(loss, inputs, torch.ones_like(loss))


def compare(case: Case, mode: str, device: torch.device, args: Namespace) -> list[harness.Row]:
    run = forward if mode == "forward" else forward_and_backward
    calls = {name: lambda p=p: run(*p) for name, p in case.providers.items()}
    rounds = min(args.rounds, 3) if device.type == "cpu" and case.work[mode] > 100 else args.rounds
    rows = harness.compare(case.name, mode, calls, device, "eager", case.work[mode], rounds, args.seconds)
    for row in rows:
        if mode != "forward" and row.peak_mb is not None:
            gradients = sum(x.nbytes for x in case.providers[row.provider][1]) / 1e6
            row.peak_mb = max(0.0, row.peak_mb - gradients)
    return rows


def main() -> None:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    args = parser.parse_args()
    device = harness.device_of(args)
    print(f"ours is {choose(device).impl}: {choose(device).reason}")
    environment = harness.environment(device)
    everything = []
    for unit, group in cases(device, args.quick):
        rows = []
        for case in group:
            if args.only in case.name:
                rows += [row for mode in case.work for row in compare(case, mode, device, args)]
        if rows:
            harness.print_table(rows, unit, environment)
        everything += rows
    harness.save(everything, "cross_entropy", "Cross-entropy", args.out, environment)


if __name__ == "__main__":
    main()
