"""Cross-entropy from hidden states and the output matrix, without ever holding all logits.

Formula: logits = hidden · weightᵀ + bias, then cross_entropy.py. Chunk by chunk of rows,

    logits  = hidden[chunk] · weightᵀ + bias     (n, V): the only buffer that knows the vocabulary
    loss, d = cross-entropy                      d = ∂loss/∂logits takes the place of the logits
    ∂hidden[chunk] = d · weight                  ∂weight += dᵀ · hidden[chunk]        ∂bias += Σ d

The products are the library's; the rest is that of cross_entropy.py, in PyTorch or in Triton.

With the reductions "sum" and "mean" g, the gradient of the loss, is one number: the forward pass forms the
gradients for g = 1 while a chunk is at hand, and the backward pass only scales them. Three products, as if all
logits were stored. With "none" g is not known before the backward pass, which forms the logits again: four
products; a batch of one chunk keeps its logits instead: three.

Letters: N rows (tokens), n rows of a chunk, C width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import reference
from kernels.cross_entropy import (
    TokenStats,
    check_options,
    check_targets,
    forbid_double_backward,
    implementation,
    rows_module,
)
from kernels.cross_entropy_torch import Options

CHUNK_BYTES_CPU = 104 << 20  # of float32 logits: 540 rows of 50,257, where the products reach their full rate
CHUNK_ROWS_GPU = 2048  # fewer starve the products: a V of 128k needs 1,000 rows to be bound by arithmetic


class Grads(NamedTuple):
    """Gradients as they are summed up; an empty tensor stands for one that nobody wants."""

    hidden: Tensor  # (N, C) in the dtype of `hidden`: every row is written once
    weight: Tensor  # (V, C) in float32 or float64: every chunk adds to it
    bias: Tensor  # (V,) in float32 or float64

    @classmethod
    def zeros(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: list[bool]) -> "Grads":
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return cls(
            hidden.new_empty(hidden.shape if wanted[0] else 0),
            hidden.new_zeros(weight.shape if wanted[1] else 0, dtype=wide),
            hidden.new_zeros(bias.shape if wanted[2] else 0, dtype=wide),
        )

    def add(self, part: slice, d: Tensor, hidden: Tensor, weight: Tensor) -> None:
        """A chunk's share: d (n, V), hidden (n, C) and weight (V, C) in one dtype."""
        if self.bias.numel():
            self.bias.add_(d.sum(0, dtype=self.bias.dtype))
        if self.hidden.numel():
            torch.mm(d, weight, out=self.hidden[part])
        if self.weight.numel():
            _add_product(self.weight, d.t(), hidden)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total (V, C) += a · b, in float32 for 16-bit products, as far as the library lets us."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.device.type == "cuda":
        for start in range(0, total.shape[0], 16384):  # so that the share is no second weight gradient
            part = slice(start, start + 16384)
            total[part] += torch.mm(a[part], b, out_dtype=total.dtype)
    else:
        total += a @ b


# ---- one pass over the chunks --------------------------------------------------------------------


def _run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: Options,
    *,
    chunk_rows: int,
    stats: bool,
    wanted: list[bool],
    triton: bool,
    g: Tensor | None = None,
    kept: Tensor | None = None,
    formed: bool = False,
) -> tuple[Tensor, Tensor, Grads]:
    """Losses (N,), stats (3, N) and, for g (N,) or 1, the wanted gradients.

    `kept`: room for the logits of all rows, which stay from one pass (`formed` False) to the next (True).
    """
    N, V = hidden.shape[0], weight.shape[0]
    rows = rows_module(triton)
    weight = weight.to(hidden.dtype)
    grads = Grads.zeros(hidden, weight, bias, wanted)
    loss = hidden.new_empty(N, dtype=torch.promote_types(hidden.dtype, torch.float32))
    values = loss.new_empty(3, N if stats else 0)
    buffer = _buffer(min(N, chunk_rows), V, hidden) if kept is None else None

    for start in range(0, N, chunk_rows):
        part = slice(start, min(start + chunk_rows, N))
        h, y = hidden[part], targets[part]
        logits = buffer[: len(h)] if kept is None else kept[part]
        if not formed:
            _form_logits(h, weight, bias, out=logits)
        done = rows.forward_chunk(
            logits, y, options, V, stats=stats, grad=any(wanted), inplace=kept is None,
            g=None if g is None else g[part],
        )  # fmt: skip
        loss[part] = done.loss
        if stats:
            values[:, part] = done.stats
        if any(wanted):
            d = done.grad
            if d.dtype != hidden.dtype:  # rounded only now that the label is off
                d = logits.copy_(d) if kept is None else d.to(hidden.dtype)
            grads.add(part, d[:, :V], h, weight)
    return loss, values, grads


