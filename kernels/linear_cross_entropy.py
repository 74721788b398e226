"""Cross-entropy from hidden states and the output matrix, without ever holding all logits.

Formula: logits = hidden · weightᵀ + bias, then cross_entropy.py. Chunk by chunk of rows,

    logits  = hidden[chunk] · weightᵀ + bias     (n, V): the only buffer that knows the vocabulary
    loss, d = cross-entropy                      d = ∂loss/∂logits takes the place of the logits
    ∂hidden[chunk] = d · weight                  ∂weight += dᵀ · hidden[chunk]        ∂bias += Σ d

The products are the library's; the rest is that of cross_entropy.py, in PyTorch or in Triton.

A batch of one chunk keeps what stands in the buffer, and the backward pass goes on from there. With more chunks
and the reduction "sum" or "mean" g, the gradient of the loss, is one number: the forward pass forms the gradients
for g = 1 while a chunk is at hand, and the backward pass only scales them. Both take three products, as if all
logits were stored. With more chunks and "none" g is not known before the backward pass, which begins again: four.

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

    def put(self, rows: Tensor | None, N: int) -> "Grads":
        """With the hidden states' gradient in these rows of N."""
        return self._replace(hidden=_put(self.hidden, rows, N))

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


class Kept(NamedTuple):
    """What the forward pass of a single chunk leaves to the backward pass; empty if there are more."""

    buffer: Tensor  # (N, ≥ V) as `forward_chunk` leaves it
    norm: Tensor  # (2, N), see Rows


# ---- passes over the chunks ----------------------------------------------------------------------


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
    kept: Kept | None = None,
) -> tuple[Tensor, Tensor, Grads]:
    """Losses (N,), stats (N, 3) and, for g (N,) or 1, the wanted gradients. Fills in `kept`."""
    N, V = hidden.shape[0], weight.shape[0]
    rows = rows_module(triton)
    weight = weight.to(hidden.dtype)
    grads = Grads.zeros(hidden, weight, bias, wanted)
    loss = hidden.new_empty(N, dtype=torch.promote_types(hidden.dtype, torch.float32))
    values = loss.new_empty(N if stats else 0, 3)
    keep = kept is not None and kept.buffer.numel() > 0
    buffer = kept.buffer[:N] if keep else _buffer(min(N, chunk_rows), V, hidden, triton)
    product = buffer if buffer.dtype == hidden.dtype else torch.empty_like(buffer, dtype=hidden.dtype)

    for start in range(0, N, chunk_rows):
        part = slice(start, min(start + chunk_rows, N))
        h, y, n = hidden[part], targets[part], part.stop - start
        _form_logits(h, weight, bias, out=product[:n])
        if product is not buffer:
            buffer[:n] = product[:n]
        g_part = None if g is None else g[part]
        done = rows.forward_chunk(buffer[:n], y, options, V, stats=stats, grad=any(wanted), g=g_part)
        loss[part] = done.loss
        if stats:
            values[part] = done.stats.t()
        if any(wanted):
            if product is not buffer:
                product[:n] = buffer[:n]  # rounded only now that the label is off
            grads.add(part, product[:n, :V], h, weight)
        if keep:
            kept.norm[:, part] = done.norm
    return loss, values, grads


def _finish(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    options: Options,
    *,
    wanted: list[bool],
    triton: bool,
    g: Tensor,
    kept: Kept,
) -> Grads:
    """The wanted gradients from what `_run` kept."""
    N, V = hidden.shape[0], weight.shape[0]
    weight = weight.to(hidden.dtype)
    grads = Grads.zeros(hidden, weight, bias, wanted)
    d = rows_module(triton).backward_chunk(kept.buffer[:N], targets, kept.norm[:, :N], g, options, V)
    grads.add(slice(0, N), d.to(hidden.dtype)[:, :V], hidden, weight)
    return grads


def _counted(targets: Tensor, ignore_index: int, triton: bool) -> Tensor | None:
    """The rows whose target counts, or None for all: a prompt costs nothing. (On a GPU, finding them would cost a
    wait for the device; the Triton kernels write zeros there instead.)"""
    if triton:
        return None
    counted = (targets != ignore_index).nonzero().squeeze(-1)
    return None if len(counted) == len(targets) else counted


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Tensor | None, N: int) -> Tensor:
    """The reverse of `_take`: zeros in the other rows of N."""
    return x if rows is None else x.new_zeros(N, *x.shape[1:]).index_copy_(0, rows, x)


def _form_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """hidden · weightᵀ + bias in the first V columns of `out`, −inf in the others."""
    V = weight.shape[0]
    if bias is None:
        torch.mm(hidden, weight.t(), out=out[:, :V])
    else:
        torch.addmm(bias.to(hidden.dtype), hidden, weight.t(), out=out[:, :V])
    if out.shape[1] > V:
        out[:, V:] = -float("inf")


