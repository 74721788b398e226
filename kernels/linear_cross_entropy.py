"""Cross-entropy from hidden states and the output matrix, without ever holding all logits.

Letters: N rows (tokens), C width, V vocabulary; D (N, V) the gradient of the loss in the logits.

Formula: logits = hidden · weightᵀ + bias, then `kernels.cross_entropy`. In chunks of rows, each the size of a cache
rather than of the batch:

    logits  = hidden[chunk] · weightᵀ         (rows, V): the only buffer that knows the vocabulary
    loss, D = cross-entropy(logits)           in place
    ∂hidden[chunk] = D · weight               ∂weight += Dᵀ · hidden[chunk]

The gradient is linear in g, the gradient of the loss, row by row. When the reduction makes g one number for all rows,
the forward pass forms the gradients for g = 1 while a chunk is at hand and the backward pass only scales them: three
matrix products. With reduction "none" g is not known before the backward pass, which then forms the logits again:
four. A batch that fits in one chunk keeps its log-probabilities instead: three.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import reference
from kernels.backend import choose
from kernels.cross_entropy import (
    Rows,
    TokenStats,
    check_options,
    check_targets,
    torch_backward,
    torch_forward,
)

CHUNK_BYTES = 96 << 20  # of fp32 logits


class Grads(NamedTuple):
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _chunk_rows(V: int) -> int:
    return max(1, CHUNK_BYTES // (4 * V))


def _accumulate(
    grads: Grads, rows: slice, D: Tensor, hidden: Tensor, weight: Tensor, g: Tensor | None
) -> None:
    """Add a chunk: D (n, V) for g = 1, hidden (n, C) and weight (V, C) in the same dtype, g (n,) or None for 1."""
    if grads.bias is not None:
        grads.bias.add_(D.sum(0) if g is None else g.to(D.dtype) @ D)
    D = D.to(weight.dtype)
    if grads.hidden is not None:
        out = torch.mm(D, weight, out=grads.hidden[rows])
        if g is not None:
            out.mul_(g[:, None])
    if grads.weight is not None:
        h = hidden if g is None else hidden * g[:, None].to(hidden.dtype)
        if grads.weight.dtype == D.dtype:
            grads.weight.addmm_(D.t(), h)
        else:
            grads.weight.add_(D.t() @ h)


class _TorchLinearCrossEntropy(torch.autograd.Function):
    """hidden (N, C), weight (V, C) and bias (V,) in any dtype, no target ignored."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, options, total, stats, chunk_rows):
        N, V = hidden.shape[0], weight.shape[0]
        cast = weight.to(hidden.dtype)
        ctx.options, ctx.total, ctx.chunk_rows = options, total, chunk_rows
        ctx.one_chunk = chunk_rows >= N
        needed = any(ctx.needs_input_grad)
        grads = None
        if needed and total and not ctx.one_chunk:
            grads = _empty_grads(ctx, hidden, weight, bias)
        values = []
        for start in range(0, N, chunk_rows):
            part = slice(start, start + chunk_rows)
            logits = _logits(hidden[part], cast, bias)
            rows = torch_forward(logits, targets[part], options, stats, own=True)
            values.append(rows[1:])
            if grads is not None:
                D = torch_backward(rows, targets[part], options, own=True)
                _accumulate(grads, part, D, hidden[part], cast, None)
        if ctx.one_chunk:
            ctx.save_for_backward(hidden, weight, bias, targets, rows.logp, rows.lse)
        elif grads is not None:
            ctx.save_for_backward(hidden, weight, bias, targets, *grads)
        else:
            ctx.save_for_backward(hidden, weight, bias, targets)
        loss, logprob, lse, entropy = (None if x[0] is None else torch.cat(x) for x in zip(*values))
        if not stats:
            logprob = lse = entropy = None
        else:
            ctx.mark_non_differentiable(logprob, lse, entropy)
        return (loss.sum() if total else loss), logprob, lse, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, g, *_):
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        if not ctx.one_chunk and ctx.total:
            grads = Grads(*(None if x is None else x * g.to(x.dtype) for x in saved))
        else:
            grads = _empty_grads(ctx, hidden, weight, bias)
            cast = weight.to(hidden.dtype)
            for start in range(0, hidden.shape[0], ctx.chunk_rows):
                part = slice(start, start + ctx.chunk_rows)
                if ctx.one_chunk:
                    rows = Rows(saved[0], None, None, saved[1], None)
                else:
                    logits = _logits(hidden[part], cast, bias)
                    rows = torch_forward(logits, targets[part], ctx.options, False, own=True)
                D = torch_backward(rows, targets[part], ctx.options, own=not ctx.one_chunk)
                g_rows = g.expand(hidden.shape[0])[part] if ctx.total else g[part]
                _accumulate(grads, part, D, hidden[part], cast, g_rows)
        hidden_grad = grads.hidden
        weight_grad = None if grads.weight is None else grads.weight.to(weight.dtype)
        bias_grad = None if grads.bias is None else grads.bias.to(bias.dtype)
        return hidden_grad, weight_grad, bias_grad, None, None, None, None, None


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, None if bias is None else bias.to(hidden.dtype))


def _empty_grads(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Grads:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
    return Grads(
        torch.empty_like(hidden) if need_hidden else None,
        torch.zeros_like(weight, dtype=wide) if need_weight else None,
        torch.zeros_like(bias, dtype=wide) if need_bias else None,
    )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: str = "none",
    chunk_rows: int | None = None,
    return_stats: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, TokenStats]:
    """`cross_entropy(hidden · weightᵀ + bias, targets)`, the logits never stored whole.

    hidden (N, C), weight (V, C), bias (V,), targets (N,) int64 → loss (N,) float32 (float64 for float64 hidden).
    The products run in the dtype of `hidden`, to which weight and bias are cast; the gradients of weight and bias
    are accumulated in float32 and come back in the dtype of the weight. `chunk_rows`: how many rows of logits exist
    at a time. The other options are those of `cross_entropy`.
    """
    options = check_options(ignore_index, label_smoothing, z_loss, temperature, reduction)
    N, V = targets.shape[0], weight.shape[0]
    check_targets(targets, V, ignore_index)
    if choose(hidden.device, impl).impl == "eager":
        values = reference.linear_cross_entropy(hidden, weight, targets, bias=bias, **options._asdict())
        loss = values[0] if reduction == "none" else values[0].sum()
        count = (targets != ignore_index).sum()
    else:
        counted = (targets != ignore_index).nonzero().squeeze(-1)
        count = len(counted)
        if count < N:
            hidden, targets = hidden.index_select(0, counted), targets.index_select(0, counted)
        if count:
            rows = chunk_rows or _chunk_rows(V)
            total = reduction != "none"
            values = _TorchLinearCrossEntropy.apply(
                hidden, weight, bias, targets, options, total, return_stats, rows
            )
        else:
            zero = (hidden.sum() + 0.0 * weight.sum()).float()
            values = (
                zero if reduction != "none" else zero.expand(0),
                *(hidden.new_empty(0).float() for _ in range(3)),
            )
        if count < N:
            values = [
                x if x is None or x.dim() == 0 else x.new_zeros(N).index_copy(0, counted, x) for x in values
            ]
        loss = values[0]
    if reduction == "mean":
        loss = loss / max(int(count), 1)
    return (loss, TokenStats(*values[1:])) if return_stats else loss