def _run_counted(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: Options, **how):
    """`_run` without the rows whose target is ignored: a prompt costs nothing. (On a GPU, finding them would
    cost a wait for the device; the Triton kernels write zeros there instead.)"""
    if how["triton"]:
        return _run(hidden, weight, bias, targets, options, **how)
    N = len(targets)
    counted = (targets != options.ignore_index).nonzero().squeeze(-1)
    if len(counted) == N:
        return _run(hidden, weight, bias, targets, options, **how)
    if how.get("g") is not None:
        how["g"] = how["g"][counted]
    loss, stats, grads = _run(hidden[counted], weight, bias, targets[counted], options, **how)
    if how["wanted"][0]:
        grads = grads._replace(hidden=_spread(grads.hidden, 0, counted, N))
    if how["stats"]:
        stats = _spread(stats, 1, counted, N)
    return _spread(loss, 0, counted, N), stats, grads


def _spread(x: Tensor, dim: int, places: Tensor, N: int) -> Tensor:
    """`x` at `places` of a dimension of size N, zeros elsewhere."""
    shape = (*x.shape[:dim], N, *x.shape[dim + 1 :])
    return x.new_zeros(shape).index_copy_(dim, places, x)


def _form_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """hidden · weightᵀ + bias in the first V columns of `out`, −inf in the others."""
    V = weight.shape[0]
    if bias is None:
        torch.mm(hidden, weight.t(), out=out[:, :V])
    else:
        torch.addmm(bias.to(hidden.dtype), hidden, weight.t(), out=out[:, :V])
    if out.shape[1] > V:
        out[:, V:] = -float("inf")


