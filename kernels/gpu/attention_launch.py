"""How the kernels of attention.py are launched, and what autograd and torch.compile know of them.

Letters: B batch, T queries, S keys, N rows of all sequences, H query heads, G key/value heads, D head dim.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from kernels.arguments import AttentionOptions as Options
from kernels.gpu import attention as kernels
from kernels.gpu import decode, descriptors
from kernels.gpu.launch_table import Launch, launches, processors
from kernels.operators import operator, schema_of
from kernels.packing import Layout
from kernels.philox import dropout_threshold

FEW = 16  # so many queries are a step of generation: decode.py

# ---- operators ----------------------------------------------------------------------------------------


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_bounds: Tensor | None,
    k_bounds: Tensor | None,
    bounds: str,
    T: int,
    S: int,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    """Output, contiguous, and log-sum-exp (H, N) in base 2.

    `bounds` says what q_bounds and k_bounds are: "" nothing, "lengths" (B,) of padded sequences, "packed"
    (B+1,) cu_seqlens. T and S are the longest query and key length.
    """
    H, D = q.shape[-2:]
    N = q.numel() // (H * D)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(H, N, dtype=torch.float32, device=q.device)
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_(), lse.fill_(float("inf"))
    q, k, v = _readable(q, k, v)
    launch = launches(q.device, q.dtype, D).forward
    programs = triton.cdiv(T, launch.block_m) * H * _batch(q, q_bounds, bounds)
    pointers = q, k, v, out, lse, q_bounds, k_bounds
    is_described = launch.descriptors and not Options(*options).dropout_p and descriptors.fits(q, k, v, out)
    if is_described:
        descriptors.give_room(q.device)
    kernel = (descriptors if is_described else kernels).forward_kernel
    _run(kernel, (programs,), pointers, (bounds, T, S, N, *options), launch)
    return out, lse


def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_bounds: Tensor | None,
    k_bounds: Tensor | None,
    bounds: str,
    T: int,
    S: int,
    *options: Any,
) -> Tensor:
    """The output of `_forward`, for few queries, and nothing that a gradient could be made of."""
    (H, D), G = q.shape[-2:], k.shape[-2]
    N = q.numel() // (H * D)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.numel() == 0 or k.numel() == 0:
        return out.zero_()
    q, k, v = _readable(q, k, v)
    rows = T * (H // G)
    launch = decode.narrowed(launches(q.device, q.dtype, D).decode, rows)
    programs = triton.cdiv(rows, launch.block_m) * G * _batch(q, q_bounds, bounds)
    _, window, *_ = options
    seen = S if window is None else min(S, T + 2 * window)
    shares = decode.count_shares(programs, seen // decode.FEWEST_KEYS, processors(q.device))
    parts = out if shares == 1 else torch.empty(shares, N, H, D, dtype=torch.float32, device=q.device)
    sums = None if shares == 1 else torch.empty(shares, N, H, 2, dtype=torch.float32, device=q.device)
    pointers = q, k, v, parts, sums, q_bounds, k_bounds
    _run(decode.split_kernel, (programs, shares), pointers, (bounds, T, S, N, *options), launch)
    if shares > 1:
        with torch.cuda.device_of(q):
            decode.merge_kernel[(N * H,)](
                parts, sums, out, N * H, shares, D=D, BLOCK_D=_width(D), num_warps=decode.MERGE_WARPS
            )  # fmt: skip
    return out


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    q_bounds: Tensor | None,
    k_bounds: Tensor | None,
    bounds: str,
    T: int,
    S: int,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous."""
    H, D = q.shape[-2:]
    N = q.numel() // (H * D)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    if q.numel() == 0 or k.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_()
    q, k, v = _readable(q, k, v)
    grad = grad.contiguous()
    delta = torch.empty_like(lse)
    B = _batch(q, q_bounds, bounds)
    options = bounds, T, S, N, *options
    _, by_query, by_key, _ = launches(q.device, q.dtype, D)
    pointers = q, k, v, out, grad, lse, delta, dq, q_bounds, k_bounds  # writes dq and delta
    _run(kernels.backward_q_kernel, (triton.cdiv(T, by_query.block_m) * H * B,), pointers, options, by_query)
    pointers = q, k, v, grad, lse, delta, dk, dv, q_bounds, k_bounds
    _run(kernels.backward_kv_kernel, (triton.cdiv(S, by_key.block_n) * k.shape[-2] * B,), pointers, options, by_key)
    return dq, dk, dv


