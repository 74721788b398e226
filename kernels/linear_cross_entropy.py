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

import torch
from torch import Tensor

from kernels import linear_cross_entropy_chunks as chunks
from kernels import reference
from kernels.arguments import CrossEntropyOptions as Options
from kernels.backend import implementation
from kernels.cross_entropy import TokenStats, check_options, check_targets, forbid_double_backward

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
    """→ loss (N,) or its sum, stats (N, 3) or (0, 3), Kept, Grads: empty tensors where nothing is kept or formed.

    `wanted`: of hidden, weight, bias, whose gradient the backward pass will want.
    """
    check_targets(targets, weight.shape[0], ignore_index)
    N = len(targets)
    options = Options(ignore_index, label_smoothing, z_loss, temperature)
    kept, now = _plan(hidden, weight, chunk_rows, wanted, triton, total)
    counted = chunks.counted(targets, ignore_index, triton)
    h, y = chunks.take(hidden, counted), chunks.take(targets, counted)
    how = {"chunk_rows": chunk_rows, "stats": stats, "wanted": now, "triton": triton, "kept": kept}
    loss, values, grads = chunks.run(h, weight, bias, y, options, **how)
    loss = loss.sum() if total else chunks.put(loss, counted, N)
    return (
        loss,
        chunks.put(values, counted, N) if stats else values,
        *kept,
        *(grads.put(counted, N) if now[0] else grads),
    )


def _plan(
    hidden: Tensor, weight: Tensor, chunk_rows: int, wanted: list[bool], triton: bool, total: bool
) -> tuple[chunks.Kept, list[bool]]:
    """Room for what the forward pass keeps, and which gradients it forms."""
    N, V = hidden.shape[0], weight.shape[0]
    rows = N if any(wanted) and chunk_rows >= N else 0
    wide = torch.promote_types(hidden.dtype, torch.float32)
    kept = chunks.Kept(chunks.room(rows, V, hidden, triton), hidden.new_empty(2, rows, dtype=wide))
    return kept, wanted if total and not rows else [False] * 3


@_forward.register_fake
def _(hidden, weight, bias, targets, _1, _2, _3, _4, chunk_rows, wanted, triton, stats, total):
    N = hidden.shape[0]
    loss = hidden.new_empty(() if total else N, dtype=torch.promote_types(hidden.dtype, torch.float32))
    kept, now = _plan(hidden, weight, chunk_rows, wanted, triton, total)
    return loss, loss.new_empty(N if stats else 0, 3), *kept, *chunks.Grads.zeros(hidden, weight, bias, now)


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
    counted = chunks.counted(targets, ignore_index, triton)
    h, y, g = (chunks.take(x, counted) for x in (hidden, targets, g))
    if buffer.numel():
        grads = chunks.finish(
            h, weight, bias, y, options, wanted=wanted, triton=triton, g=g, kept=chunks.Kept(buffer, norm)
        )
    else:
        how = {"chunk_rows": chunk_rows, "stats": False, "wanted": wanted, "triton": triton}
        grads = chunks.run(h, weight, bias, y, options, g=g, **how)[2]
    return tuple(grads.put(counted, len(targets)) if wanted[0] else grads)


@_backward.register_fake
def _(hidden, weight, bias, targets, buffer, norm, g, _1, _2, _3, _4, chunk_rows, wanted, triton):
    return tuple(chunks.Grads.zeros(hidden, weight, bias, wanted))


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
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:  # as in F.linear
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    chosen = implementation(hidden.device, impl, hidden.dtype)
    if chosen == "eager":
        check_targets(targets, weight.shape[0], ignore_index)
        loss, *stats = reference.linear_cross_entropy(hidden, weight, targets, bias=bias, **options._asdict())
        loss = loss if reduction == "none" else loss.sum()
    else:
        tensors = (hidden, weight, bias)
        wanted = [torch.is_grad_enabled() and x is not None and x.requires_grad for x in tensors]
        rows = chunk_rows or chunks.default_chunk_rows(weight.shape[0], hidden.device)
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
