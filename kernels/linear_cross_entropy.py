"""Cross-entropy from hidden states and the output matrix, without ever holding all logits.

Formula: logits = hidden · weightᵀ + bias, then cross_entropy.py. Chunk by chunk of rows,

    logits  = hidden[chunk] · weightᵀ + bias     (n, V): the only buffer that knows the vocabulary
    d       = w · ∂loss/∂logits                  takes the place of the logits
    ∂hidden[chunk] = d · weight                  ∂weight += dᵀ · hidden[chunk]        ∂bias += Σ d

The products are the library's; the rest is that of cross_entropy.py, in PyTorch or in Triton.

Where the weight w of every token is known, the forward pass forms the gradients of Σ w · loss while a chunk is at hand,
and the backward pass has nothing left to do: three products, as if all logits were stored. Of single losses w is the
gradient that the backward pass brings, and that begins again: four.

Letters: N rows (tokens), n rows of a chunk, C width, V vocabulary, w the weight of a token.
"""

import torch
from torch import Tensor

from kernels import reference
from kernels.arguments import CrossEntropyOptions as Options
from kernels.backend import implementation, implementation_in_graph, is_transformed
from kernels.cpu.cross_entropy import check_options, check_targets
from kernels.cross_entropy import TokenStats, rows_module
from kernels.operators import operator, schema_of

CHUNK_BYTES_CPU = 104 << 20  # of float32 logits: 540 rows of 50,257, where the products reach their full rate
CHUNK_ROWS_GPU = 2048  # fewer starve the products: a V of 128k needs 1,000 rows to be bound by arithmetic
SLICE = 16384  # words of the weight's gradient at a time, or the share of a chunk is a second one

# ---- a chunk ---------------------------------------------------------------------------------------


