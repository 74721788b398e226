"""Attention in plain PyTorch, block by block of queries: every feature, O(T) memory, and fast in two-byte types.

A block of BLOCK queries multiplies only the keys that some of them see: what the causal mask and the window hide is
never computed. It sees whole rows of scores, so that softmax is the library's and the backward needs no log-sum-exp:
it multiplies the scores again and uses

    p = softmax(s)    dv = pᵀ do    dp = do vᵀ    ds = p (dp − Σ p dp)    dq = scale ds k    dk = scale dsᵀ q

The work is cut once more, over heads, into pieces of PIECE scores: memory stays small, and yet a call of the library
does enough to outweigh what calling it costs.

Letters: N queries and M keys of all sequences, H query heads, G key/value heads, R = H/G, D head dim; a group has
`count` sequences of n queries and m keys each; P pairs of sequence and key/value head in a piece. The R query heads
that share a key/value head are R times as many rows of one product.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels.arguments import AttentionOptions as Options
from kernels.cpu.dropout import dropout_factors, generator_of
from kernels.operators import operator, schema_of

BLOCK = 128  # rows of scores; twice as many from LONG keys on, where adding up dk and dv outweighs the wasted corner
LONG = 1024
PIECE = 2**22  # scores at a time, 8 MB in bfloat16; with an eighth of it T = 512 takes 1.3 times as long on two cores
FEW_KEYS = 64  # PyTorch's softmax of shorter rows of bfloat16 is 3 to 15 times slower than that of float32


# ---- which scores are computed ---------------------------------------------------------------------------


class Part(NamedTuple):
    """Some key/value heads of some sequences of a group."""

    sequences: slice
    heads: slice

    def view(self, x: Tensor, rows: slice) -> Tensor:
        """(count, n, G, R, D) → a view (sequences, heads, R, rows, D)."""
        return x[self.sequences, rows, self.heads].permute(0, 2, 3, 1, 4)

    def load(self, x: Tensor, rows: slice) -> Tensor:
        """→ (P, R · rows, D), dense, or the library would copy it for each product."""
        return self.view(x, rows).flatten(2, 3).flatten(0, 1).contiguous()

    def store(self, x: Tensor, to: Tensor, rows: slice) -> None:
        """The reverse of `load`."""
        place = self.view(to, rows)
        place.copy_(x.view(place.shape))


class Block(NamedTuple):
    """Some queries, and the keys that these may see."""

    queries: slice  # of n
    keys: slice  # of m
    mask: Tensor | None  # (queries, last of the keys), ∞ or −∞; None if they see all


def _parts(count: int, n: int, m: int, G: int, R: int) -> Iterator[Part]:
    pairs = _pairs(n, m, R)
    heads = -(-G // -(-G // pairs))  # equal parts of G, none larger than `pairs`
    sequences = max(1, pairs // G)
    for c in range(0, count, sequences):
        for g in range(0, G, heads):
            yield Part(slice(c, c + sequences), slice(g, g + heads))


def _pairs(n: int, m: int, R: int) -> int:
    return max(1, PIECE // (_rows_of_a_block(n, m, R) * m))


def _rows_of_a_block(n: int, m: int, R: int) -> int:
    return R * min(n, max(1, (BLOCK if m < LONG else 2 * BLOCK) // R))


def _blocks(n: int, m: int, R: int, options: Options, like: Tensor) -> Iterator[Block]:
    """Last queries first. Query i stands beside key i + m − n; queries that see nothing are in no block."""
    causal, window = options.causal, options.window
    block = _rows_of_a_block(n, m, R) // R
    for i0 in reversed(range(_blind(n, m, options), n, block)):
        i1 = min(n, i0 + block)
        first, last = i0 + m - n, i1 - 1 + m - n
        j0 = 0 if window is None else max(0, first - window + 1)
        j1 = min(m, last + 1) if causal else m if window is None else min(m, last + window)
        mask = None
        if window is not None:
            mask = _mask(i1 - i0, j1 - j0, first - j0, causal, window, like.dtype, like.device)
        elif causal and last > first:  # nothing is hidden before key `first`
            mask = _mask(i1 - i0, last - first + 1, 0, causal, window, like.dtype, like.device)
        yield Block(slice(i0, i1), slice(j0, j1), mask)


def _blind(n: int, m: int, options: Options) -> int:
    """How many of the n queries, the first ones, stand before all m keys and see none."""
    if options.causal:
        return max(0, n - m)
    return 0 if options.window is None else max(0, n - m - options.window + 1)


@lru_cache(maxsize=256)  # the same few masks serve all layers and steps
def _mask(
    rows: int, cols: int, place: int, causal: bool, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(rows, cols), the largest score allowed: −∞ where row i, which stands beside column place + i, may not look,
    else ∞. To add −∞ instead would make NaN of a hidden score that overflowed in float16."""
    ahead = torch.arange(cols, device=device) - (place + torch.arange(rows, device=device))[:, None]
    hidden = ahead > 0 if causal else torch.zeros_like(ahead, dtype=torch.bool)
    if window is not None:
        hidden = hidden | (ahead.abs() >= window)
    return torch.full(hidden.shape, float("inf"), dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


# ---- what is computed ------------------------------------------------------------------------------------


def _probabilities(
    q: Tensor, k: Tensor, mask: Tensor | None, options: Options, room: Tensor
) -> tuple[Tensor, Tensor | None]:
    """softmax of the scores and, with a soft cap, their tanh."""
    scores = _shaped(room, q, k)
    torch.baddbmm(scores, q, k.transpose(1, 2), beta=0, alpha=options.scale, out=scores)
    if scores.dtype in (torch.bfloat16, torch.float16) and (k.shape[1] < FEW_KEYS or options.softcap is not None):
        scores = scores.float()
    tanh = None
    if options.softcap is not None:
        tanh = torch.tanh(scores / options.softcap)
        scores = tanh * options.softcap
    if mask is not None:
        of_heads = scores.unflatten(1, (-1, mask.shape[0]))  # (P, R, queries, keys)
        of_heads[..., -mask.shape[1] :].clamp_(max=mask)
    return torch.softmax(scores, dim=-1, out=scores), tanh


def _room(like: Tensor, shapes: list[int], G: int, R: int) -> Tensor:
    """Room for the scores of a piece. Allocated once a call: pages fresh from the system cost as much as a product."""
    sizes = [min(count * G, _pairs(n, m, R)) * _rows_of_a_block(n, m, R) * m for (count, n, m), *_ in _spans(shapes)]
    return torch.empty(max(sizes, default=0), dtype=like.dtype, device=like.device)


def _shaped(room: Tensor, q: Tensor, k: Tensor) -> Tensor:
    shape = q.shape[0], q.shape[1], k.shape[1]
    return room[: shape[0] * shape[1] * shape[2]].view(shape)


def _generator(options: Options, device: torch.device) -> torch.Generator | None:
    """Makes the same numbers again in the backward."""
    return generator_of(options.dropout_seed, device) if options.dropout_p > 0.0 else None


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, options: Options, generator, room: Tensor) -> None:
    """q and `out` (count, n, G, R, D), k and v (count, m, G, 1, D)."""
    (count, n, G, R, _), m = q.shape, k.shape[1]
    out[:, : _blind(n, m, options)] = 0
    for part in _parts(count, n, m, G, R):
        for queries, keys, mask in _blocks(n, m, R, options, q):
            probs, _ = _probabilities(part.load(q, queries), part.load(k, keys), mask, options, room)
            kept = None if generator is None else dropout_factors(probs, options.dropout_p, generator)
            probs = probs if kept is None else probs * kept
            part.store(torch.bmm(probs.to(v.dtype), part.load(v, keys)), out, queries)


