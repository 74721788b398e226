"""Attention on a GPU, in Triton: exact, in O(T) memory, deterministic.

For one query head, with base-2 exponentials because that is what the hardware has:

    s_ij = scale · q_i·k_j          soft-capped: s_ij = softcap · tanh(scale · q_i·k_j / softcap)
    p_ij = exp(s_ij − lse_i)        lse_i = log Σ_j exp(s_ij), over the keys j that query i may see
    o_i  = Σ_j z_ij p_ij v_j        z_ij = 1, or under dropout: 0 with probability p, else 1/(1 − p)

Forward. A program owns BLOCK_M queries of one head and walks over the keys in tiles of BLOCK_N, keeping a
running maximum, a running sum and an output not yet divided by it (Milakov & Gimelshein 2018, Rabe & Staats
2021, FlashAttention-2, Dao 2023). Of all scores only lse, one number a row, is stored.

Backward. The probabilities are computed again from lse. With do the gradient of o and δ_i = do_i·o_i:

    dp_ij = z_ij do_i·v_j           ds_ij = p_ij (dp_ij − δ_i)      soft-capped: times 1 − tanh²
    dv_j  = Σ_i z_ij p_ij do_i      dk_j  = scale Σ_i ds_ij q_i     dq_i = scale Σ_j ds_ij k_j

Two kernels: one owns queries, stores δ and sums dq over the keys; one owns keys and sums dk and dv over all
queries of all heads that share them. Every sum has one owner and one order: no atomics, the same bits every
time.

Letters: B batch, T queries, S keys, N rows of all sequences, H query heads, G key/value heads, D head dim;
i, n and j, m: index and number of a sequence's queries and keys.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from kernels.gpu.attention_walk import walk_keys, walk_queries

LOG2E = tl.constexpr(1.4426950408889634)
NEG_INF = tl.constexpr(float("-inf"))
INF = tl.constexpr(float("inf"))

# ---- arguments ----------------------------------------------------------------------------------------

# The kernels take pointers, strides, sizes, numbers of options, and constants. GROUP query heads share a key/value
# head; q_bounds and k_bounds point to cu_seqlens (B+1,) where BOUNDS is "packed", to (B,) where it is "lengths", and
# are None where it is "". What is None, in a tuple too, is known when a kernel is compiled, and what it would switch
# on is left out.
#
# Triton compiles anew for an integer that becomes 1 or a multiple of 16, and for each type that a seed fits. Strides
# shall: aligned rows load faster. For what changes from batch to batch it is told not to, which works for arguments,
# not for what is in a tuple: so these stand alone.
VARYING = ["T", "S", "N", "seed"]


class Strides(NamedTuple):
    """Of a batch's sequences (0 if packed), tokens and heads, in elements; those in a head are 1."""

    b: int
    t: int
    h: int


class Scores(NamedTuple):
    """From a product q·k to a score."""

    scale: float
    softcap: float | None
    window: int | None


class Dropout(NamedTuple):
    threshold: int  # of `kernels.philox.dropout_threshold`
    keep_scale: float  # 1/(1 − p)


class Block(NamedTuple):
    """The tiles that a kernel is compiled for. In Triton 3.6 `tl.full` takes shapes made of these, `tl.zeros` not."""

    M: int  # queries
    N: int  # keys
    D: int  # columns, a power of 2


# ---- parts --------------------------------------------------------------------------------------------


@triton.jit
def find_sequence(bounds_ptr, b, length, strides, BOUNDS: tl.constexpr):
    """Of sequence b: its first of the N rows, its length, its offset in a strided tensor."""
    if BOUNDS == "packed":  # bounds are cu_seqlens
        start = tl.load(bounds_ptr + b).to(tl.int64)
        return start, (tl.load(bounds_ptr + b + 1) - start).to(tl.int32), start * strides.t
    b = b.to(tl.int64)
    if BOUNDS == "lengths":
        return b * length, tl.minimum(tl.load(bounds_ptr + b), length).to(tl.int32), b * strides.b
    return b * length, length, b * strides.b


