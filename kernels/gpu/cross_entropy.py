"""Cross-entropy of rows of logits in Triton: one program a row forward, one program a tile backward.

The same four functions as in cpu/cross_entropy.py; the formula stands in cross_entropy.py.

Letters: N rows, V vocabulary; s = logits / τ, p = softmax(s), y the target, g the gradient of the loss.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.arguments import CrossEntropyOptions as Options
from kernels.arguments import Rows


class Loss(NamedTuple):
    """The numbers of the options, as the kernels take them: one argument."""

    ignore_index: int
    inv_temperature: float  # 1/τ
    smoothing: float
    z_loss: float


# ---- forward -------------------------------------------------------------------------------------


@triton.jit
def _load_scaled(row_ptr, cols, V, inv_temperature):
    """s at `cols` in float32, −inf beyond the vocabulary."""
    return tl.load(row_ptr + cols, mask=cols < V, other=-float("inf")).to(tl.float32) * inv_temperature


@triton.jit
def _online(top, total, moment, spread, s, cols, V, label, SMOOTH: tl.constexpr):
    """Take a block of s into top = max s, total = Σ e^(s − top), moment = Σ e^(s − top) (s − top), and, for the mean
    that label smoothing wants, spread = Σ (s − s_y)."""
    new_top = tl.maximum(top, tl.max(s, 0))
    shift = tl.where(new_top == -float("inf"), 0.0, new_top)  # nothing but −inf so far: no −inf − −inf
    rescale = tl.exp(top - shift)
    e = tl.exp(s - shift)
    moment = rescale * (moment + tl.where(rescale > 0.0, (top - shift) * total, 0.0))
    moment += tl.sum(tl.where(e > 0.0, e * (s - shift), 0.0), 0)
    if SMOOTH:
        spread += tl.sum(tl.where(cols < V, s - label, 0.0), 0)
    return new_top, rescale * total + tl.sum(e, 0), moment, spread


@triton.jit
def _store_grad(grad_ptr, s, cols, g, target, top, logz, V, loss):
    """g · ∂loss/∂s. The label comes off in float32: a rounded p near 1 would leave nothing."""
    p = tl.exp((s - top) - logz)
    d = (1.0 + 2.0 * loss.z_loss * (top + logz)) * p - loss.smoothing / V
    d = g * tl.where(cols == target, d - (1.0 - loss.smoothing), d)
    tl.store(grad_ptr + cols, d.to(grad_ptr.dtype.element_ty), mask=cols < V)


@triton.jit
def _store_zeros(loss_ptr, stats_ptr, norm_ptr, grad_ptr, row, N, V, BLOCK: tl.constexpr):
    """All that is known of a row that is ignored."""
    tl.store(loss_ptr + row, 0.0)
    for k in tl.static_range(2):
        tl.store(norm_ptr + k * N + row, 0.0)
    if stats_ptr is not None:
        for k in tl.static_range(3):
            tl.store(stats_ptr + k * N + row, 0.0)
    if grad_ptr is not None:
        for start in range(0, V, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            tl.store(grad_ptr + cols, tl.zeros((BLOCK,), grad_ptr.dtype.element_ty), mask=cols < V)


@triton.jit(do_not_specialize=["N"])
def forward_kernel(
    logits_ptr, targets_ptr, g_ptr,           # (N, V), (N,), (N,) or None for 1
    loss_ptr, stats_ptr, norm_ptr, grad_ptr,  # (N,), (3, N) or None, (2, N), (N, V) or None
    logits_stride, grad_stride, N, V, loss,
    SMOOTH: tl.constexpr, IN_REGISTERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row a program. A row of at most BLOCK logits is read once and stays in registers; a longer one is read
    block by block with an online softmax, and for the gradient again. That comes from memory: at V = 131,072 the
    528 rows of 16-bit logits that an H100 works on take 138 MB, its L2 cache holds 50."""
    row = tl.program_id(0).to(tl.int64)  # 64 bits: rows · V passes 2³¹ at 16k tokens and 131k words
    logits_ptr += row * logits_stride
    if grad_ptr is not None:
        grad_ptr += row * grad_stride
    cols = tl.arange(0, BLOCK)
    target = tl.load(targets_ptr + row)
    if target == loss.ignore_index:
        _store_zeros(loss_ptr, stats_ptr, norm_ptr, grad_ptr, row, N, V, BLOCK)
        return

    # A target outside the vocabulary is an error raised by the caller; here it reads nothing and gives NaN.
    known = (target >= 0) & (target < V)
    label = tl.load(logits_ptr + target, mask=known, other=float("nan")).to(tl.float32) * loss.inv_temperature

    top, total, moment, spread = -float("inf"), 0.0, 0.0, 0.0
    if IN_REGISTERS:
        s = _load_scaled(logits_ptr, cols, V, loss.inv_temperature)
        top, total, moment, spread = _online(top, total, moment, spread, s, cols, V, label, SMOOTH)
    else:
        for start in range(0, V, BLOCK):
            s = _load_scaled(logits_ptr, start + cols, V, loss.inv_temperature)
            top, total, moment, spread = _online(top, total, moment, spread, s, start + cols, V, label, SMOOTH)

    logz = tl.log(total)
    lse = top + logz
    logprob = (label - top) - logz  # small numbers first: ±1e4 − lse would cost all digits
    tl.store(loss_ptr + row, loss.z_loss * lse * lse - logprob - loss.smoothing * (spread / V))
    tl.store(norm_ptr + row, top)
    tl.store(norm_ptr + N + row, logz)
    if stats_ptr is not None:
        tl.store(stats_ptr + row, logprob)
        tl.store(stats_ptr + N + row, lse)
        tl.store(stats_ptr + 2 * N + row, logz - moment / total)

    if grad_ptr is not None:
        g = loss.inv_temperature
        if g_ptr is not None:
            g *= tl.load(g_ptr + row).to(tl.float32)
        if IN_REGISTERS:
            _store_grad(grad_ptr, s, cols, g, target, top, logz, V, loss)
        else:
            for start in range(0, V, BLOCK):
                s = _load_scaled(logits_ptr, start + cols, V, loss.inv_temperature)
                _store_grad(grad_ptr, s, start + cols, g, target, top, logz, V, loss)