def _buffer(rows: int, V: int, like: Tensor) -> Tensor:
    """Room for a chunk of logits. Long rows each start at a multiple of 64 bytes: at V = 50,257, where they
    would not, MKL forms the logits at 0.6 times the rate."""
    return like.new_empty(rows, V if V < 4096 else -(-V // 32) * 32)


def _default_chunk_rows(V: int, device: torch.device) -> int:
    return max(1, CHUNK_BYTES_CPU // (4 * V)) if device.type == "cpu" else CHUNK_ROWS_GPU


# ---- custom operators, so that torch.compile sees one node and looks no further ------------------


@torch.library.custom_op("minillm::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    chunk_rows: int,
    wanted: list[bool],
    triton: bool,
    stats: bool,
    total: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """→ loss (N,) or their sum, stats (3, N) or (3, 0), kept logits, gradients of hidden, weight and bias.

    `wanted`: of hidden, weight, bias, whose gradient the backward pass will want.
    """
    check_targets(targets, weight.shape[0], ignore_index)
    keep = _keeps_logits(hidden, chunk_rows, wanted, total)
    kept = _buffer(hidden.shape[0], weight.shape[0], hidden) if keep else None
    loss, values, grads = _run_counted(
        hidden, weight, bias, targets, Options(ignore_index, label_smoothing, z_loss, temperature),
        chunk_rows=chunk_rows, stats=stats, wanted=wanted if total else [False] * 3, triton=triton, kept=kept,
    )  # fmt: skip
    return loss.sum() if total else loss, values, hidden.new_empty(0) if kept is None else kept, *grads


def _keeps_logits(hidden: Tensor, chunk_rows: int, wanted: list[bool], total: bool) -> bool:
    return any(wanted) and not total and hidden.shape[0] <= chunk_rows


@_forward.register_fake
def _(hidden, weight, bias, targets, _1, _2, _3, _4, chunk_rows, wanted, triton, stats, total):
    N = hidden.shape[0]
    loss = hidden.new_empty(() if total else N, dtype=torch.promote_types(hidden.dtype, torch.float32))
    keep = _keeps_logits(hidden, chunk_rows, wanted, total)
    kept = _buffer(N, weight.shape[0], hidden) if keep else hidden.new_empty(0)
    grads = Grads.zeros(hidden, weight, bias, wanted if total else [False] * 3)
    return loss, loss.new_empty(3, N if stats else 0), kept, *grads


@torch.library.custom_op("minillm::linear_cross_entropy_backward", mutates_args=())
def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    kept: Tensor,
    g: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    chunk_rows: int,
    wanted: list[bool],
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    keep = kept.numel() > 0
    return _run_counted(
        hidden, weight, bias, targets, Options(ignore_index, label_smoothing, z_loss, temperature),
        chunk_rows=chunk_rows, stats=False, wanted=wanted, triton=triton, g=g,
        kept=kept if keep else None, formed=keep,
    )[2]  # fmt: skip


@_backward.register_fake
def _(hidden, weight, bias, targets, kept, g, _1, _2, _3, _4, chunk_rows, wanted, triton):
    return tuple(Grads.zeros(hidden, weight, bias, wanted))


def _setup_context(ctx, inputs, output):
    hidden, weight, bias, targets, *options, _stats, total = inputs
    _, values, kept, *grads = output
    ctx.mark_non_differentiable(values, kept, *grads)
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as the weight gradient
    ctx.save_for_backward(hidden, weight, bias, targets, kept, *grads)
    ctx.options, ctx.total = options, total


def _differentiate(ctx, g, *_):
    forbid_double_backward("linear_cross_entropy")
    if g is None:
        return (None,) * 13
    hidden, weight, bias, targets, kept, *grads = ctx.saved_tensors
    if ctx.total:
        grads = [x * g for x in grads]
    else:
        grads = _backward(hidden, weight, bias, targets, kept, g.contiguous(), *ctx.options)
    wanted = zip(grads, (hidden, weight, bias), ctx.needs_input_grad, strict=False)
    return *(x.to(like.dtype) if want else None for x, like, want in wanted), *[None] * 10


_forward.register_autograd(_differentiate, setup_context=_setup_context)


# ---- one public function -------------------------------------------------------------------------


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
    """`cross_entropy(hidden · weightᵀ + bias, targets)`, the logits of only some rows stored at a time.

    hidden (N, C), weight (V, C), bias (V,), targets (N,) int64 → loss (N,) float32 (float64 for float64).
    `chunk_rows` rows of logits exist at a time; the default suits the device. The other options are those of
    `cross_entropy`, and so are the errors.

    The products run in the dtype of `hidden`, under autocast in autocast's; weight and bias are cast to it.
    Their gradients are summed up in float32 or wider and come back in the dtype of the weight, so that
    float32 master weights work with bfloat16 activations.
    """
    options = check_options(ignore_index, label_smoothing, z_loss, temperature, reduction)
    _check_shapes(hidden, weight, targets, bias, chunk_rows)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    chosen = implementation(hidden, impl)
    if chosen == "eager":
        check_targets(targets, weight.shape[0], ignore_index)
        loss, *stats = reference.linear_cross_entropy(hidden, weight, targets, bias=bias, **options._asdict())
        loss = loss if reduction == "none" else loss.sum()
    else:
        tensors = (hidden, weight, bias)
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in tensors]
        rows = chunk_rows or _default_chunk_rows(weight.shape[0], hidden.device)
        total = reduction != "none"
        loss, stats, *_ = _forward(*tensors, targets, *options, rows, wanted, chosen == "triton", return_stats, total)
    if reduction == "mean":
        loss = loss / (targets != ignore_index).sum().clamp_min(1)
    return (loss, TokenStats(*stats)) if return_stats else loss


def _check_shapes(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, chunk_rows: int | None) -> None:
    N, V = targets.shape[0] if targets.dim() == 1 else None, weight.shape[0]
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape != (N, weight.shape[1]):
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} "
            f"don't fit (N, C), (V, C) and (N,)"
        )
    if bias is not None and bias.shape != (V,):
        raise ValueError(f"bias {tuple(bias.shape)} doesn't fit weight {tuple(weight.shape)}: it must be ({V},)")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows={chunk_rows} must be at least 1")