def _readable(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels take any strides, but unbroken heads, and k and v alike, as views of one projection are."""
    q = q if q.stride(-1) == 1 else q.contiguous()
    if k.stride(-1) != 1 or k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    return q, k, v


def _batch(q: Tensor, q_bounds: Tensor | None, bounds: str) -> int:
    return q_bounds.numel() - 1 if bounds == "packed" else q.shape[0]


def _run(kernel, grid: tuple[int, ...], pointers: tuple, options: tuple, launch: Launch) -> None:
    """Launch on the device of the tensors, which need not be the current one."""
    with torch.cuda.device_of(pointers[0]):
        kernel[grid](
            *pointers,
            *_arguments(*pointers[:2], *options, launch),
            num_warps=launch.warps,
            num_stages=launch.stages,
            enable_fp_fusion=True,  # its default is about to change, and the launch table was made with it
        )


def _arguments(q, k, bounds, T, S, N, causal, window, scale, softcap, dropout_p, dropout_seed, launch) -> tuple:
    """What all these kernels take behind their pointers, in their order."""
    H, D = q.shape[-2:]
    dropout = kernels.Dropout(dropout_threshold(dropout_p), 1 / (1 - dropout_p)) if dropout_p else None
    block = kernels.Block(launch.block_m, launch.block_n, _width(D))
    return (
        *(_strides(q, bounds), _strides(k, bounds), T, S, H, N),
        *(kernels.Scores(scale, softcap, window), dropout, dropout_seed),
        *(D, H // k.shape[-2], bounds, causal, block),
    )


def _width(D: int) -> int:
    """Columns of a tile: those of a product, a power of 2."""
    return max(16, triton.next_power_of_2(D))


def _strides(x: Tensor, bounds: str) -> kernels.Strides:
    return kernels.Strides(0 if bounds == "packed" else x.stride(0), x.stride(-3), x.stride(-2))


def _forward_fake(q, *_):
    H, D = q.shape[-2:]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, q.new_empty(H, q.numel() // (H * D), dtype=torch.float32)


def _decode_fake(q, *_):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _backward_fake(grad, q, k, v, *_):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    q, k, v, q_bounds, k_bounds, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, q_bounds, k_bounds)


def _gradient(ctx, grad: Tensor, _grad_lse) -> tuple:
    return *attention_backward(grad, *ctx.saved_tensors, *ctx.options), *[None] * (2 + len(ctx.options))


_BOUNDS = f"Tensor? q_bounds, Tensor? k_bounds, str bounds, SymInt T, SymInt S, {schema_of(Options)}"
attention_backward = operator(
    f"attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_BOUNDS}) "
    "-> (Tensor, Tensor, Tensor)",
    _backward,
    fake=_backward_fake,
)
attention_forward = operator(
    f"attention_forward(Tensor q, Tensor k, Tensor v, {_BOUNDS}) -> (Tensor, Tensor)",
    _forward,
    fake=_forward_fake,
    setup=_setup,
    gradient=_gradient,
)
attention_decode = operator(
    f"attention_decode(Tensor q, Tensor k, Tensor v, {_BOUNDS}) -> Tensor", _decode, fake=_decode_fake
)


# ---- public -------------------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    """The arguments of `kernels.attention`, already checked."""
    packing, k_packing, q_lengths, k_lengths = layout
    if packing is not None:
        bounds = packing.cu_seqlens, k_packing.cu_seqlens, "packed", packing.max_len, k_packing.max_len
    elif q_lengths is not None or k_lengths is not None:
        bounds = _or_full(q_lengths, q), _or_full(k_lengths, k), "lengths", q.shape[1], k.shape[1]
    else:
        bounds = None, None, "", q.shape[1], k.shape[1]
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if not trains and bounds[3] <= FEW:
        return attention_decode(q, k, v, *bounds, *options)
    return attention_forward(q, k, v, *bounds, *options)[0]


def _or_full(lengths: Tensor | None, x: Tensor) -> Tensor:
    return x.new_full(x.shape[:1], x.shape[1], dtype=torch.int32) if lengths is None else lengths