def _differentiate(inputs: list[Tensor], grads: list[Tensor], options: Options, generator, rooms: list[Tensor]) -> None:
    """`inputs` are do, q, k, v and `grads`, which are written, dq, dk, dv, shaped as in `_attend`."""
    grad, q, k, v = inputs
    dq, dk, dv = grads
    (count, n, G, R, _), m = q.shape, k.shape[1]
    wide = torch.promote_types(k.dtype, torch.float32)
    dq[:, : _blind(n, m, options)] = 0
    for part in _parts(count, n, m, G, R):
        sum_k, sum_v = (torch.empty_like(part.load(k, slice(0, m)), dtype=wide) for _ in range(2))
        if options.window is not None:
            sum_k.zero_(), sum_v.zero_()
        for queries, keys, mask in _blocks(n, m, R, options, q):
            q_rows, k_rows, do = part.load(q, queries), part.load(k, keys), part.load(grad, queries)
            probs, tanh = _probabilities(q_rows, k_rows, mask, options, rooms[0])
            dprobs = _shaped(rooms[1], q_rows, k_rows)
            dprobs = torch.bmm(do, part.load(v, keys).transpose(1, 2), out=dprobs).to(probs.dtype)
            kept = None if generator is None else dropout_factors(probs, options.dropout_p, generator)
            if kept is not None:
                dprobs = dprobs * kept
            weights = probs if kept is None else probs * kept
            # Without a window the last queries, which come first, see all keys.
            put = torch.Tensor.copy_ if queries.stop == n and options.window is None else torch.Tensor.add_
            put(sum_v[:, keys], torch.bmm(weights.to(v.dtype).transpose(1, 2), do))
            torch._softmax_backward_data(dprobs, probs, -1, probs.dtype, grad_input=dprobs)
            if tanh is not None:
                dprobs = dprobs * (1 - tanh * tanh)
            dscores = dprobs.to(q.dtype)
            put(sum_k[:, keys], torch.bmm(dscores.transpose(1, 2), q_rows))
            part.store(torch.bmm(dscores, k_rows).mul_(options.scale), dq, queries)
        part.store(sum_k.mul_(options.scale), dk, slice(0, m))
        part.store(sum_v, dv, slice(0, m))