def _buffer(rows: int, V: int, like: Tensor, triton: bool) -> Tensor:
    """Room for a chunk of logits. Long rows each start at a multiple of 64 bytes: at V = 50,257, where they
    would not, MKL forms the logits at 0.6 times the rate."""
    width = V if V < 4096 else -(-V // 32) * 32
    return like.new_empty(rows, width, dtype=rows_module(triton).buffer_dtype(like.dtype))


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """→ loss (N,) or its sum, stats (N, 3) or (0, 3), Kept, Grads; empty tensors where nothing is kept or formed.

    `wanted`: of hidden, weight, bias, whose gradient the backward pass will want.
    """
    check_targets(targets, weight.shape[0], ignore_index)
    N = len(targets)
    options = Options(ignore_index, label_smoothing, z_loss, temperature)
    kept, now = _plan(hidden, weight, chunk_rows, wanted, triton, total)
    counted = _counted(targets, ignore_index, triton)
    h, y = _take(hidden, counted), _take(targets, counted)
    how = {"chunk_rows": chunk_rows, "stats": stats, "wanted": now, "triton": triton, "kept": kept}
    loss, values, grads = _run(h, weight, bias, y, options, **how)
    loss = loss.sum() if total else _put(loss, counted, N)
    return loss, _put(values, counted, N) if stats else values, *kept, *(grads.put(counted, N) if now[0] else grads)


def _plan(
    hidden: Tensor, weight: Tensor, chunk_rows: int, wanted: list[bool], triton: bool, total: bool
) -> tuple[Kept, list[bool]]:
    """Room for what the forward pass keeps, and which gradients it forms."""
    N, V = hidden.shape[0], weight.shape[0]
    rows = N if any(wanted) and chunk_rows >= N else 0
    wide = torch.promote_types(hidden.dtype, torch.float32)
    kept = Kept(_buffer(rows, V, hidden, triton), hidden.new_empty(2, rows, dtype=wide))
    return kept, wanted if total and not rows else [False] * 3


@_forward.register_fake
def _(hidden, weight, bias, targets, _1, _2, _3, _4, chunk_rows, wanted, triton, stats, total):
    N = hidden.shape[0]
    loss = hidden.new_empty(() if total else N, dtype=torch.promote_types(hidden.dtype, torch.float32))
    kept, now = _plan(hidden, weight, chunk_rows, wanted, triton, total)
    return loss, loss.new_empty(N if stats else 0, 3), *kept, *Grads.zeros(hidden, weight, bias, now)


@torch.library.custom_op("minillm::linear_cross_entropy_backward", mutates_args=())
def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    buffer: Tensor,
    norm: Tensor,
    g: Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    temperature: float,
    chunk_rows: int,
    wanted: list[bool],
    triton: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The wanted gradients, from what was kept (`buffer`, `norm`) or else from the beginning."""
    options = Options(ignore_index, label_smoothing, z_loss, temperature)
    counted = _counted(targets, ignore_index, triton)
    h, y, g = (_take(x, counted) for x in (hidden, targets, g))
    if buffer.numel():
        grads = _finish(h, weight, bias, y, options, wanted=wanted, triton=triton, g=g, kept=Kept(buffer, norm))
    else:
        how = {"chunk_rows": chunk_rows, "stats": False, "wanted": wanted, "triton": triton}
        grads = _run(h, weight, bias, y, options, g=g, **how)[2]
    return tuple(grads.put(counted, len(targets)) if wanted[0] else grads)


@_backward.register_fake
def _(hidden, weight, bias, targets, buffer, norm, g, _1, _2, _3, _4, chunk_rows, wanted, triton):
    return tuple(Grads.zeros(hidden, weight, bias, wanted))


def _setup_context(ctx, inputs, output):
    hidden, weight, bias, targets, *options, _stats, total = inputs
    _, values, buffer, norm, *grads = output
    ctx.mark_non_differentiable(values, buffer, norm, *grads)
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as the weight gradient
    ctx.save_for_backward(hidden, weight, bias, targets, buffer, norm, *grads)
    ctx.options, ctx.formed = options, total and not buffer.numel()


def _differentiate(ctx, g, *_):
    forbid_double_backward("linear_cross_entropy")
    if g is None:
        return (None,) * 13
    hidden, weight, bias, targets, buffer, norm, *grads = ctx.saved_tensors
    if ctx.formed:
        grads = [x * g for x in grads]
    else:
        g = g.expand(len(targets)).contiguous()
        grads = _backward(hidden, weight, bias, targets, buffer, norm, g, *ctx.options)
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
        stats = stats.unbind(-1)
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
