"""Softmax cross-entropy, one value a token: loss, log-probability, log-sum-exp and entropy in one pass.

Letters: N rows (tokens), V vocabulary; ε label smoothing, ζ z-loss, τ temperature, y the target, g the gradient of
the loss.

Formula, for one row with s = logits / τ and p = softmax(s):

    lse     = log Σ_j exp(s_j)
    logprob = s_y − lse
    entropy = −Σ_j p_j log p_j = lse − Σ_j p_j s_j
    loss    = −(1 − ε) logprob − ε · mean_j(s_j − lse) + ζ lse²

    ∂loss/∂logits_j = ( (1 + 2ζ lse) p_j − (1 − ε)[j = y] − ε/V ) / τ

A row whose target is `ignore_index` gives 0 for all four and no gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import reference
from kernels.backend import choose

REDUCTIONS = ("none", "sum", "mean")


class TokenStats(NamedTuple):
    """What else the pass over the logits knows about each token, detached; 0 where the target is ignored."""

    logprob: Tensor  # (N,) log-probability of the target under softmax(logits / temperature)
    lse: Tensor  # (N,) log Σ exp(logits / temperature)
    entropy: Tensor  # (N,) of softmax(logits / temperature), in nats


class Options(NamedTuple):
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    temperature: float = 1.0


# ---- the same in PyTorch, in place on a buffer of our own --------------------------------------------------------


class Rows(NamedTuple):
    """Where a pass over some rows stands: `logp` is all that the backward needs of the logits."""

    logp: Tensor  # (N, V) float32 or float64: log softmax(logits / τ)
    loss: Tensor  # (N,), and so are the following
    logprob: Tensor
    lse: Tensor | None  # None where nobody asked
    entropy: Tensor | None


def torch_forward(logits: Tensor, targets: Tensor, options: Options, stats: bool, own: bool) -> Rows:
    """logits (N, V), no target ignored. `own` says that the logits are ours to overwrite."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = own or wide is not logits
    if options.temperature != 1.0:
        wide = wide.div_(options.temperature) if own else wide / options.temperature
        own = True
    top = wide.max(-1) if stats or options.z_loss else None
    logp = torch.log_softmax(wide, -1, out=wide) if own else torch.log_softmax(wide, -1)
    logprob = logp.gather(-1, targets[:, None]).squeeze(-1)

    loss = logprob * (options.label_smoothing - 1.0)
    if options.label_smoothing:
        loss.sub_(logp.mean(-1), alpha=options.label_smoothing)
    lse = None
    if top is not None:  # from the largest logit, the only one close to the result
        lse = top.values - logp.gather(-1, top.indices[:, None]).squeeze(-1)
        loss.addcmul_(lse, lse, value=options.z_loss)
    return Rows(logp, loss, logprob, lse, _entropy(logp) if stats else None)


def torch_backward(rows: Rows, targets: Tensor, options: Options, own: bool) -> Tensor:
    """∂loss/∂logits (N, V) in the dtype of `logp`, for g = 1. `own` says that `logp` is ours to overwrite."""
    V = rows.logp.shape[-1]
    grad = rows.logp.exp_() if own else rows.logp.exp()
    if options.z_loss:
        grad.mul_((2.0 * options.z_loss * rows.lse + 1.0)[:, None])
    if options.label_smoothing:
        grad.sub_(options.label_smoothing / V)
    label = grad.new_full((1, 1), options.label_smoothing - 1.0).expand(len(targets), 1)
    grad.scatter_add_(-1, targets[:, None], label)
    return grad.div_(options.temperature) if options.temperature != 1.0 else grad


def _entropy(logp: Tensor, block_elements: int = 1 << 20) -> Tensor:
    """−Σ p log p of each row, in blocks that stay in the cache and far below the memory of `logp` itself."""
    out = logp.new_empty(logp.shape[0])
    step = max(1, block_elements // logp.shape[-1])
    for start in range(0, logp.shape[0], step):
        block = logp[start : start + step].clamp_min(-1e4)  # exp(-1e4) is 0: no 0 · -inf
        out[start : start + step] = block.mul_(block.exp()).sum(-1)
    return out.neg_()


class _TorchCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, targets, options, stats):
        counted = targets != options.ignore_index
        label = targets.masked_fill(~counted, 0)
        rows = torch_forward(logits, label, options, stats, own=False)
        ctx.save_for_backward(rows.logp, rows.lse, label, counted)
        ctx.options, ctx.dtype = options, logits.dtype
        values = (rows.loss, rows.logprob, rows.lse, rows.entropy)
        values = tuple(None if x is None else x.masked_fill(~counted, 0) for x in values)
        ctx.mark_non_differentiable(*(x for x in values[1:] if x is not None))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        logp, lse, label, counted = ctx.saved_tensors
        grad = torch_backward(Rows(logp, None, None, lse, None), label, ctx.options, own=False)
        grad.mul_((grad_loss * counted)[:, None])
        return grad.to(ctx.dtype), None, None, None


# ---- one public function -----------------------------------------------------------------------------------------


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
    """Softmax cross-entropy of logits (..., V) and targets (...) int64 → loss (...) float32 (float64 for float64).

    Loss and gradient are 0 where the target is `ignore_index`. `label_smoothing` spreads that share of the target
    over the vocabulary (Szegedy et al., 1512.00567), `z_loss` adds z_loss · lse² (PaLM, 2204.02311), `temperature`
    divides the logits. `reduction`: "none", "sum", or "mean" over the targets that count (0 if none does).
    With `return_stats` → (loss, TokenStats). The logits are never written to.
    Raises ValueError for shapes that don't fit, options out of range, or targets outside 0 … V−1 (on a GPU, where
    looking would stall, a device-side assertion).
    """
    options = check_options(ignore_index, label_smoothing, z_loss, temperature, reduction)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)} need targets {tuple(logits.shape[:-1])}, not {tuple(targets.shape)}"
        )
    check_targets(targets, logits.shape[-1], ignore_index)
    choice = choose(logits.device, impl)
    if choice.impl == "eager":
        values = reference.cross_entropy(logits, targets, **options._asdict())
    else:
        flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        values = _TorchCrossEntropy.apply(*flat, options, return_stats)
        values = tuple(None if x is None else x.view(targets.shape) for x in values)
    loss = reduce(values[0], targets, ignore_index, reduction)
    return (loss, TokenStats(*values[1:])) if return_stats else loss


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
    return Options(ignore_index, label_smoothing, z_loss, temperature)


def check_targets(targets: Tensor, V: int, ignore_index: int) -> None:
    """Raise ValueError for a target that is no class; on a GPU an assertion that stalls nothing."""
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}; they must be torch.int64")
    wrong = ((targets < 0) | (targets >= V)) & (targets != ignore_index)
    if targets.device.type == "cuda":
        torch._assert_async(
            ~wrong.any(), f"a target is neither in 0 … {V - 1} nor ignore_index={ignore_index}"
        )
    elif wrong.any():
        value = targets[wrong][0].item()
        raise ValueError(f"target {value} is neither in 0 … {V - 1} nor ignore_index={ignore_index}")


def reduce(loss: Tensor, targets: Tensor, ignore_index: int, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (targets != ignore_index).sum().clamp_min(1)