# ---- the groups --------------------------------------------------------------------------------------------


def _spans(shapes: list[int]) -> Iterator[tuple[tuple[int, int, int], slice, slice]]:
    """The shape of each group and its rows of the sorted queries and keys."""
    i = j = 0
    for count, n, m in zip(shapes[::3], shapes[1::3], shapes[2::3], strict=True):
        yield (count, n, m), slice(i, i + count * n), slice(j, j + count * m)
        i, j = i + count * n, j + count * m


def _group(x: Tensor, rows: slice, count: int, G: int) -> Tensor:
    """(N, H, D) or (M, G, D) → a view of the group (count, n or m, G, R or 1, D)."""
    return x[rows].unflatten(1, (G, -1)).unflatten(0, (count, -1))


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _put(x: Tensor, rows: Tensor | None, like: Tensor) -> Tensor:
    """Contiguous, shaped like `like`: x at `rows`, zeros elsewhere."""
    if rows is None:
        return x
    return torch.zeros(like.shape, dtype=x.dtype, device=x.device).index_copy_(0, rows, x)


# ---- operators -----------------------------------------------------------------------------------------


def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_rows: Tensor | None, k_rows: Tensor | None, shapes: list[int], *options: Any
) -> Tensor:
    """q (N,H,D), k and v (M,G,D), the groups as in packing.Groups but flat: count, n, m, count, … → (N,H,D).

    Every row of the sorted queries and keys belongs to a group; other rows of q give 0.
    """
    options = Options(*options)
    generator = _generator(options, q.device)
    G, R = k.shape[1], q.shape[1] // k.shape[1]
    q_sorted, k_sorted, v_sorted = _take(q, q_rows), _take(k, k_rows), _take(v, k_rows)
    out = torch.empty(q_sorted.shape, dtype=q.dtype, device=q.device)
    room = _room(q, shapes, G, R)
    for (count, _, _), q_span, k_span in _spans(shapes):
        q_group, out_group = (_group(x, q_span, count, G) for x in (q_sorted, out))
        k_group, v_group = (_group(x, k_span, count, G) for x in (k_sorted, v_sorted))
        _attend(q_group, k_group, v_group, out_group, options, generator, room)
    return _put(out, q_rows, q)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_rows: Tensor | None,
    k_rows: Tensor | None,
    shapes: list[int],
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    options = Options(*options)
    generator = _generator(options, q.device)
    G, R = k.shape[1], q.shape[1] // k.shape[1]
    of_queries = [_take(x, q_rows) for x in (grad, q)]
    of_keys = [_take(x, k_rows) for x in (k, v)]
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (of_queries[1], *of_keys))
    rooms = [_room(q, shapes, G, R) for _ in range(2)]
    for (count, _, _), q_span, k_span in _spans(shapes):
        grad_group, q_group, dq_group = (_group(x, q_span, count, G) for x in (*of_queries, dq))
        k_group, v_group, dk_group, dv_group = (_group(x, k_span, count, G) for x in (*of_keys, dk, dv))
        inputs = [grad_group, q_group, k_group, v_group]
        _differentiate(inputs, [dq_group, dk_group, dv_group], options, generator, rooms)
    return _put(dq, q_rows, q), _put(dk, k_rows, k), _put(dv, k_rows, v)


def _forward_fake(q, *_):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _backward_fake(grad, q, k, v, *_):
    return tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))


def _setup(ctx, inputs, output) -> None:
    q, k, v, q_rows, k_rows, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, q_rows, k_rows)


def _gradient(ctx, grad: Tensor) -> tuple:
    return *attention_blocks_backward(grad, *ctx.saved_tensors, *ctx.options), *[None] * (2 + len(ctx.options))


_INPUTS = f"Tensor q, Tensor k, Tensor v, Tensor? q_rows, Tensor? k_rows, SymInt[] shapes, {schema_of(Options)}"
attention_blocks_backward = operator(
    f"attention_blocks_backward(Tensor grad, {_INPUTS}) -> (Tensor, Tensor, Tensor)", _backward, fake=_backward_fake
)
attention_blocks = operator(
    f"attention_blocks({_INPUTS}) -> Tensor", _forward, fake=_forward_fake, setup=_setup, gradient=_gradient
)
