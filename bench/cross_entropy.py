"""Cross-entropy, from logits and from hidden states: PyTorch, torch.compile, Liger, and ours, side by side.

    python bench/cross_entropy.py                   # on a GPU if there is one, else on the CPU (three minutes)
    python bench/cross_entropy.py --only V=70       # the cases whose name contains this
    python bench/cross_entropy.py --quick           # does everything run?

From logits the rate counts the least traffic that autograd allows: logits read once forward, read and their gradient
written backward; the ceiling is the rate of a copy. From hidden states it counts 2·N·C·V floating-point operations
forward and twice as many backward; the ceiling is the rate of a large matrix product. Some form the gradient in the
forward already, so that there the backward is not timed alone. The ratio is eager PyTorch's time over the provider's.
Peak memory is what a call needs beyond its inputs and their gradients.

Letters: N rows (tokens), C width, V vocabulary.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator

import harness  # first: puts the repository root on the path
import report
import torch
from harness import BACKWARD, BOTH, FORWARD, Call, Case
from torch import Tensor
from torch.nn import functional as F

from kernels import cross_entropy, linear_cross_entropy, reference

BASELINE = "eager"
CHECKED = {"cpu": 1100, "cuda": 2500}  # rows of hidden states in the check: several chunks, the truth within seconds
Function = Callable[..., Tensor]


def cases(device: torch.device, quick: bool = False, slow: bool = False) -> Iterator[Case]:
    """On a GPU the shapes that papers report; on a CPU a small and a large vocabulary."""
    half, single = torch.bfloat16, torch.float32
    if quick:
        yield from_logits(64, 100, single, device, slow)
        yield from_hidden(64, 16, 1000, single, device, slow)
    elif device.type == "cuda":
        for V in (131072, 32000):
            yield from_logits(8192, V, half, device, slow)
        for C, V in ((4096, 128256), (4096, 32000), (768, 50257)):
            yield from_hidden(8192, C, V, half, device, slow)
        for V in (131072, 32000):
            yield from_logits(8192, V, single, device, slow)
    else:
        yield from_hidden(8192, 768, 50257, single, device, slow, modes=(BOTH,))
        for dtype in (single, half):
            yield from_hidden(5000, 192, 70, dtype, device, slow)
            yield from_logits(1024, 50257, dtype, device, slow)
        yield from_hidden(5000, 192, 70, single, device, slow, reduction="none")
        if slow:
            yield from_hidden(8192, 768, 50257, half, device, slow)


def from_logits(N: int, V: int, dtype: torch.dtype, device: torch.device, slow: bool = False) -> Case:
    logits = torch.randn(N, V, dtype=dtype, device=device, requires_grad=True)
    targets = torch.randint(0, V, (N,), device=device)

    def eager(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets)

    def ours(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets, reduction="mean")

    functions = {"eager": eager, "torch.compile": torch.compile(eager, dynamic=False), "ours": ours}
    absent = left_out(device, slow)
    grad = torch.ones((), device=device)
    calls = {name: Call(f, [logits], grad, (targets,)) for name, f in functions.items() if name not in absent}
    if "Liger" not in absent:
        from liger_kernel.transformers.functional import liger_cross_entropy

        # It writes the gradient into the logits themselves: that copy, which others don't need, is not on its bill.
        calls["Liger"] = Call(liger_cross_entropy, [logits.detach().clone().requires_grad_()], grad, (targets,))

    def sample(call: Call, rows: int = 64) -> list[Tensor]:
        loss, dlogits = harness.output_and_gradients(call)
        return [loss, dlogits[:rows]]

    def truth() -> list[Tensor]:
        losses = [mean_loss(part, labels) for part, labels in zip(logits.split(512), targets.split(512), strict=True)]
        few = logits[:64].detach().double().requires_grad_()
        (grad,) = torch.autograd.grad(reference.cross_entropy(few, targets[:64])[0].sum() / N, few)
        return [torch.stack(losses).sum() / N, grad]

    def mean_loss(part: Tensor, labels: Tensor) -> Tensor:
        return reference.cross_entropy(part.detach().double(), labels)[0].sum()

    size = N * V * dtype.itemsize / 1e9
    work = {FORWARD: size, BACKWARD: 2 * size, BOTH: 3 * size}
    name = f"logits N={N} V={V} {str(dtype).removeprefix('torch.')}"
    return Case(name, dtype, "B/s", work, calls, sample, truth, absent)


def from_hidden(
    N: int,
    C: int,
    V: int,
    dtype: torch.dtype,
    device: torch.device,
    slow: bool = False,
    reduction: str = "mean",
    modes: tuple[str, ...] = (FORWARD, BOTH),
) -> Case:
    """Master weights in float32 and activations in `dtype`, as training has them."""
    hidden = torch.randn(N, C, dtype=dtype, device=device, requires_grad=True)
    weight = (torch.randn(V, C, device=device) * C**-0.5).requires_grad_()
    targets = torch.randint(0, V, (N,), device=device)
    grad = torch.ones(N if reduction == "none" else (), device=device)
    absent = left_out(device, slow) | no_native()
    if reduction != "mean" and "Liger" not in absent:
        absent["Liger"] = "has no gradient of single losses"
    functions = {name: function for name, function in hidden_functions(reduction).items() if name not in absent}
    calls = {name: Call(f, [hidden, weight], grad, (targets,)) for name, f in functions.items()}
    n = CHECKED[device.type]
    few = [hidden[:n].detach().requires_grad_(), weight], grad[:n] if grad.dim() else grad

    def sample(call: Call) -> list[Tensor]:
        return harness.output_and_gradients(Call(call.function, *few, (targets[:n],)))

    def truth() -> list[Tensor]:
        inputs = [x.detach().double().requires_grad_() for x in few[0]]
        return harness.output_and_gradients(Call(exact, inputs, few[1].double(), (targets[:n],)))

    def exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        loss = reference.linear_cross_entropy(hidden, weight, targets)[0]
        return loss if reduction == "none" else loss.mean()

    name = f"hidden N={N} C={C} V={V} {str(dtype).removeprefix('torch.')} {reduction}"
    gflop = 2e-9 * N * C * V
    work = {mode: gflop if mode == FORWARD else 3 * gflop for mode in modes}
    return Case(name, dtype, "FLOP/s", work, calls, sample, truth, absent)


def hidden_functions(reduction: str) -> dict[str, Function]:
    """Functions of hidden states, output matrix and targets."""

    def eager(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden, weight.to(hidden.dtype)).float(), targets, reduction=reduction)

    def native(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions()  # without, it is eager
        weight = weight.to(hidden.dtype)
        return F.linear_cross_entropy(hidden, weight, targets, reduction=reduction, options=options)

    def liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(hidden, weight.to(hidden.dtype), targets)

    def ours(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        mean = 1 / len(targets) if reduction == "mean" else None
        return linear_cross_entropy(hidden, weight, targets, token_weights=mean)

    compiled = torch.compile(eager, dynamic=False)
    return {
        "eager": eager,
        "torch.compile": compiled,
        "F.linear_cross_entropy": native,
        "Liger": liger,
        "ours": ours,
    }


def left_out(device: torch.device, slow: bool) -> dict[str, str]:
    """Why some providers are not asked."""
    absent = {}
    if device.type == "cpu":
        absent["Liger"] = "needs a GPU"
        if not slow:
            absent["torch.compile"] = "compiling takes longer than the rest of the benchmark: --all"
    elif not importlib.util.find_spec("liger_kernel"):
        absent["Liger"] = "not installed: pip install liger-kernel"
    return absent


def no_native() -> dict[str, str]:
    if hasattr(F, "linear_cross_entropy"):
        return {}
    return {"F.linear_cross_entropy": f"torch {torch.__version__} has none; 2.13 does"}


def main() -> int:
    return report.compare(__doc__, cases, BASELINE, "cross_entropy", "Cross-entropy")


if __name__ == "__main__":
    sys.exit(main())
