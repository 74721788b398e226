"""Attention of few queries over many keys, a step of generation, on a GPU, in Triton: exact, deterministic.

The formula of attention.py, forward alone. Read there first: what differs is how the work is cut up. A step has so few
queries that nearly all its time goes into reading the keys and values, which a whole card must share.

Split. The queries of all heads that share a key/value head are the rows of one tile, so that keys are read once for
all of them. The keys are cut into shares, each walked by a program of its own (Flash-Decoding, Dao et al. 2023). For
share c of the keys of a row:

    top_c = max_j s_j       total_c = Σ_j exp(s_j − top_c)       part_c = Σ_j exp(s_j − top_c) z_j v_j

Merge. A program a row adds them up, in the order of the shares:

    o = Σ_c exp(top_c − top) part_c / Σ_c exp(top_c − top) total_c              top = max_c top_c

Where one share is all, it is divided by its total at once, and nothing is merged.

Letters: B batch, T queries, S keys, N rows of all sequences, H query heads, G key/value heads, D head dim, C shares;
n and m number of a sequence's queries and keys.
"""

import math
from functools import cache

import triton
import triton.language as tl

from kernels.gpu.attention import (
    NEG_INF,
    VARYING,
    dot,
    exponentials,
    find_sequence,
    hide,
    keep_mask,
    load_at,
    load_rows,
    score,
    store_at,
)
from kernels.gpu.attention_walk import visible_keys
from kernels.gpu.launch_table import Launch

MAX_SHARES = tl.constexpr(128)  # a program of the merge holds them all:
MERGE_WARPS = 8  # of 256 columns 128 numbers a thread


@triton.jit(do_not_specialize=VARYING)
def split_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, sums_ptr, q_bounds, k_bounds,  # o (C, N, H, D), sums (C, N, H, 2) or None, C = 1
    q_strides, k_strides, T, S, H, N, scores, dropout, seed: tl.int64,  # as in attention.py
    D: tl.constexpr, GROUP: tl.constexpr, BOUNDS: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tiles, G = tl.cdiv(T * GROUP, BLOCK.M), H // GROUP
    r0 = tl.program_id(0) % tiles * BLOCK.M
    g, b = tl.program_id(0) // tiles % G, tl.program_id(0) // tiles // G
    q_start, n, q_offset = find_sequence(q_bounds, b, T, q_strides, BOUNDS)
    _k_start, m, k_offset = find_sequence(k_bounds, b, S, k_strides, BOUNDS)
    if BOUNDS == "packed":
        T = n  # rows to write; behind the length of a padded sequence they are zeros
    k_ptr += k_offset + g.to(tl.int64) * k_strides.h
    v_ptr += k_offset + g.to(tl.int64) * k_strides.h

    row = r0 + tl.arange(0, BLOCK.M)  # query 0 of each head, query 1 of each head, …
    query, h = row // GROUP, g * GROUP + row % GROUP
    q_offsets = q_offset + query.to(tl.int64) * q_strides.t + h.to(tl.int64) * q_strides.h
    q = load_at(q_ptr, q_offsets[:, None], (query < n)[:, None], D, BLOCK.D)
    top = tl.full((BLOCK.M,), NEG_INF, tl.float32)
    total = tl.full((BLOCK.M,), 0.0, tl.float32)
    acc = tl.full((BLOCK.M, BLOCK.D), 0.0, tl.float32)
    first, last = r0 // GROUP, tl.minimum((r0 + BLOCK.M - 1) // GROUP, n - 1)
    start, stop = visible_keys(first + (m - n), last + (m - n), tl.where(first < n, m, 0), scores.window, CAUSAL)
    share = tl.cdiv(tl.cdiv(stop - start, tl.num_programs(1)), BLOCK.N) * BLOCK.N
    start += tl.program_id(1) * share
    stop = tl.minimum(stop, start + share)
    for j0 in range(start, stop, BLOCK.N):
        key = j0 + tl.arange(0, BLOCK.N)
        k = load_rows(k_ptr, key, stop, k_strides.t, D, BLOCK.D)
        s = score(dot(q, k.T), scores)[0]
        s = hide(s, (query + (m - n))[:, None], key[None, :], stop, scores.window, CAUSAL)
        p, rescale, top = exponentials(s, top)
        total = total * rescale + tl.sum(p, 1)
        if dropout is not None:
            keep = keep_mask(seed, dropout.threshold, b, h[:, None], query[:, None], key[None, :])
            p = tl.where(keep, p * dropout.keep_scale, 0.0)
        v = load_rows(v_ptr, key, stop, k_strides.t, D, BLOCK.D)
        acc = acc * rescale[:, None] + dot(p.to(v.dtype), v)

    total = tl.where(query < n, total, 0.0)
    out = ((tl.program_id(1).to(tl.int64) * N + q_start) + query) * H + h
    if sums_ptr is None:
        acc = _divided(acc, total[:, None])
    else:
        tl.store(sums_ptr + 2 * out, top, mask=query < T)
        tl.store(sums_ptr + 2 * out + 1, total, mask=query < T)
    store_at(o_ptr, acc, out[:, None] * D, (query < T)[:, None], D, BLOCK.D)


@triton.jit
def _divided(x, total):
    """x / total, 0 for a row that sees nothing."""
    seen = total != 0  # not total > 0: NaN shall show
    return tl.where(seen, x / tl.where(seen, total, 1.0), 0.0)


@triton.jit(do_not_specialize=["rows", "shares"])
def merge_kernel(
    parts_ptr, sums_ptr, o_ptr,  # (C, N·H, D), (C, N·H, 2), (N·H, D)
    rows, shares,  # N·H, C
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    share, row = tl.arange(0, MAX_SHARES), tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_D)
    known = share < shares
    at = share.to(tl.int64) * rows + row
    tops = tl.load(sums_ptr + 2 * at, mask=known, other=NEG_INF)
    totals = tl.load(sums_ptr + 2 * at + 1, mask=known, other=0.0)
    parts = load_at(parts_ptr, at[:, None] * D, known[:, None], D, BLOCK_D)
    top = tl.max(tops, 0)
    weight = tl.exp2(tops - tl.where(top == NEG_INF, 0.0, top))
    out = _divided(tl.sum(weight[:, None] * parts, 0), tl.sum(weight * totals, 0))
    tl.store(o_ptr + row * D + cols, out.to(o_ptr.dtype.element_ty), mask=cols < D)


# ---- how the work is cut up -----------------------------------------------------------------------------

NARROW = 16  # the fewest rows that a product takes
RESIDENT = 2  # programs that a processor holds at a time
# Below so many keys a share the merge costs more than it saves: 256 of 128 columns are 131 KB, which one of an H100's
# 132 processors reads, at its part of the memory's 3.35 TB/s, in 5 µs; launching a kernel takes about as long.
FEWEST_KEYS = 256


def narrowed(launch: Launch, rows: int) -> Launch:
    """With no more rows in a tile than a single query mostly has."""
    return launch._replace(block_m=NARROW) if rows <= NARROW else launch


@cache
def count_shares(programs: int, most: int, processors: int) -> int:
    """Into how many shares, `most` at most, to cut the keys of each of so many programs: the fewest that keep the card
    busy for 0.8 of the time that the best number would. The last round of programs may leave most of it idle."""

    def busy(shares: int) -> float:
        rounds = programs * shares / (RESIDENT * processors)
        return rounds / math.ceil(rounds)

    able = range(1, max(1, min(most, MAX_SHARES.value)) + 1)
    best = max(map(busy, able))
    return next(shares for shares in able if busy(shares) >= 0.8 * best)
