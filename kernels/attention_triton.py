"""How the kernels of attention_kernels.py are launched, and what autograd and torch.compile know of them.

Letters: B batch, T queries, S keys, N rows of all sequences, H query heads, G key/value heads, D head dim.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels import attention_kernels as kernels
from kernels.attention_blocks import Options
from kernels.packing import Layout
from kernels.philox import dropout_threshold

# ---- launch table -------------------------------------------------------------------------------------


class Launch(NamedTuple):
    block_m: int  # queries a tile
    block_n: int  # keys a tile
    warps: int
    stages: int  # depth of the software pipeline


class Launches(NamedTuple):
    forward: Launch
    backward_q: Launch
    backward_kv: Launch


# By architecture and largest head dim, for two-byte types. Chosen by compiling (`python -m kernels.inspect`), under
# Triton 3.6 and 3.9: the largest tiles that keep everything in registers when causal, packed and grouped, and
# under dropout, except where inspect.EXCUSES says otherwise. No choice was timed on a GPU yet.
LAUNCHES = {
    # Every tile fits the 99 KB of shared memory of sm_86 and sm_89, which use these rows too.
    ("sm_80", 64): Launches(
        Launch(128, 64, 8, 3),
        Launch(128, 64, 8, 2),  # 64 × 64 with 4 warps spills
        Launch(32, 128, 8, 2),
    ),
    ("sm_80", 128): Launches(
        Launch(128, 64, 8, 2),
        Launch(64, 64, 8, 2),
        Launch(32, 64, 8, 2),
    ),
    ("sm_80", 256): Launches(Launch(64, 32, 8, 2), Launch(64, 32, 8, 1), Launch(32, 32, 8, 1)),
    # Every product is an asynchronous wgmma (HGMMA), which wants 64 rows a tile and 4 warps for each 64.
    ("sm_90", 64): Launches(
        Launch(128, 128, 8, 3),
        Launch(128, 64, 8, 3),
        Launch(64, 128, 8, 2),  # 64 keys for each 4 warps: with 64 × 64 both halves compute the same scores
    ),
    ("sm_90", 128): Launches(
        Launch(128, 64, 8, 3),  # with 4 warps it spills
        Launch(128, 64, 8, 2),
        Launch(32, 128, 8, 2),  # the same; 64 × 128 spills 7 times under Triton 3.6, 58 times under 3.9
    ),
    ("sm_90", 256): Launches(Launch(64, 32, 8, 2), Launch(64, 16, 8, 2), Launch(32, 32, 8, 1)),
    # Products accumulate in tensor memory (tcgen05), of which there are 512 columns.
    ("sm_100", 64): Launches(
        Launch(128, 64, 8, 3),  # 256 columns; 128 × 128 spills
        Launch(128, 64, 8, 3),  # 256 columns
        Launch(64, 128, 8, 2),  # 512 columns
    ),
    ("sm_100", 128): Launches(
        Launch(128, 64, 8, 3),  # 256 columns; 128 × 128 spills 82 times
        Launch(128, 64, 8, 2),  # 512 columns
        Launch(64, 64, 8, 2),  # 256 columns
    ),
    ("sm_100", 256): Launches(Launch(64, 32, 8, 2), Launch(64, 32, 8, 1), Launch(16, 64, 8, 2)),
    # sm_80's instructions in 99 KB; its tiles for 128 spill here.
    ("sm_120", 64): Launches(Launch(128, 64, 8, 3), Launch(128, 64, 8, 2), Launch(32, 128, 8, 2)),
    ("sm_120", 128): Launches(Launch(128, 32, 8, 2), Launch(64, 64, 8, 2), Launch(32, 64, 8, 2)),
    ("sm_120", 256): Launches(Launch(64, 32, 8, 2), Launch(64, 32, 8, 1), Launch(32, 32, 8, 1)),
    # 512 vector registers a thread with 4 warps, 64 KB of shared memory.
    ("gfx942", 64): Launches(
        Launch(128, 64, 4, 2),
        Launch(128, 64, 4, 1),
        Launch(64, 64, 4, 1),
    ),
    ("gfx942", 128): Launches(
        Launch(128, 32, 4, 2),  # 128 × 64 with 8 warps spills
        Launch(64, 64, 4, 1),  # 128 × 64 with 8 warps spills 80 times
        Launch(32, 64, 4, 1),
    ),
    ("gfx942", 256): Launches(Launch(64, 32, 4, 1), Launch(32, 32, 4, 1), Launch(16, 32, 4, 1)),
}
# float32 products run on the ordinary units, because TF32 is too coarse. Dims to 64 fit; larger ones spill.
FLOAT32 = Launches(Launch(32, 32, 8, 1), Launch(32, 16, 8, 1), Launch(16, 32, 8, 1))
INTERPRETER = Launches(*[Launch(32, 16, 4, 1)] * 3)  # sides that differ, so that the tests notice a mix-up


def architecture(device: torch.device) -> str:
    """The row of the table for a GPU."""
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100", 11: "sm_100", 12: "sm_120"}.get(major, "sm_80")


@cache
def launches(device: torch.device, dtype: torch.dtype, D: int) -> Launches:
    if device.type == "cpu":
        return INTERPRETER
    return choose(architecture(device), dtype, D)


def choose(architecture: str, dtype: torch.dtype, D: int) -> Launches:
    if dtype == torch.float32:
        return FLOAT32
    return LAUNCHES[architecture, next(limit for limit in (64, 128, 256) if limit >= D)]


# ---- operators ----------------------------------------------------------------------------------------


@torch.library.custom_op("minillm::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_bounds: Tensor | None,
    k_bounds: Tensor | None,
    bounds: str,
    T: int,
    S: int,
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    dropout_seed: int,
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
    options = bounds, T, S, N, causal, window, scale, softcap, dropout_p, dropout_seed
    _run(kernels.forward_kernel, programs, pointers, options, launch)
    return out, lse


@attention_forward.register_fake
def _(q, k, v, *_):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), q.new_empty(
        q.shape[-2], q.numel() // (q.shape[-1] * q.shape[-2]), dtype=torch.float32
    )


@torch.library.custom_op("minillm::attention_backward", mutates_args=())
def attention_backward(
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
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    dropout_seed: int,
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
    options = bounds, T, S, N, causal, window, scale, softcap, dropout_p, dropout_seed
    _, by_query, by_key = launches(q.device, q.dtype, D)
    pointers = q, k, v, out, grad, lse, delta, dq, q_bounds, k_bounds  # writes dq and delta
    _run(kernels.backward_q_kernel, triton.cdiv(T, by_query.block_m) * H * B, pointers, options, by_query)
    pointers = q, k, v, grad, lse, delta, dk, dv, q_bounds, k_bounds
    _run(kernels.backward_kv_kernel, triton.cdiv(S, by_key.block_n) * k.shape[-2] * B, pointers, options, by_key)
    return dq, dk, dv


@attention_backward.register_fake
def _(grad, q, k, v, *_):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _readable(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The kernels take any strides, but unbroken heads, and k and v alike, as views of one projection are."""
    q = q if q.stride(-1) == 1 else q.contiguous()
    if k.stride(-1) != 1 or k.stride() != v.stride():
        k, v = k.contiguous(), v.contiguous()
    return q, k, v