@triton.jit
def load_at(ptr, offsets, mask, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """D numbers from each of the offsets (rows, 1), which have 64 bits; zeros where the mask (rows, 1) is off and in
    columns from D on."""
    cols = tl.arange(0, BLOCK_D)
    if D != BLOCK_D:
        mask = mask & (cols[None, :] < D)
    return tl.load(ptr + offsets + cols[None, :], mask=mask, other=0.0)


@triton.jit
def load_rows(ptr, rows, end, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The tile ptr[rows, :D], zeros in rows from `end` on."""
    return load_at(ptr, rows[:, None].to(tl.int64) * stride, rows[:, None] < end, D, BLOCK_D)


@triton.jit
def _load_numbers(ptr, rows, end, other):
    """One number a row. Read as a column and summed over its one element, or else Triton 3.6 reads in the layout
    of the product: 16 numbers a thread, all threads the same, and their addresses spill."""
    return tl.sum(tl.load(ptr + rows[:, None], mask=rows[:, None] < end, other=other), 1)


@triton.jit
def store_at(ptr, tile, offsets, mask, D: tl.constexpr, BLOCK_D: tl.constexpr):
    cols = tl.arange(0, BLOCK_D)
    tl.store(ptr + offsets + cols[None, :], tile.to(ptr.dtype.element_ty), mask=mask & (cols[None, :] < D))


@triton.jit
def store_rows(ptr, tile, rows, end, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    store_at(ptr, tile, rows[:, None].to(tl.int64) * stride, rows[:, None] < end, D, BLOCK_D)


@triton.jit
def dot(a, b):
    """In float32 without rounding the factors to TF32, which is Triton's default. Three products of TF32 ("tf32x3")
    would hold the factors' digits and use the tensor cores, but those cut off every partial sum instead of rounding
    it: over 4,096 keys 4e-5 of the largest result, emulated, where PyTorch is off by 3e-7."""
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def score(dots, scores):
    """log2 e · score, and d score / d (scale · dot), which is 1 without a soft cap."""
    if scores.softcap is not None:
        x = dots * (scores.scale / scores.softcap)
        e = tl.exp2(tl.abs(x) * (-2 * LOG2E))
        far = tl.where(x < 0, -1.0, 1.0) * (1 - e) / (1 + e)
        xx = x * x  # near 0 that form of tanh loses all digits; the Taylor series is exact to 2⁻²⁴
        near = x * (1 + xx * (-1 / 3 + xx * (2 / 15 + xx * (-17 / 315 + xx * (62 / 2835)))))
        tanh = tl.where(xx < 0.04, near, far)
        return tanh * (scores.softcap * LOG2E), 1 - tanh * tanh
    else:  # noqa: RET505 — Triton compiles what follows an `if` even behind a return
        return dots * (scores.scale * LOG2E), 1.0


@triton.jit
def hide(s, place, key, m, window, CAUSAL: tl.constexpr):
    """−∞ where the query at `place` among the keys may not see `key`; the two broadcast to the shape of s."""
    visible = key < m
    if CAUSAL:
        visible = visible & (key <= place)
    if window is not None:
        visible = visible & (place - key < window)
        if not CAUSAL:
            visible = visible & (key - place < window)
    return tl.where(visible, s, NEG_INF)


@triton.jit
def keep_mask(seed, threshold, b, h, query, key):
    """Which probabilities survive dropout: `kernels.philox.attention_keep`, element for element."""
    zero = query * 0 + key * 0  # the shape of the tile
    bits = tl.philox(seed, zero + key, zero + query, zero + h, zero + b)
    return (bits[0] >> 1).to(tl.int32) >= threshold


@triton.jit
def exponentials(s, top):
    """exp(s − the new maximum of each row), by how much sums over earlier keys shrink, and that maximum."""
    new_top = tl.maximum(top, tl.max(s, 1))
    shift = tl.where(new_top == NEG_INF, 0.0, new_top)  # a row that has seen nothing yet: −∞ − 0, not NaN
    return tl.exp2(s - shift[:, None]), tl.exp2(top - shift), new_top


# ---- forward ------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, q_bounds, k_bounds,  # (…, T, H, D), (…, S, G, D) twice, (N, H, D), (H, N)
    q_strides, k_strides, T, S, H, N, scores, dropout, seed: tl.int64,  # Strides twice, Scores, Dropout or None
    D: tl.constexpr, GROUP: tl.constexpr, BOUNDS: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(T, BLOCK.M)
    i0 = (blocks - 1 - tl.program_id(0) % blocks) * BLOCK.M  # causal: the longest walks first
    h, b = tl.program_id(0) // blocks % H, tl.program_id(0) // blocks // H
    q_start, n, q_offset = find_sequence(q_bounds, b, T, q_strides, BOUNDS)
    _k_start, m, k_offset = find_sequence(k_bounds, b, S, k_strides, BOUNDS)
    if BOUNDS == "packed":
        T = n  # rows to write; behind the length of a padded sequence they are zeros
        if i0 >= n:
            return
    q_ptr += q_offset + h.to(tl.int64) * q_strides.h
    k_ptr += k_offset + (h // GROUP).to(tl.int64) * k_strides.h
    v_ptr += k_offset + (h // GROUP).to(tl.int64) * k_strides.h

    query = i0 + tl.arange(0, BLOCK.M)
    q = load_rows(q_ptr, query, n, q_strides.t, D, BLOCK.D)
    top = tl.full((BLOCK.M,), NEG_INF, tl.float32)  # running maximum of the scores
    total = tl.full((BLOCK.M,), 0.0, tl.float32)  # running sum of exp(score − top)
    acc = tl.full((BLOCK.M, BLOCK.D), 0.0, tl.float32)
    edges = walk_keys(i0, m - n, tl.where(i0 < n, m, 0), scores.window, CAUSAL, BLOCK)
    for PART in tl.static_range(1 if scores.window is None else 0, 3):
        for j0 in range(edges[PART], edges[PART + 1], BLOCK.N):
            key = j0 + tl.arange(0, BLOCK.N)
            k = load_rows(k_ptr, key, m, k_strides.t, D, BLOCK.D)
            s = score(dot(q, k.T), scores)[0]
            if PART != 1:
                s = hide(s, query[:, None] + (m - n), key[None, :], m, scores.window, CAUSAL)
            p, rescale, top = exponentials(s, top)
            total = total * rescale + tl.sum(p, 1)
            if dropout is not None:
                keep = keep_mask(seed, dropout.threshold, b, h, query[:, None], key[None, :])
                p = tl.where(keep, p * dropout.keep_scale, 0.0)
            v = load_rows(v_ptr, key, m, k_strides.t, D, BLOCK.D)
            acc = acc * rescale[:, None] + dot(p.to(v.dtype), v)

    seen = (total != 0) & (query < n)  # not total > 0: NaN shall show
    out = tl.where(seen[:, None], acc / tl.where(seen, total, 1.0)[:, None], 0.0)
    store_rows(o_ptr + (q_start * H + h) * D, out, query, T, H * D, D, BLOCK.D)
    # +∞ for a row that sees nothing makes all its probabilities exp2(s − ∞) = 0 in the backward.
    lse = tl.where(seen, top + tl.log2(tl.where(seen, total, 1.0)), INF)
    tl.store(lse_ptr + h.to(tl.int64) * N + q_start + query, lse, mask=query < T)


# ---- backward -----------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=VARYING)
def backward_q_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, q_bounds, k_bounds,
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
    q_ptr += q_offset + h.to(tl.int64) * q_strides.h
    k_ptr += k_offset + (h // GROUP).to(tl.int64) * k_strides.h
    v_ptr += k_offset + (h // GROUP).to(tl.int64) * k_strides.h
    o_offset = (q_start * H + h) * D
    row_offset = h.to(tl.int64) * N + q_start

    query = i0 + tl.arange(0, BLOCK.M)
    q = load_rows(q_ptr, query, n, q_strides.t, D, BLOCK.D)
    do = load_rows(do_ptr + o_offset, query, n, H * D, D, BLOCK.D)
    o = load_rows(o_ptr + o_offset, query, n, H * D, D, BLOCK.D)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta_ptr + row_offset + query, delta, mask=query < T)
    lse = tl.load(lse_ptr + row_offset + query, mask=query < n, other=INF)
    dq = tl.full((BLOCK.M, BLOCK.D), 0.0, tl.float32)
    edges = walk_keys(i0, m - n, tl.where(i0 < n, m, 0), scores.window, CAUSAL, BLOCK)
    for PART in tl.static_range(1 if scores.window is None else 0, 3):
        for j0 in range(edges[PART], edges[PART + 1], BLOCK.N):
            key = j0 + tl.arange(0, BLOCK.N)
            k = load_rows(k_ptr, key, m, k_strides.t, D, BLOCK.D)
            s, slope = score(dot(q, k.T), scores)
            if PART != 1:
                s = hide(s, query[:, None] + (m - n), key[None, :], m, scores.window, CAUSAL)
            p = tl.exp2(s - lse[:, None])
            v = load_rows(v_ptr, key, m, k_strides.t, D, BLOCK.D)
            dp = dot(do, v.T)
            if dropout is not None:
                keep = keep_mask(seed, dropout.threshold, b, h, query[:, None], key[None, :])
                dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
            ds = p * (dp - delta[:, None]) * slope
            dq += dot(ds.to(k.dtype), k)
    store_rows(dq_ptr + o_offset, dq * scores.scale, query, T, H * D, D, BLOCK.D)


@triton.jit(do_not_specialize=VARYING)
def backward_kv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, q_bounds, k_bounds,
    q_strides, k_strides, T, S, H, N, scores, dropout, seed: tl.int64,
    D: tl.constexpr, GROUP: tl.constexpr, BOUNDS: tl.constexpr, CAUSAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks, G = tl.cdiv(S, BLOCK.N), H // GROUP
    j0 = tl.program_id(0) % blocks * BLOCK.N  # causal: the first keys have the longest walks
    g, b = tl.program_id(0) // blocks % G, tl.program_id(0) // blocks // G
    q_start, n, q_offset = find_sequence(q_bounds, b, T, q_strides, BOUNDS)
    k_start, m, k_offset = find_sequence(k_bounds, b, S, k_strides, BOUNDS)
    if BOUNDS == "packed":
        S = m
        if j0 >= m:
            return
    k_offset += g.to(tl.int64) * k_strides.h

    key = j0 + tl.arange(0, BLOCK.N)
    k = load_rows(k_ptr + k_offset, key, m, k_strides.t, D, BLOCK.D)
    v = load_rows(v_ptr + k_offset, key, m, k_strides.t, D, BLOCK.D)
    dk = tl.full((BLOCK.N, BLOCK.D), 0.0, tl.float32)
    dv = tl.full((BLOCK.N, BLOCK.D), 0.0, tl.float32)
    edges = walk_queries(j0, m - n, tl.where(j0 < m, n, 0), scores.window, CAUSAL, BLOCK)
    for PART in tl.static_range(0 if CAUSAL or scores.window is not None else 1, 2 if scores.window is None else 3):
        # Tiles and heads in one loop: in two, one in the other, dk and dv change places and registers spill.
        for step in range(tl.cdiv(edges[PART + 1] - edges[PART], BLOCK.M) * GROUP):
            query = edges[PART] + step // GROUP * BLOCK.M + tl.arange(0, BLOCK.M)
            h = g * GROUP + step % GROUP
            row_offset = h.to(tl.int64) * N + q_start
            q = load_rows(q_ptr + q_offset + h.to(tl.int64) * q_strides.h, query, n, q_strides.t, D, BLOCK.D)
            s, slope = score(dot(k, q.T), scores)  # transposed: keys × queries
            if PART != 1:
                s = hide(s, query[None, :] + (m - n), key[:, None], m, scores.window, CAUSAL)
            lse = _load_numbers(lse_ptr + row_offset, query, n, INF)
            p = tl.exp2(s - lse[None, :])
            do = load_rows(do_ptr + (q_start * H + h) * D, query, n, H * D, D, BLOCK.D)
            dp = dot(v, do.T)
            z = p
            if dropout is not None:
                keep = keep_mask(seed, dropout.threshold, b, h, query[None, :], key[:, None])
                z = tl.where(keep, p * dropout.keep_scale, 0.0)
                dp = tl.where(keep, dp * dropout.keep_scale, 0.0)
            dv += dot(z.to(do.dtype), do)
            delta = _load_numbers(delta_ptr + row_offset, query, n, 0.0)
            ds = p * (dp - delta[None, :]) * slope
            dk += dot(ds.to(q.dtype), q)

    # Rows behind the last key have met the queries as zeros and may hold anything.
    dk = tl.where((key < m)[:, None], dk * scores.scale, 0.0)
    dv = tl.where((key < m)[:, None], dv, 0.0)
    kv_offset = (k_start * G + g) * D
    store_rows(dk_ptr + kv_offset, dk, key, S, G * D, D, BLOCK.D)
    store_rows(dv_ptr + kv_offset, dv, key, S, G * D, D, BLOCK.D)
