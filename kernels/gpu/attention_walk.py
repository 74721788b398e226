"""Which tiles the kernels of attention.py walk over.

A walk has up to three parts, so that a mask is computed only where it cuts through a tile: the tiles that the
edge of the window crosses, the full ones, those that the diagonal or the end crosses.

Letters: n and m number of a sequence's queries and keys.
"""

import triton
import triton.language as tl


@triton.jit
def walk_keys(i0, offset, m, window, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """Edges of the three parts of the walk of queries i0 … i0 + BLOCK.M over m keys."""
    first, last = i0 + offset, i0 + BLOCK.M - 1 + offset  # places of the queries among the keys
    start, full, masked, stop = 0, 0, m, m
    if CAUSAL:
        masked, stop = tl.minimum(m, first + 1), tl.minimum(m, last + 1)
    if window is not None:
        start = tl.maximum(0, first - window + 1) // BLOCK.N * BLOCK.N
        full = tl.cdiv(tl.maximum(0, last - window + 1), BLOCK.N) * BLOCK.N
        if not CAUSAL:
            masked, stop = tl.minimum(m, first + window), tl.minimum(m, last + window)
    stop = tl.maximum(stop, start)
    full = tl.minimum(full, start + tl.cdiv(stop - start, BLOCK.N) * BLOCK.N)
    return start, full, tl.maximum(full, masked // BLOCK.N * BLOCK.N), stop


@triton.jit
def walk_queries(j0, offset, n, window, CAUSAL: tl.constexpr, BLOCK: tl.constexpr):
    """Edges of the three parts of the walk of keys j0 … j0 + BLOCK.N over n queries."""
    first, last = j0 - offset, j0 + BLOCK.N - 1 - offset  # the queries that stand beside the keys
    start, full, masked, stop = 0, 0, n, n
    if CAUSAL:
        start = tl.maximum(0, first) // BLOCK.M * BLOCK.M
        full = tl.cdiv(tl.maximum(0, last), BLOCK.M) * BLOCK.M
    if window is not None:
        masked, stop = tl.minimum(n, first + window), tl.minimum(n, last + window)
        if not CAUSAL:
            start = tl.maximum(0, first - window + 1) // BLOCK.M * BLOCK.M
            full = tl.cdiv(tl.maximum(0, last - window + 1), BLOCK.M) * BLOCK.M
    stop = tl.maximum(stop, start)
    end = start + tl.cdiv(stop - start, BLOCK.M) * BLOCK.M
    full = tl.minimum(full, end)
    if window is None:  # rows behind the last query have lse = ∞ and need no mask
        return start, full, tl.maximum(full, end), stop
    return start, full, tl.maximum(full, masked // BLOCK.M * BLOCK.M), stop


@triton.jit
def visible_keys(first, last, m, window, CAUSAL: tl.constexpr):
    """Edges of the keys that any query sees of those at the places `first` … `last` among m keys."""
    start, stop = 0, m
    if CAUSAL:
        stop = tl.minimum(m, last + 1)
    if window is not None:
        start = tl.maximum(0, first - window + 1)
        if not CAUSAL:
            stop = tl.minimum(m, last + window)
    return start, tl.maximum(start, stop)