def _batch(q: Tensor, q_bounds: Tensor | None, bounds: str) -> int:
    return q_bounds.numel() - 1 if bounds == "packed" else q.shape[0]


def _run(kernel, programs: int, pointers: tuple, options: tuple, launch: Launch) -> None:
    """Launch on the device of the tensors, which need not be the current one."""
    with torch.cuda.device_of(pointers[0]):
        kernel[(programs,)](
            *pointers,
            *_arguments(*pointers[:2], *options, launch),
            num_warps=launch.warps,
            num_stages=launch.stages,
            enable_fp_fusion=True,  # its default is about to change, and the launch table was made with it
        )


def _arguments(q, k, bounds, T, S, N, causal, window, scale, softcap, dropout_p, dropout_seed, launch) -> tuple:
    """What all three kernels take behind their pointers, in their order."""
    H, D = q.shape[-2:]
    threshold = dropout_threshold(dropout_p)
    return (
        *(0 if bounds == "packed" else q.stride(0), q.stride(-3), q.stride(-2)),
        *(0 if bounds == "packed" else k.stride(0), k.stride(-3), k.stride(-2)),
        *(T, S, H, N),
        *(scale, softcap or 1.0, window or 0, dropout_seed, threshold, 1 / (1 - dropout_p)),
        *(H // k.shape[-2], D, max(16, triton.next_power_of_2(D)), launch.block_m, launch.block_n),
        *(bounds, causal, window is not None, softcap is not None, dropout_p > 0.0),
    )


# ---- autograd -----------------------------------------------------------------------------------------


def _setup(ctx, inputs, output) -> None:
    q, k, v, q_bounds, k_bounds, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, q_bounds, k_bounds)


def _backward(ctx, grad: Tensor, _grad_lse):
    grads = attention_backward(grad, *ctx.saved_tensors, *ctx.options)
    return *grads, *(None,) * (2 + len(ctx.options))


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("attention has no second derivative in Triton; use impl='eager' for that")


attention_forward.register_autograd(_backward, setup_context=_setup)
attention_backward.register_autograd(_no_second_derivative)


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
    return attention_forward(q, k, v, *bounds, *options)[0]


def _or_full(lengths: Tensor | None, x: Tensor) -> Tensor:
    return x.new_full(x.shape[:1], x.shape[1], dtype=torch.int32) if lengths is None else lengths
