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

from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels.arguments import CrossEntropyOptions as Options
from kernels.backend import implementation, implementation_in_graph, is_transformed
from kernels.cpu import cross_entropy as cpu
from kernels.operators import operator, schema_of

REDUCTIONS = ("none", "sum", "mean")


class TokenStats(NamedTuple):
    """What the pass over the logits also knows of each token, detached; 0 where the target is ignored."""

    logprob: Tensor  # (N,) log-probability of the target under softmax(logits / temperature)
    lse: Tensor  # (N,) log Σ exp(logits / temperature)
    entropy: Tensor  # (N,) of softmax(logits / temperature), in nats


@cache
def rows_module(triton: bool) -> ModuleType:
    """Where `forward` and `backward` of rows of logits are: in Triton or in PyTorch."""
    if triton:
        from kernels.gpu import cross_entropy as gpu  # imports Triton, which a machine without a GPU may lack

        return gpu
    return cpu


# ---- operators -------------------------------------------------------------------------------------


def _forward(
    logits: Tensor, targets: Tensor, stats: bool, triton: bool, *options: float
) -> tuple[Tensor, Tensor, Tensor]:
    """logits (N, V), targets (N,) → loss (N,), stats (3, N) or (3, 0), norm (2, N): see Rows."""
    options = Options(*options)
    cpu.check_targets(targets, logits.shape[-1], options.ignore_index)
    rows = rows_module(triton).forward(logits, targets, options, stats=stats)
    return rows.loss, rows.stats if stats else rows.loss.new_empty(3, 0), rows.norm


def _forward_fake(logits, targets, stats, *_):
    N = logits.shape[0]
    loss = logits.new_empty(N, dtype=torch.promote_types(logits.dtype, torch.float32))
    return loss, loss.new_empty(3, N if stats else 0), loss.new_empty(2, N)


def _backward(logits: Tensor, targets: Tensor, norm: Tensor, g: Tensor, triton: bool, *options: float) -> Tensor:
    return rows_module(triton).backward(logits, targets, norm, g, Options(*options))


def _backward_fake(logits, *_):
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup(ctx, inputs, output) -> None:
    logits, targets, _, *ctx.options = inputs
    _, stats, norm = output
    ctx.mark_non_differentiable(stats, norm)
    ctx.save_for_backward(logits, targets, norm)


def _gradient(ctx, g: Tensor, *_) -> tuple:
    logits, targets, norm = ctx.saved_tensors
    return _backward_operator(logits, targets, norm, g, *ctx.options), *[None] * (2 + len(ctx.options))


_backward_operator = operator(
    f"cross_entropy_backward(Tensor logits, Tensor targets, Tensor norm, Tensor g, bool triton, {schema_of(Options)}) "
    "-> Tensor",
    _backward,
    fake=_backward_fake,
)
_operator = operator(
    f"cross_entropy(Tensor logits, Tensor targets, bool stats, bool triton, {schema_of(Options)}) "
    "-> (Tensor, Tensor, Tensor)",
    _forward,
    fake=_forward_fake,
    setup=_setup,
    gradient=_gradient,
)


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
    options = cpu.check_options(ignore_index, label_smoothing, z_loss, temperature)
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction={reduction!r} is not one of {', '.join(REDUCTIONS)}")
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets {tuple(targets.shape)} don't fit logits {tuple(logits.shape)}")
    choice = implementation_in_graph if torch.compiler.is_compiling() else implementation
    impl = choice(logits.device, impl, logits.dtype, transformed=is_transformed())
    if impl == "eager":
        cpu.check_targets(targets, logits.shape[-1], ignore_index)
        loss, *stats = reference.cross_entropy(logits, targets, **options._asdict())
    else:
        rows, labels = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        loss, stats, _ = _operator(rows, labels, return_stats, impl == "triton", *options)
        loss = loss.view(targets.shape)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / (targets != ignore_index).sum().clamp_min(1)
    return (loss, TokenStats(*(x.view(targets.shape) for x in stats))) if return_stats else loss
