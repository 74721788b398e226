"""Attention in plain PyTorch, block by block of queries: every feature, O(T) memory, and fast in two-byte types.

A block of BLOCK queries multiplies only the keys that some of them see: what the causal mask and the window hide is
never computed. It sees whole rows of scores, so that softmax is the library's and the backward needs no log-sum-exp:
it multiplies the scores again and uses

    p = softmax(s)    dv = pᵀ do    dp = do vᵀ    ds = p (dp − Σ p dp)    dq = scale ds k    dk = scale dsᵀ q

The work is cut once more, over heads, so that a piece of scores stays in the cache.

Letters: N queries and M keys of all sequences, H query heads, G key/value heads, D head dim; a group has `count`
sequences of n queries and m keys each; P = count · H pairs of sequence and head.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128  # queries; twice as many from LONG keys on, where adding up dk and dv outweighs the wasted corner
LONG = 1024
PIECE = 2**19  # scores at a time: 1 MB in bfloat16
SHORT = 64  # keys; PyTorch's softmax of shorter rows of bfloat16 is 3 to 15 times slower than that of float32


class Options(NamedTuple):
    causal: bool
    window: int | None
    scale: float
    softcap: float | None
    dropout_p: float
    dropout_seed: int


class Piece(NamedTuple):
    """Some heads of some queries, and the keys that these may see."""

    pairs: slice  # of P
    queries: slice  # of n
    keys: slice  # of m
    hidden: Tensor | None  # (queries, last of the keys) bool, or None if they see all


# ---- what is computed ------------------------------------------------------------------------------------


def _pieces(P: int, n: int, m: int, options: Options, device: torch.device) -> Iterator[Piece]:
    """The pieces of a group, last queries first. Query i stands beside key i + m − n; queries that see nothing
    are in no piece."""
    causal, window = options.causal, options.window
    block = BLOCK if m < LONG else 2 * BLOCK
    for i0 in reversed(range(_blind(n, m, options), n, block)):
        i1 = min(n, i0 + block)
        first, last = i0 + m - n, i1 - 1 + m - n
        j0 = 0 if window is None else max(0, first - window + 1)
        j1 = min(m, last + 1) if causal else m if window is None else min(m, last + window)
        hidden = None
        if window is not None:
            hidden = _hidden(i1 - i0, j1 - j0, first - j0, causal, window, device)
        elif causal and last > first:  # nothing is hidden before key first + 1
            hidden = _hidden(i1 - i0, last - first, -1, causal, window, device)
        pairs = max(1, PIECE // ((i1 - i0) * (j1 - j0)))
        for z in range(0, P, pairs):
            yield Piece(slice(z, z + pairs), slice(i0, i1), slice(j0, j1), hidden)


def _blind(n: int, m: int, options: Options) -> int:
    """How many of the n queries, the first ones, stand before all m keys and see none."""
    if options.causal:
        return max(0, n - m)
    return 0 if options.window is None else max(0, n - m - options.window + 1)


@lru_cache(maxsize=256)  # the same few masks serve all layers and steps
def _hidden(rows: int, cols: int, place: int, causal: bool, window: int | None, device: torch.device) -> Tensor:
    """(rows, cols) bool, True where row i, which stands beside column place + i, may not look."""
    ahead = torch.arange(cols, device=device) - (place + torch.arange(rows, device=device))[:, None]
    hidden = ahead > 0 if causal else torch.zeros_like(ahead, dtype=torch.bool)
    if window is not None:
        hidden = hidden | (ahead.abs() >= window)
    return hidden


def _probabilities(q: Tensor, k: Tensor, hidden: Tensor | None, options: Options) -> tuple[Tensor, Tensor | None]:
    """softmax of the scores and, with a soft cap, their tanh."""
    scores = torch.baddbmm(q.new_empty(()), q, k.transpose(1, 2), beta=0, alpha=options.scale)
    if scores.dtype in (torch.bfloat16, torch.float16) and (k.shape[1] < SHORT or options.softcap is not None):
        scores = scores.float()
    tanh = None
    if options.softcap is not None:
        tanh = torch.tanh(scores / options.softcap)
        scores = tanh * options.softcap
    if hidden is not None:
        scores[:, :, -hidden.shape[1] :].masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1), tanh


def _dropout(like: Tensor, p: float, generator: torch.Generator | None) -> Tensor | None:
    """0 with probability p, else 1/(1 − p). The generator makes the same numbers again in the backward."""
    if generator is None:
        return None
    return torch.empty_like(like).bernoulli_(1 - p, generator=generator).div_(1 - p)


def _generator(options: Options, device: torch.device) -> torch.Generator | None:
    if options.dropout_p == 0.0:
        return None
    return torch.Generator(device).manual_seed(options.dropout_seed)


def _forward(q: Tensor, k: Tensor, v: Tensor, options: Options, generator) -> Tensor:
    """q (P, n, D), k and v (P, m, D) → (P, n, D)."""
    out = torch.empty_like(q)
    out[:, : _blind(q.shape[1], k.shape[1], options)] = 0
    for pairs, queries, keys, hidden in _pieces(*q.shape[:2], k.shape[1], options, q.device):
        probs, _ = _probabilities(q[pairs, queries], k[pairs, keys], hidden, options)
        kept = _dropout(probs, options.dropout_p, generator)
        probs = probs if kept is None else probs * kept
        torch.bmm(probs.to(v.dtype), v[pairs, keys], out=out[pairs, queries])
    return out


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, options: Options, generator
) -> tuple[Tensor, Tensor, Tensor]:
    """dq (P, n, D), dk and dv (P, m, D), these two summed in at least float32."""
    P, n, _ = q.shape
    m = k.shape[1]
    dq = torch.empty_like(q)
    dq[:, : _blind(n, m, options)] = 0
    wide = torch.promote_types(k.dtype, torch.float32)
    dk, dv = torch.empty_like(k, dtype=wide), torch.empty_like(v, dtype=wide)
    if options.window is not None:
        dk, dv = dk.zero_(), dv.zero_()
    for pairs, queries, keys, hidden in _pieces(P, n, m, options, q.device):
        piece_q, piece_k, do = q[pairs, queries], k[pairs, keys], grad[pairs, queries]
        probs, tanh = _probabilities(piece_q, piece_k, hidden, options)
        dprobs = torch.bmm(do, v[pairs, keys].transpose(1, 2)).to(probs.dtype)
        kept = _dropout(probs, options.dropout_p, generator)
        if kept is not None:
            dprobs = dprobs * kept
        weights = probs if kept is None else probs * kept
        # Without a window the last queries, which come first, see all keys.
        put = torch.Tensor.copy_ if queries.stop == n and options.window is None else torch.Tensor.add_
        put(dv[pairs, keys], torch.bmm(weights.to(v.dtype).transpose(1, 2), do))
        dscores = torch._softmax_backward_data(dprobs, probs, -1, probs.dtype)
        if tanh is not None:
            dscores = dscores * (1 - tanh * tanh)
        dscores = dscores.to(q.dtype)
        put(dk[pairs, keys], torch.bmm(dscores.transpose(1, 2), piece_q))
        torch.bmm(dscores, piece_k, out=dq[pairs, queries])
    return dq.mul_(options.scale), dk.mul_(options.scale), dv


# ---- the groups --------------------------------------------------------------------------------------------


def _heads_first(x: Tensor, count: int, H: int) -> Tensor:
    """(count · n, G, D) → (count · H, n, D): a copy, each key/value head as often as query heads share it."""
    x = x.unflatten(0, (count, -1)).transpose(1, 2)  # (count, G, n, D)
    G = x.shape[1]
    if G != H:
        x = x[:, :, None].expand(-1, -1, H // G, -1, -1)
    return x.reshape(count * H, *x.shape[-2:])


def _tokens_first(x: Tensor, count: int) -> Tensor:
    """(count · H, n, D) → (count · n, H, D)."""
    return x.unflatten(0, (count, -1)).transpose(1, 2).flatten(0, 1)


def _shared(x: Tensor, count: int, G: int) -> Tensor:
    """(count · H, m, D) → (count · m, G, D), summed over the query heads that share a head."""
    x = x.view(count, G, -1, *x.shape[1:])
    x = x.squeeze(2) if x.shape[2] == 1 else x.sum(2)
    return x.transpose(1, 2).flatten(0, 1)


def _spans(shapes: list[int]) -> Iterator[tuple[int, slice, slice]]:
    """The number of sequences of each group and its rows of the sorted queries and keys."""
    i = j = 0
    for count, n, m in zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True):
        yield count, slice(i, i + count * n), slice(j, j + count * m)
        i, j = i + count * n, j + count * m


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Tensor | None, like: Tensor) -> Tensor:
    """Contiguous, shaped like `like`: x at `rows`, zeros elsewhere."""
    if rows is None:
        return x
    return torch.zeros(like.shape, dtype=x.dtype, device=x.device).index_copy_(0, rows, x)


@torch.library.custom_op("minillm::attention_blocks", mutates_args=())
def attention_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_rows: Tensor | None,
    k_rows: Tensor | None,
    shapes: list[int],
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    dropout_seed: int,
) -> Tensor:
    """q (N,H,D), k and v (M,G,D), the groups as in packing.Groups but flat: count, n, m, count, … → (N,H,D).

    Every row of the sorted queries and keys belongs to a group; other rows of q give 0.
    """
    options = Options(causal, window, scale, softcap, dropout_p, dropout_seed)
    generator = _generator(options, q.device)
    H = q.shape[1]
    q_sorted, k_sorted, v_sorted = _take(q, q_rows), _take(k, k_rows), _take(v, k_rows)
    out = torch.zeros(q_sorted.shape, dtype=q.dtype, device=q.device)
    for count, q_span, k_span in _spans(shapes):
        heads = (_heads_first(x, count, H) for x in (q_sorted[q_span], k_sorted[k_span], v_sorted[k_span]))
        out[q_span] = _tokens_first(_forward(*heads, options, generator), count)
    return _put(out, q_rows, q)


@torch.library.custom_op("minillm::attention_blocks_backward", mutates_args=())
def attention_blocks_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_rows: Tensor | None,
    k_rows: Tensor | None,
    shapes: list[int],
    causal: bool,
    window: int | None,
    scale: float,
    softcap: float | None,
    dropout_p: float,
    dropout_seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    options = Options(causal, window, scale, softcap, dropout_p, dropout_seed)
    generator = _generator(options, q.device)
    H, G = q.shape[1], k.shape[1]
    q_sorted, grad = _take(q, q_rows), _take(grad, q_rows)
    k_sorted, v_sorted = _take(k, k_rows), _take(v, k_rows)
    dq, dk, dv = (torch.zeros(x.shape, dtype=x.dtype, device=x.device) for x in (q_sorted, k_sorted, v_sorted))
    for count, q_span, k_span in _spans(shapes):
        parts = grad[q_span], q_sorted[q_span], k_sorted[k_span], v_sorted[k_span]
        parts = _backward(*(_heads_first(x, count, H) for x in parts), options, generator)
        dq[q_span] = _tokens_first(parts[0], count)
        dk[k_span], dv[k_span] = (_shared(x, count, G) for x in parts[1:])
    return _put(dq, q_rows, q), _put(dk, k_rows, k), _put(dv, k_rows, v)


@attention_blocks.register_fake
def _(q, *_):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@attention_blocks_backward.register_fake
def _(grad, q, k, v, *_):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    *tensors, ctx.shapes, ctx.causal, ctx.window, ctx.scale, ctx.softcap, ctx.dropout_p, ctx.seed = inputs
    ctx.save_for_backward(*tensors)


def _gradient(ctx, grad: Tensor):
    options = ctx.shapes, ctx.causal, ctx.window, ctx.scale, ctx.softcap, ctx.dropout_p, ctx.seed
    return *attention_blocks_backward(grad, *ctx.saved_tensors, *options), *(None,) * 9


def _no_second_derivative(ctx, *grads):
    raise NotImplementedError("attention in blocks has no second derivative; use impl='eager' for that")


attention_blocks.register_autograd(_gradient, setup_context=_setup)
attention_blocks_backward.register_autograd(_no_second_derivative)
