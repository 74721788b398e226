"""Softmax cross-entropy, one value a token: loss, log-probability, log-sum-exp and entropy in one pass.

Formula, for one row of logits with s = logits / τ, p = softmax(s) and target y:

    lse     = log Σ_j exp(s_j)
    logprob = s_y − lse
    entropy = −Σ_j p_j log p_j
    loss    = −(1 − ε) logprob − ε · mean_j(s_j − lse) + ζ lse²

    ∂loss/∂logits_j = ( (1 + 2ζ lse) p_j − (1 − ε)[j = y] − ε/V ) / τ

with ε label smoothing, ζ z-loss, τ temperature. A row whose target is `ignore_index` gives 0 everywhere.

    eager    reference.py           the definition
    torch    cpu/cross_entropy.py   few passes, in place where possible
    triton   gpu/cross_entropy.py   the GPU kernels

Letters: N rows (tokens), V vocabulary, g the gradient of the loss.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels.arguments import CrossEntropyOptions as Options
from kernels.backend import implementation
from kernels.cpu import cross_entropy as cpu

REDUCTIONS = ("none", "sum", "mean")


class TokenStats(NamedTuple):
    """What the pass over the logits also knows of each token, detached; 0 where the target is ignored."""

    logprob: Tensor  # (N,) log-probability of the target under softmax(logits / temperature)
    lse: Tensor  # (N,) log Σ exp(logits / temperature)
    entropy: Tensor  # (N,) of softmax(logits / temperature), in nats


def rows_module(triton: bool) -> ModuleType:
    """Where `forward` and `backward` of rows of logits are: in Triton or in PyTorch."""
    if triton:
        from kernels.gpu import cross_entropy as gpu  # imports Triton, which a machine without a GPU may lack

        return gpu
    return cpu


# ---- custom operators, so that torch.compile sees one node and looks no further ------------------


@torch.library.custom_op("minillm::cross_entropy", mutates_args=())
def _forward(
    logits: Tensor,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    stats: bool,
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """logits (N, V), targets (N,) → loss (N,), stats (3, N) or (3, 0), norm (2, N): see Rows."""
    check_targets(targets, logits.shape[-1], ignore_index)
    options = Options(ignore_index, label_smoothing, z_loss, temperature)
    rows = rows_module(triton).forward(logits, targets, options, stats=stats)
    return rows.loss, rows.stats if stats else rows.loss.new_empty(3, 0), rows.norm


@_forward.register_fake
def _(logits, targets, ignore_index, label_smoothing, z_loss, temperature, stats, triton):
    N = logits.shape[0]
    loss = logits.new_empty(N, dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, loss.new_empty(3, N if stats else 0), loss.new_empty(2, N)


@torch.library.custom_op("minillm::cross_entropy_backward", mutates_args=())
def _backward(
    logits: Tensor,
    targets: Tensor,
    norm: Tensor,
    g: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    triton: bool,
) -> Tensor:
    options = Options(ignore_index, label_smoothing, z_loss, temperature)
    return rows_module(triton).backward(logits, targets, norm, g, options)


@_backward.register_fake
def _(logits, targets, norm, g, ignore_index, label_smoothing, z_loss, temperature, triton):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    logits, targets, *options, _, triton = inputs
    _, stats, norm = output
    ctx.mark_non_differentiable(stats, norm)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, targets, norm)
    ctx.options = (*options, triton)


def _differentiate(ctx, g, *_):
    forbid_double_backward("cross_entropy")
    if g is None:
        return (None,) * 8
    logits, targets, norm = ctx.saved_tensors
    return _backward(logits, targets, norm, g, *ctx.options), *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_setup_context)


def forbid_double_backward(name: str) -> None:
    """Raise where a gradient is asked for that could itself be differentiated: it would come out wrong."""
    if torch.is_grad_enabled():
        raise RuntimeError(f"{name} has no second derivative: create_graph=True works with impl='eager' only")


# ---- one public function -------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "none",
    return_stats: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, TokenStats]:
    """Softmax cross-entropy of logits (..., V) and targets (...) int64 → loss (...) float32.

    ignore_index     targets with this value don't count: loss and gradient are 0
    label_smoothing  spreads this share of the target over the vocabulary (arXiv:1512.00567)
    z_loss           adds z_loss · lse², which keeps the logits from drifting (arXiv:2204.02311)
    temperature      divides the logits
    reduction        "none", "sum", or "mean" over the targets that count (0 if none does)
    return_stats     → (loss, TokenStats), from the same pass
    impl             see kernels/backend.py

    float16, bfloat16 and float32 logits, float64 with `torch` and `eager` (and then a float64 loss). Values
    and gradients are computed in float32 or wider, and the logits are never written to. Raises ValueError for
    shapes that don't fit, options out of range, and targets outside 0 … V−1; on a GPU, where looking at the
    targets would stall, those are a device-side assertion.
    """
    options = check_options(ignore_index, label_smoothing, z_loss, temperature, reduction)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets {tuple(targets.shape)} don't fit logits {tuple(logits.shape)}")
    chosen = implementation(logits.device, impl, logits.dtype)
    if chosen == "eager":
        check_targets(targets, logits.shape[-1], ignore_index)
        loss, *stats = reference.cross_entropy(logits, targets, **options._asdict())
    else:
        rows, labels = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        loss, stats, _ = _forward(rows, labels, *options, return_stats, chosen == "triton")
        loss = loss.view(targets.shape)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / (targets != ignore_index).sum().clamp_min(1)
    return (loss, TokenStats(*(x.view(targets.shape) for x in stats))) if return_stats else loss


def check_options(
    ignore_index: int, label_smoothing: float, z_loss: float, temperature: float, reduction: str
) -> Options:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing={label_smoothing} must lie between 0 and 1")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss={z_loss} must not be negative")
    if not temperature > 0.0:
        raise ValueError(f"temperature={temperature} must be positive")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is not one of {', '.join(REDUCTIONS)}")
    return Options(ignore_index, float(label_smoothing), float(z_loss), float(temperature))


def check_targets(targets: Tensor, V: int, ignore_index: int) -> None:
    """Raise for a target that is no word: ValueError, or on a GPU an assertion that stalls nothing."""
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}, not torch.int64")
    wrong = ((targets < 0) | (targets >= V)) & (targets != ignore_index)
    if targets.device.type == "cuda":
        torch._assert_async(~wrong.any(), f"a target is neither in 0 … {V - 1} nor ignore_index={ignore_index}")
    elif wrong.any():
        value = targets[wrong][0].item()
        raise ValueError(f"target {value} is neither in 0 … {V - 1} nor ignore_index={ignore_index}")
