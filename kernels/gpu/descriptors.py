"""The forward of attention.py for cards whose copy engine moves whole tiles (TMA: sm_90 and later).

A descriptor says once where the rows of a sequence lie. A single thread then asks for a tile, which arrives in shared
memory while the others multiply: no thread computes addresses or masks, which take registers from the sums, and what
lies behind the sequence arrives as zeros, or is not written. Descriptors are made in the kernel, as where a packed
sequence begins is known on the device only. The sums are those of the plain kernel, in its order: the same bits.
Compiled for sm_90 by Triton 3.9 with the same tiles, it takes 152 to 158 registers where that takes 168 to 199. It was
not timed yet: a launch that says `descriptors` uses it, no shipped one does, and the sweep of bench/gpu.py tries it.

What the engine asks for, 16-byte steps from row to row, is looked at by `fits`. Under dropout the plain kernel runs:
here random numbers beside the sums spill. But for the choice in attention_launch.py, nothing needs this file.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.attention import (
    INF,
    NEG_INF,
    VARYING,
    dot,
    exponentials,
    find_sequence,
    hide,
    score,
)
from kernels.gpu.attention_walk import walk_keys

STEP = 16  # bytes


def fits(*tensors: Tensor) -> bool:
    """Whether all rows begin at multiples of what the engine counts in."""
    return all(
        x.data_ptr() % STEP == 0 and all(s * x.element_size() % STEP == 0 for s in x.stride()[:-1]) for x in tensors
    )


def give_room(device: torch.device) -> None:
    """For descriptors, which a kernel writes into the card's memory. Said before each launch, as it holds for a thread
    alone."""
    triton.set_allocator(lambda size, _alignment, _stream: torch.empty(size, dtype=torch.int8, device=device))


@triton.jit
def rows_of(ptr, count, stride, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """A descriptor of `count` rows of D numbers, in tiles; an empty one is not allowed, and never read."""
    return tl.make_tensor_descriptor(ptr, [tl.maximum(count, 1), D], [stride, 1], [ROWS, BLOCK_D])


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, q_bounds, k_bounds,  # as in attention.py, but no dropout
    q_strides, k_strides, T, S, H, N, scores, dropout, seed: tl.int64,
    D: tl.constexpr, GROUP: tl.constexpr, BOUNDS: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T, BLOCK.M)
    i0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK.M
    h, b = tl.program_id(0) // blocks % H, tl.program_id(0) // blocks // H
    q_start, n, q_offset = find_sequence(q_bounds, b, T, q_strides, BOUNDS)
    _k_start, m, k_offset = find_sequence(k_bounds, b, S, k_strides, BOUNDS)
    if BOUNDS == "packed":
        T = n
        if i0 >= n:
            return
    k_offset += (h // GROUP).to(tl.int64) * k_strides.h
    queries = rows_of(q_ptr + q_offset + h.to(tl.int64) * q_strides.h, n, q_strides.t, BLOCK.M, D, BLOCK.D)
    keys = rows_of(k_ptr + k_offset, m, k_strides.t, BLOCK.N, D, BLOCK.D)
    values = rows_of(v_ptr + k_offset, m, k_strides.t, BLOCK.N, D, BLOCK.D)
    outputs = rows_of(o_ptr + (q_start * H + h) * D, T, H * D, BLOCK.M, D, BLOCK.D)

    query = i0 + tl.arange(0, BLOCK.M)
    q = queries.load([i0, 0])
    top = tl.full((BLOCK.M,), NEG_INF, tl.float32)
    total = tl.full((BLOCK.M,), 0.0, tl.float32)
    acc = tl.full((BLOCK.M, BLOCK.D), 0.0, tl.float32)
    edges = walk_keys(i0, m - n, tl.where(i0 < n, m, 0), scores.window, CAUSAL, BLOCK)
    for PART in tl.static_range(1 if scores.window is None else 0, 3):
        for j0 in range(edges[PART], edges[PART + 1], BLOCK.N):
            key = j0 + tl.arange(0, BLOCK.N)
            s = score(dot(q, keys.load([j0, 0]).T), scores)[0]
            if PART != 1:
                s = hide(s, query[:, None] + (m - n), key[None, :], m, scores.window, CAUSAL)
            p, rescale, top = exponentials(s, top)
            total = total * rescale + tl.sum(p, 1)
            v = values.load([j0, 0])
            acc = acc * rescale[:, None] + dot(p.to(v.dtype), v)

    seen = (total != 0) & (query < n)
    out = tl.where(seen[:, None], acc / tl.where(seen, total, 1.0)[:, None], 0.0)
    outputs.store([i0, 0], out.to(o_ptr.dtype.element_ty))
    lse = tl.where(seen, top + tl.log2(tl.where(seen, total, 1.0)), INF)
    tl.store(lse_ptr + h.to(tl.int64) * N + q_start + query, lse, mask=query < T)