class Room:
    """Where the logits of a chunk stand, and after them their gradient."""

    def __init__(self, rows: int, V: int, like: Tensor, dtype: torch.dtype):
        """The products are in the dtype of `like`, softmax is computed in `dtype`."""
        # Long rows each start at a multiple of 64 bytes: at V = 50,257, where they would not, MKL forms the logits
        # at 0.6 times the rate.
        width = V if V < 4096 else -(-V // 32) * 32
        self.V = V
        self.wide = like.new_empty(rows, width, dtype=dtype)
        self.narrow = self.wide if dtype == like.dtype else torch.empty_like(self.wide, dtype=like.dtype)

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """hidden (n, C) · weightᵀ + bias → (n, ≥ V), −inf behind the vocabulary."""
        wide, narrow = self.wide[: len(hidden)], self.narrow[: len(hidden)]
        if bias is None:
            torch.mm(hidden, weight.t(), out=narrow[:, : self.V])
        else:
            torch.addmm(bias, hidden, weight.t(), out=narrow[:, : self.V])
        if narrow.shape[1] > self.V:
            narrow[:, self.V :] = -float("inf")
        return wide if self.narrow is self.wide else wide.copy_(narrow)

    def gradient(self, n: int) -> Tensor:
        """What `forward_chunk` left of the logits (n, V), rounded only now that the label is off."""
        d = self.wide[:n] if self.narrow is self.wide else self.narrow[:n].copy_(self.wide[:n])
        return d[:, : self.V]


class Gradients:
    """As they are summed up, chunk by chunk; an empty tensor stands for one that nobody wants."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: list[bool]):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = hidden.new_empty(hidden.shape if wanted[0] else 0)  # every row is written once
        self.weight = hidden.new_zeros(weight.shape if wanted[1] else 0, dtype=wide)
        self.bias = hidden.new_zeros(weight.shape[0] if wanted[2] else 0, dtype=wide)

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
        return
    unrounded = {"out_dtype": total.dtype} if a.device.type == "cuda" else {}
    for start in range(0, total.shape[0], SLICE):
        part = slice(start, start + SLICE)
        total[part] += torch.mm(a[part], b, **unrounded)


# ---- all chunks ------------------------------------------------------------------------------------


def run(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    w: Tensor | None,
    options: Options,
    *,
    chunk_rows: int,
    wanted: list[bool],
    triton: bool,
    stats: bool,
) -> tuple[Tensor, Tensor, Gradients]:
    """Loss (N,), stats (N, 3) or (0, 3), and the wanted gradients of Σ w · loss."""
    N, V, rows = len(targets), len(weight), rows_module(triton)
    grads = Gradients(hidden, weight, bias, wanted)
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    room = Room(min(N, chunk_rows), V, hidden, rows.buffer_dtype(hidden.dtype))
    loss = hidden.new_empty(N, dtype=torch.promote_types(hidden.dtype, torch.float32))
    values = loss.new_empty(N if stats else 0, 3)
    for start in range(0, N, chunk_rows):
        part = slice(start, min(start + chunk_rows, N))
        h, y, g = hidden[part], targets[part], None if w is None else w[part]
        done = rows.forward_chunk(room.logits(h, weight, bias), y, options, V, stats=stats, grad=any(wanted), g=g)
        loss[part] = done.loss
        if stats:
            values[part] = done.stats.t()
        if any(wanted):
            grads.add(part, room.gradient(len(y)), h, weight)
    return loss, values, grads


def _counted(targets: Tensor, ignore_index: int) -> Tensor | None:
    """The rows whose target counts, or None for all."""
    counted = (targets != ignore_index).nonzero().squeeze(-1)
    return None if len(counted) == len(targets) else counted


def _take(x: Tensor | None, rows: Tensor | None) -> Tensor | None:
    return x if x is None or rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Tensor | None, N: int) -> Tensor:
    """The reverse of `_take`: zeros in the other rows of N."""
    return x if rows is None else x.new_zeros(N, *x.shape[1:]).index_copy_(0, rows, x)


# ---- the operator: forward, and backward too where the weights are known only then ------------------


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    token_weights: Tensor | None,
    chunk_rows: int,
    wanted: list[bool],
    triton: bool,
    stats: bool,
    *options: float,
) -> tuple[Tensor, ...]:
    """→ loss (N,), or Σ w · loss; stats (N, 3) or (0, 3); and of that sum the gradients `wanted` of hidden, weight
    and bias, not yet in their dtype, the others empty."""
    N, options = len(targets), Options(*options)
    # On a GPU, finding the rows that count would cost a wait for the device; the kernels write zeros there instead.
    counted = None if triton else _counted(targets, options.ignore_index)
    h, y, w = (_take(x, counted) for x in (hidden, targets, token_weights))
    check_targets(y, len(weight), options.ignore_index)
    how = {"chunk_rows": chunk_rows, "wanted": wanted, "triton": triton, "stats": stats}
    loss, values, grads = run(h, weight, bias, y, w, options, **how)
    loss = _put(loss, counted, N) if w is None else torch.where(w != 0, w * loss, 0.0).sum()  # 0 · ∞ = 0
    return (
        loss,
        _put(values, counted, N) if stats else values,
        _put(grads.hidden, counted, N) if wanted[0] else grads.hidden,
        grads.weight,
        grads.bias,
    )


def _fake(hidden, weight, bias, targets, token_weights, chunk_rows, wanted, triton, stats, *_):
    N = targets.shape[0]
    loss = hidden.new_empty(N if token_weights is None else (), dtype=torch.promote_types(hidden.dtype, torch.float32))
    shapes = [x.shape if want else 0 for x, want in zip((hidden, weight, bias), wanted, strict=True)]
    grads = hidden.new_empty(shapes[0]), *(loss.new_empty(shape) for shape in shapes[1:])
    return loss, loss.new_empty(N if stats else 0, 3), *grads


def _setup(ctx, inputs, output) -> None:
    hidden, weight, bias, targets, token_weights, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as the weight gradient
    ctx.formed = token_weights is not None
    ctx.dtypes = [hidden.dtype, weight.dtype, weight.dtype if bias is None else bias.dtype]
    ctx.save_for_backward(*(output[2:] if ctx.formed else (hidden, weight, bias, targets)))


def _gradient(ctx, g: Tensor | None, *_) -> tuple:
    if torch.is_grad_enabled():  # what the forward pass formed does not know how it depends on the inputs
        raise NotImplementedError("linear_cross_entropy has no second derivative; use impl='eager' for that")
    if g is None:
        return (None,) * (5 + len(ctx.options))
    wanted = list(ctx.needs_input_grad[:3])
    if ctx.formed:
        grads = ctx.saved_tensors if _is_one(g) else [x * g for x in ctx.saved_tensors]
    else:
        chunk_rows, _, triton, _, *options = ctx.options
        grads = _operator(*ctx.saved_tensors, g.contiguous(), chunk_rows, wanted, triton, False, *options)[2:]
    grads = [x.to(dtype) if want else None for x, dtype, want in zip(grads, ctx.dtypes, wanted, strict=True)]
    return *grads, *[None] * (2 + len(ctx.options))


def _is_one(g: Tensor) -> bool:
    """As of `loss.backward()`, where looking costs nothing: on a GPU it would be a wait for the device, and what
    torch.compile traces with has no value."""
    return type(g) is Tensor and g.device.type == "cpu" and g.item() == 1.0


_operator = operator(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, Tensor? token_weights, "
    f"SymInt chunk_rows, bool[] wanted, bool triton, bool stats, {schema_of(Options)}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _forward,
    fake=_fake,
    setup=_setup,
    gradient=_gradient,
)


# ---- one public function -------------------------------------------------------------------------


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    token_weights: Tensor | float | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    chunk_rows: int | None = None,
    return_stats: bool = False,
    impl: str | None = None,
) -> Tensor | tuple[Tensor, TokenStats]:
    """`cross_entropy(hidden · weightᵀ + bias, targets)`, the logits of only some rows stored at a time.

    hidden (N, C), weight (V, C), bias (V,), targets (N,) int64 → loss (N,) float32 (float64 for float64).

    token_weights  (N,), or one number for all: → Σ w · loss instead, one number, whose gradients are formed in the
                   forward pass; the mean is 1 / (how many targets count). They are constants and may be negative.
                   Tokens of weight 0 cost as little as those without a target, but for their statistics.
    chunk_rows     so many rows of logits exist at a time; the default suits the device

    The other options are those of `cross_entropy`, and so are the errors.

    The products run in the dtype of `hidden`, under autocast in autocast's; weight and bias are cast to it.
    Their gradients are summed up in float32 or wider and come back in the dtype of the weight, so that
    float32 master weights work with bfloat16 activations.
    """
    options = check_options(ignore_index, label_smoothing, z_loss, temperature)
    _check_tensors(hidden, weight, targets, bias, token_weights)
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows={chunk_rows} must be at least 1")
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:  # as in F.linear
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    if isinstance(token_weights, Tensor) and not return_stats:  # a weight of 0 is as good as no target
        targets = targets.where(token_weights != 0, ignore_index)
    choice = implementation_in_graph if torch.compiler.is_compiling() else implementation
    impl = choice(hidden.device, impl, hidden.dtype, transformed=is_transformed())
    if impl == "eager":
        check_targets(targets, weight.shape[0], ignore_index)
        how = {"token_weights": token_weights, "bias": bias, **options._asdict()}
        loss, *stats = reference.linear_cross_entropy(hidden, weight, targets, **how)
    else:
        w, unit = _weights(token_weights, hidden)
        tensors = (hidden, weight, bias)
        form = w is not None and torch.is_grad_enabled()
        wanted = [form and x is not None and x.requires_grad for x in tensors]
        rows = chunk_rows or default_chunk_rows(weight.shape[0], hidden.device)
        loss, stats, *_ = _operator(*tensors, targets, w, rows, wanted, impl == "triton", return_stats, *options)
        loss, stats = loss if unit is None else loss * unit, stats.unbind(-1)
    return (loss, TokenStats(*stats)) if return_stats else loss


def _weights(token_weights: Tensor | float | None, like: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """One weight a token, (N,), in a unit that is another factor."""
    if token_weights is None:
        return None, None
    dtype = torch.promote_types(like.dtype, torch.float32)
    if not isinstance(token_weights, Tensor):
        token_weights = like.new_full((), token_weights, dtype=dtype)
    w = token_weights.to(like.device, dtype).expand(len(like)).contiguous()
    if like.dtype != torch.float16 or not len(w):
        return w, None
    # Small weights times small probabilities would be 0 in float16, and scaling the loss comes too late. A power of 2
    # rounds nothing.
    unit = torch.ldexp(w.new_ones(()), w.abs().max().frexp().exponent)
    return w / unit, unit


def default_chunk_rows(V: int, device: torch.device) -> int:
    return max(1, CHUNK_BYTES_CPU // (4 * V)) if device.type == "cpu" else CHUNK_ROWS_GPU


def _check_tensors(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, token_weights: Tensor | float | None
) -> None:
    N, V = targets.shape[0] if targets.dim() == 1 else None, weight.shape[0]
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape != (N, weight.shape[1]):
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} "
            f"don't fit (N, C), (V, C) and (N,)"
        )
    if bias is not None and bias.shape != (V,):
        raise ValueError(f"bias {tuple(bias.shape)} doesn't fit weight {tuple(weight.shape)}: it must be ({V},)")
    if isinstance(token_weights, Tensor):
        if token_weights.shape not in ((), (N,)):
            raise ValueError(f"token_weights {tuple(token_weights.shape)} don't fit targets ({N},)")
        if token_weights.requires_grad:
            raise ValueError("token_weights are constants: detach them, or weigh the single losses instead")
