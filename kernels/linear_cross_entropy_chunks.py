"""The passes of linear cross-entropy over chunks of rows; what they compute stands in linear_cross_entropy.py.

Letters: N rows (tokens), n rows of a chunk, C width, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.arguments import CrossEntropyOptions as Options
from kernels.cross_entropy import rows_module

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
        return self._replace(hidden=put(self.hidden, rows, N))

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
    for start in range(0, total.shape[0], 16384):  # or the share of a chunk is a second weight gradient
        part = slice(start, start + 16384)
        total[part] += torch.mm(a[part], b, **unrounded)


class Kept(NamedTuple):
    """What the forward pass of a single chunk leaves to the backward pass; empty if there are more."""

    buffer: Tensor  # (N, ≥ V) as `forward_chunk` leaves it
    norm: Tensor  # (2, N), see Rows


# ---- passes over the chunks ----------------------------------------------------------------------


def run(
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
    buffer = kept.buffer[:N] if keep else room(min(N, chunk_rows), V, hidden, triton)
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


def finish(
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
    """The wanted gradients from what `run` kept."""
    N, V = hidden.shape[0], weight.shape[0]
    weight = weight.to(hidden.dtype)
    grads = Grads.zeros(hidden, weight, bias, wanted)
    d = rows_module(triton).backward_chunk(kept.buffer[:N], targets, kept.norm[:, :N], g, options, V)
    grads.add(slice(0, N), d.to(hidden.dtype)[:, :V], hidden, weight)
    return grads


def counted(targets: Tensor, ignore_index: int, triton: bool) -> Tensor | None:
    """The rows whose target counts, or None for all: a prompt costs nothing. (On a GPU, finding them would cost a
    wait for the device; the Triton kernels write zeros there instead.)"""
    if triton:
        return None
    counted = (targets != ignore_index).nonzero().squeeze(-1)
    return None if len(counted) == len(targets) else counted


def take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def put(x: Tensor, rows: Tensor | None, N: int) -> Tensor:
    """The reverse of `take`: zeros in the other rows of N."""
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


def room(rows: int, V: int, like: Tensor, triton: bool) -> Tensor:
    """Room for a chunk of logits. Long rows each start at a multiple of 64 bytes: at V = 50,257, where they
    would not, MKL forms the logits at 0.6 times the rate."""
    width = V if V < 4096 else -(-V // 32) * 32
    return like.new_empty(rows, width, dtype=rows_module(triton).buffer_dtype(like.dtype))


def default_chunk_rows(V: int, device: torch.device) -> int:
    return max(1, CHUNK_BYTES_CPU // (4 * V)) if device.type == "cpu" else CHUNK_ROWS_GPU