# ---- backward ------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["N"])
def backward_kernel(
    logits_ptr, targets_ptr, norm_ptr, g_ptr, grad_ptr,  # (N, V), (N,), (2, N), (N,), (N, V)
    logits_stride, grad_stride, g_stride, N, V, loss,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of BLOCK columns a program: nothing is summed, so tiles need not know each other."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits_ptr += row * logits_stride
    grad_ptr += row * grad_stride
    target = tl.load(targets_ptr + row)
    if target == loss.ignore_index:
        tl.store(grad_ptr + cols, tl.zeros((BLOCK,), grad_ptr.dtype.element_ty), mask=cols < V)
        return
    g = loss.inv_temperature * tl.load(g_ptr + row * g_stride).to(tl.float32)
    top = tl.load(norm_ptr + row)
    logz = tl.load(norm_ptr + N + row)
    s = _load_scaled(logits_ptr, cols, V, loss.inv_temperature)
    _store_grad(grad_ptr, s, cols, g, target, top, logz, V, loss)


# ---- launches ------------------------------------------------------------------------------------

# Chosen by compiling (`python bench/machine_code.py`), not by timing: no GPU was at hand. A row of 32,768 logits in
# registers spills, with 8, 16 and 32 warps.
MAX_IN_REGISTERS = 16384
LOOP_BLOCK, LOOP_WARPS = 4096, 8  # 16 logits a thread, 32 to 64 registers: enough blocks on a processor to hide waits
TILE_BLOCK, TILE_WARPS = 4096, 8  # the same; nothing is summed here


def launch_shape(V: int) -> tuple[bool, int, int]:
    """(IN_REGISTERS, BLOCK, num_warps) of the forward kernel for a vocabulary of V words."""
    block = triton.next_power_of_2(V)
    if block > MAX_IN_REGISTERS:
        return False, LOOP_BLOCK, LOOP_WARPS
    return True, block, min(16, max(1, block // 1024))


def tile_shape(V: int) -> tuple[int, int]:
    """(BLOCK, num_warps) of the backward kernel."""
    block = min(TILE_BLOCK, triton.next_power_of_2(V))
    return block, max(1, TILE_WARPS * block // TILE_BLOCK)


def _numbers(options: Options) -> Loss:
    return Loss(options.ignore_index, 1.0 / options.temperature, options.label_smoothing, options.z_loss)


def _launch_forward(
    logits: Tensor, targets: Tensor, options: Options, V: int, stats: bool, g: Tensor | None, grad: Tensor | None
) -> Rows:
    """`grad` (N, ≥ V) takes the gradient and may be the logits themselves."""
    N = logits.shape[0]
    loss = torch.empty(N, dtype=torch.float32, device=logits.device)
    norm = torch.empty(2, N, dtype=torch.float32, device=logits.device)
    values = torch.empty(3, N, dtype=torch.float32, device=logits.device) if stats else None
    in_registers, block, warps = launch_shape(V)
    if N:
        with torch.cuda.device_of(logits):
            forward_kernel[(N,)](
                logits, targets, g, loss, values, norm, grad,
                logits.stride(0), 0 if grad is None else grad.stride(0), N, V, _numbers(options),
                SMOOTH=options.label_smoothing > 0.0, IN_REGISTERS=in_registers, BLOCK=block, num_warps=warps,
            )  # fmt: skip
    return Rows(loss, values, norm)


# ---- all rows, from logits that stay as they are ---------------------------------------------------


def forward(logits: Tensor, targets: Tensor, options: Options, *, stats: bool) -> Rows:
    """logits (N, V) in float32, bfloat16 or float16; targets (N,) may be ignored ones."""
    return _launch_forward(_rows(logits), targets, options, logits.shape[1], stats, None, None)


def backward(logits: Tensor, targets: Tensor, norm: Tensor, g: Tensor, options: Options) -> Tensor:
    """∂(Σ g · loss)/∂logits (N, V) in the dtype of the logits."""
    return backward_chunk(_rows(logits), targets, norm, g, options, logits.shape[1])


def _rows(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 else logits.contiguous()


# ---- a chunk of rows in a buffer that is lent ------------------------------------------------------


def buffer_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype `forward_chunk` wants logits that were computed in `dtype`: the kernel widens them itself."""
    return dtype


def forward_chunk(
    buffer: Tensor,
    targets: Tensor,
    options: Options,
    V: int,
    *,
    stats: bool = False,
    grad: bool = False,
    g: Tensor | None = None,
) -> Rows:
    """Logits in; with `grad`, ∂(Σ g · loss)/∂logits out, for g (N,) or 1. buffer (N, ≥ V)."""
    return _launch_forward(buffer, targets, options, V, stats, g, buffer if grad else None)


def backward_chunk(logits: Tensor, targets: Tensor, norm: Tensor, g: Tensor, options: Options, V: int) -> Tensor:
    """∂(Σ g · loss)/∂logits, as wide as the logits, which stay as they are; columns from V on are left undefined."""
    N = logits.shape[0]
    grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    block, warps = tile_shape(V)
    if N:
        with torch.cuda.device_of(logits):
            backward_kernel[(N, triton.cdiv(V, block))](
                logits, targets, norm, g, grad,
                logits.stride(0), grad.stride(0), g.stride(0), N, V, _numbers(options),
                BLOCK=block, num_warps=warps,
            )  # fmt: skip
    return grad
