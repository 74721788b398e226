"""How the kernels of attention.py are launched, and what autograd and torch.compile know of them.

Letters: B batch, T queries, S keys, N rows of all sequences, H query heads, G key/value heads, D head dim.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kernels.arguments import AttentionOptions as Options
from kernels.gpu import attention as kernels
from kernels.operators import operator, schema_of
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


# By architecture and largest head dim, for two-byte types. Chosen by compiling (`python bench/machine_code.py`): the
# largest tiles that keep everything in registers when causal, when packed and grouped too, and under dropout;
# "regs" is the range over these and over Triton 3.6 and 3.9. EXCUSES there has what spills all the same. No choice
# was timed on a GPU yet.
LAUNCHES = {
    # Every tile fits the 99 KB of shared memory of sm_86 and sm_89, which use these rows too. Older cards have less:
    # kernels/backend.py sends them to PyTorch.
    ("sm_80", 64): Launches(
        Launch(128, 64, 8, 3),  # 177–248 regs
        Launch(128, 64, 8, 2),  # 236–248 regs; 64 × 64 with 4 warps spills
        Launch(32, 128, 8, 2),  # 215–244 regs
    ),
    ("sm_80", 128): Launches(
        Launch(128, 64, 8, 2),  # 231–255 regs
        Launch(64, 64, 8, 2),  # 176–239 regs
        Launch(32, 64, 8, 2),  # 178–244 regs
    ),
    ("sm_80", 256): Launches(
        Launch(64, 32, 8, 2),  # 205–255 regs
        Launch(64, 32, 8, 1),  # 228–255 regs
        Launch(32, 32, 8, 1),  # 139–190 regs
    ),
    # Every product is an asynchronous wgmma (HGMMA), which wants 64 rows a tile for each 4 warps: queries in the
    # first two kernels, keys in the third. With fewer, both halves of the warps compute the same scores.
    ("sm_90", 64): Launches(
        Launch(128, 128, 8, 3),  # 182–255 regs
        Launch(128, 64, 8, 3),  # 145–176 regs
        Launch(64, 128, 8, 2),  # 236–255 regs
    ),
    ("sm_90", 128): Launches(
        Launch(128, 64, 8, 3),  # 168–255 regs; with 4 warps it spills
        Launch(128, 64, 8, 2),  # 238–255 regs
        Launch(32, 128, 8, 2),  # 223–254 regs; 64 queries spill 7 times under Triton 3.6, 58 times under 3.9
    ),
    ("sm_90", 256): Launches(
        Launch(64, 32, 8, 2),  # 170–249 regs
        Launch(64, 16, 8, 2),  # 196–255 regs; 32 keys spill 70 times under dropout
        Launch(32, 32, 8, 1),  # 143–186 regs; 64 keys, as wgmma wants, spill 38 times even with 16 queries
    ),
    # Products accumulate in tensor memory (tcgen05), of which there are 512 columns.
    ("sm_100", 64): Launches(
        Launch(128, 64, 8, 3),  # 122–255 regs, 256 columns
        Launch(128, 64, 8, 3),  # 128–211 regs, 256 columns
        Launch(64, 128, 8, 2),  # 180–222 regs, 512 columns
    ),
    ("sm_100", 128): Launches(
        Launch(128, 64, 8, 3),  # 178–255 regs, 256 columns; 128 keys spill 82 times
        Launch(128, 64, 8, 2),  # 175–255 regs, 512 columns
        Launch(64, 64, 8, 2),  # 120–152 regs, 256 columns
    ),
    ("sm_100", 256): Launches(
        Launch(64, 32, 8, 2),  # 128–181 regs, 512 columns
        Launch(64, 32, 8, 1),  # 158–237 regs, 512 columns
        Launch(16, 64, 8, 2),  # 126–166 regs, 512 columns; with 32 keys the tensor memory stays unused
    ),
    # sm_80's instructions with 99 KB: the same tiles, but for the forward of 128, where 64 keys spill under dropout.
    ("sm_120", 64): Launches(
        Launch(128, 64, 8, 3),  # 140–204 regs
        Launch(128, 64, 8, 2),  # 180–248 regs
        Launch(32, 128, 8, 2),  # 212–243 regs
    ),
    ("sm_120", 128): Launches(
        Launch(128, 32, 8, 2),  # 190–228 regs
        Launch(64, 64, 8, 2),  # 169–230 regs
        Launch(32, 64, 8, 2),  # 180–251 regs
    ),
    ("sm_120", 256): Launches(
        Launch(64, 32, 8, 2),  # 178–251 regs
        Launch(64, 32, 8, 1),  # 207–255 regs
        Launch(32, 32, 8, 1),  # 144–176 regs
    ),
    # 512 vector registers a thread with 4 warps, 64 KB of shared memory.
    ("gfx942", 64): Launches(
        Launch(128, 64, 4, 2),  # 210–366 regs
        Launch(128, 64, 4, 1),  # 253–385 regs
        Launch(64, 64, 4, 1),  # 255–364 regs
    ),
    ("gfx942", 128): Launches(
        Launch(128, 32, 4, 2),  # 202–336 regs; 64 keys with 8 warps spill
        Launch(64, 64, 4, 1),  # 326–447 regs; 128 queries with 8 warps spill 80 times
        Launch(32, 64, 4, 1),  # 273–296 regs
    ),
    ("gfx942", 256): Launches(
        Launch(64, 32, 4, 1),  # 273–376 regs
        Launch(32, 32, 4, 1),  # 326–380 regs
        Launch(16, 32, 4, 1),  # 236–288 regs
    ),
}
# float32 products run on the ordinary units, because TF32 is too coarse, and alike everywhere: a thread needs whole
# rows of both factors, so the tiles shrink as the head dim grows.
FLOAT32 = {
    64: Launches(Launch(32, 32, 8, 1), Launch(32, 16, 8, 1), Launch(16, 32, 8, 1)),
    128: Launches(Launch(32, 32, 8, 1), Launch(16, 16, 8, 1), Launch(16, 16, 8, 1)),
    256: Launches(Launch(16, 16, 8, 1), Launch(16, 16, 8, 1), Launch(16, 16, 8, 1)),
}
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
    limit = next(limit for limit in (64, 128, 256) if limit >= D)
    return FLOAT32[limit] if dtype == torch.float32 else LAUNCHES[architecture, limit]


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
    _run(kernels.forward_kernel, programs, pointers, (bounds, T, S, N, *options), launch)
    return out, lse


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
    _, by_query, by_key = launches(q.device, q.dtype, D)
    pointers = q, k, v, out, grad, lse, delta, dq, q_bounds, k_bounds  # writes dq and delta
    _run(kernels.backward_q_kernel, triton.cdiv(T, by_query.block_m) * H * B, pointers, options, by_query)
    pointers = q, k, v, grad, lse, delta, dk, dv, q_bounds, k_bounds
    _run(kernels.backward_kv_kernel, triton.cdiv(S, by_key.block_n) * k.shape[-2] * B, pointers, options, by_key)
    return dq, dk, dv


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
    dropout = kernels.Dropout(dropout_threshold(dropout_p), 1 / (1 - dropout_p)) if dropout_p else None
    block = kernels.Block(launch.block_m, launch.block_n, max(16, triton.next_power_of_2(D)))
    return (
        *(_strides(q, bounds), _strides(k, bounds), T, S, H, N),
        *(kernels.Scores(scale, softcap, window), dropout, dropout_seed),
        *(D, H // k.shape[-2], bounds, causal, block),
    )


def _strides(x: Tensor, bounds: str) -> kernels.Strides:
    return kernels.Strides(0 if bounds == "packed" else x.stride(0), x.stride(-3), x.stride(-2))


def _forward_fake(q, *_):
    H, D = q.shape[-2:]
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    return out, q.new_empty(H, q.numel() // (H * D), dtype=torch.float32)


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
