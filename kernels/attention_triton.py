"""How the kernels of attention_kernels.py are launched, and what autograd and torch.compile know of them.

Letters: B batch, T queries, S keys, N rows of all sequences, H query heads, G key/value heads, D head dim.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from kernels import attention_kernels as kernels
from kernels.packing import Packing
from kernels.philox import dropout_threshold

# ---- launch table -------------------------------------------------------------------------------------


class Launch(NamedTuple):
    block_m: int  # queries a tile
    block_n: int  # keys a tile
    warps: int
    stages: int  # depth of the software pipeline


LAUNCHES: dict[tuple[str, str, int], Launch] = {}
INTERPRETER = Launch(32, 16, 4, 1)  # unequal, so that swapped blocks are noticed


def launch_of(kernel: str, device: torch.device, dtype: torch.dtype, D: int) -> Launch:
    return INTERPRETER


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
    launch = launch_of("forward", q.device, q.dtype, D)
    B = _batch(q, q_bounds, bounds)
    kernels.forward_kernel[(triton.cdiv(T, launch.block_m) * H * B,)](
        *(q, k, v, out, lse, q_bounds, k_bounds),
        *_arguments(q, k, bounds, T, S, N, causal, window, scale, softcap, dropout_p, dropout_seed, launch),
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,
    )
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
    options = (bounds, T, S, N, causal, window, scale, softcap, dropout_p, dropout_seed)
    launch = launch_of("backward_q", q.device, q.dtype, D)
    kernels.backward_q_kernel[(triton.cdiv(T, launch.block_m) * H * B,)](
        *(q, k, v, out, grad, lse, delta, dq, q_bounds, k_bounds),
        *_arguments(q, k, *options, launch),
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,
    )
    launch = launch_of("backward_kv", q.device, q.dtype, D)
    kernels.backward_kv_kernel[(triton.cdiv(S, launch.block_n) * k.shape[-2] * B,)](
        *(q, k, v, grad, lse, delta, dk, dv, q_bounds, k_bounds),
        *_arguments(q, k, *options, launch),
        num_warps=launch.warps,
        num_stages=launch.stages,
        enable_fp_fusion=True,
    )
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


def _arguments(
    q, k, bounds, T, S, N, causal, window, scale, softcap, dropout_p, dropout_seed, launch
) -> tuple:
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


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    packing: Packing | None,
    k_packing: Packing | None,
    q_lengths: Tensor | None,
    k_lengths: Tensor | None,
    **options,
) -> Tensor:
    """The arguments of `kernels.attention`, already checked, the options in the order of the operator."""
    if q.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(
            f"the Triton kernels take float16, bfloat16 and float32, not {q.dtype}; use impl='torch'"
        )
    if packing is not None:
        bounds = packing.cu_seqlens, k_packing.cu_seqlens, "packed", packing.max_len, k_packing.max_len
    elif q_lengths is not None or k_lengths is not None:
        full = [x.new_full(x.shape[:1], x.shape[1], dtype=torch.int32) for x in (q, k)]
        lengths = [
            f if given is None else given for f, given in zip(full, (q_lengths, k_lengths), strict=True)
        ]
        bounds = *lengths, "lengths", q.shape[1], k.shape[1]
    else:
        bounds = None, None, "", q.shape[1], k.shape[1]
    return attention_forward(q, k, v, *bounds, *options.values())[0]
