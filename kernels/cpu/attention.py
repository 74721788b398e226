"""Attention from PyTorch's own kernels: what runs where Triton does not.

    a step of generation                  `Step`: one query a sequence over its cached keys, nothing checked or derived
                                          again for every layer
    few queries, no gradient              one masked product
    packed, short, and of half precision  padded, and few calls for all
    or with other keys than queries
    plain, in float32 and float64         SDPA for each length of a sequence, so that no padding is computed and no
                                          mask is needed (`Groups`)
    everything else                       blocks.py: long ones of half precision, where SDPA is slow on a CPU; with a
                                          window, a soft cap, dropout, or more keys than queries

Letters: B batch, T queries, S keys, N queries of a packed row, H query heads, G key/value heads, D head dim.
"""

from operator import index
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

from kernels.arguments import AttentionOptions as Options
from kernels.cpu.blocks import FEW_KEYS, attention_blocks
from kernels.cpu.dropout import dropout_factors, generator_of
from kernels.packing import Groups, Layout, Packing, Spans, blank

FEW = 16  # so many queries are a step of decoding, not a prompt
SHORT = 128  # tokens; longer ones are worth a call for each length
# Numbers in the queries of all sequences from which on sums of rows are faster than SDPA.
MANY = {torch.float32: 3000, torch.bfloat16: 384}
# In bfloat16 that is later where so many heads share few keys: SDPA reads these once for all of the heads.
SHARING, FEW_SHARED, MANY_SHARED = 3, 200, 3000
HAS_FAST_SUMS = "fbgemm" in torch.backends.quantized.supported_engines  # what computes them, on x86


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    """The arguments of `kernels.attention`, already checked."""
    packing, k_packing, *_ = layout
    if options.scale <= 0:  # PyTorch hides by −∞ and then scales, which makes that +∞ or NaN; so q bears the sign
        sign = -1.0 if options.scale else 0.0
        q, options = q * sign, options._replace(scale=-options.scale or 1.0)
    if packing is None:
        return _dense(q, k, v, layout, options)
    if _is_short(q, k, packing, k_packing, options):
        return _short(q, k, v, packing, k_packing, options)
    if packing.is_rectangular and k_packing.is_rectangular and packing.num_tokens and k_packing.num_tokens:
        q, k, v = (x.unflatten(0, (packing.num_sequences, -1)) for x in (q, k, v))
        return _dense(q, k, v, Layout(), options).flatten(0, 1)
    return _grouped(q, k, v, packing.groups_with(k_packing), options)


def _dense(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if T <= FEW and not trains and options.softcap is None and options.dropout_p == 0.0 and S > 0:
        return _few_queries(q, k, v, layout, options)
    if layout.q_lengths is not None or layout.k_lengths is not None:
        groups = _groups_of_padded(q, k, layout)
    elif _is_plain(q, T, S, options):
        return _sdpa(q, k, v, options.scale, causal=options.causal)
    else:
        groups = Groups(((B, T, S),), None, None) if q.numel() and S else _no_groups(q.device)
    return _grouped(*(x.flatten(0, 1) for x in (q, k, v)), groups, options).view(q.shape)


def _is_plain(q: Tensor, n: int, m: int, options: Options) -> bool:
    """SDPA can do it, its causal mask being aligned at the first key and ours at the last, and is fast at it."""
    if options.window is not None or options.softcap is not None or options.dropout_p > 0.0 or m == 0:
        return False
    return not (options.causal and n not in (1, m)) and not _is_half_on_cpu(q)


def _is_half_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """SDPA on (B,T,H,D). Its causal mask is aligned at the first key, where a single query must not stand."""
    if q.shape[1] == 1:  # a branch and no `and`: to torch.compile a comparison of lengths is a symbol, no bool
        causal = False
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    gqa = index(q.shape[1]) != index(k.shape[1])  # numbers, so that torch.compile has a bool
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


# ---- few queries, no gradient --------------------------------------------------------------------------


def _few_queries(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    """The scores are small, so a mask costs little, and what counts is overhead."""
    mask = _visible(q, k, layout, options)
    k, v = blank(k, layout.k_lengths), blank(v, layout.k_lengths)
    attend = plain_products if _is_half_on_cpu(q) else _sdpa
    out = attend(q, k, v, options.scale, mask)
    if mask is not None:  # softmax over nothing is not a number
        out = out.masked_fill(~mask.any(-1).transpose(1, 2)[..., None], 0.0)
    return out


def _visible(q: Tensor, k: Tensor, layout: Layout, options: Options) -> Tensor | None:
    """(B, 1, T, S) bool: which query sees which key; None if each sees all."""
    (B, T), S = q.shape[:2], k.shape[1]
    _, _, q_lengths, k_lengths = layout
    if q_lengths is None and k_lengths is None and options.window is None and not (options.causal and T > 1):
        return None
    n = T if q_lengths is None else q_lengths[:, None, None]
    m = S if k_lengths is None else k_lengths[:, None, None]
    key = torch.arange(S, device=q.device)
    place = torch.arange(T, device=q.device)[:, None] + (m - n)  # beside which key the query stands
    visible = (key < m) & (place < m)
    if options.causal:
        visible = visible & (key <= place)
    if options.window is not None:
        visible = visible & ((key - place).abs() < options.window)
    return visible.expand(B, T, S)[:, None]


def plain_products(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The heads of a group are rows of one product with their keys: nothing is repeated."""
    B, T, H, D = q.shape
    G = k.shape[2]
    rows = (q * scale).view(B, T, G, H // G, D).permute(0, 2, 1, 3, 4).reshape(B, G, T * (H // G), D)
    scores = torch.matmul(rows, k.permute(0, 2, 3, 1)).float().view(B, G, T, H // G, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, :, :, None], float("-inf"))
    probs = torch.softmax(scores, dim=-1).to(v.dtype).flatten(2, 3)
    return torch.matmul(probs, v.transpose(1, 2)).view(B, G, T, -1, D).transpose(1, 2).reshape(q.shape)


# ---- sequences of different lengths ---------------------------------------------------------------------


def _no_groups(device: torch.device) -> Groups:
    """Nobody sees anything."""
    rows = torch.empty(0, dtype=torch.int64, device=device)
    return Groups((), rows, rows)


def _groups_of_padded(q: Tensor, k: Tensor, layout: Layout) -> Groups:
    """Where the real tokens of right-padded sequences lie in the rows of (B·T, H, D)."""
    return Groups.of(_spans_of_padded(q, layout.q_lengths), _spans_of_padded(k, layout.k_lengths), q.device)


def _spans_of_padded(x: Tensor, lengths: Tensor | None) -> Spans:
    B, length = x.shape[:2]
    lengths = [length] * B if lengths is None else lengths.clamp(max=length).tolist()
    return Spans([b * length for b in range(B)], lengths, B * length)


def _grouped(q: Tensor, k: Tensor, v: Tensor, groups: Groups, options: Options) -> Tensor:
    """q (N,H,D), k and v (M,G,D); rows that are in no group give 0."""
    shapes = groups.shapes
    if not shapes or not all(_is_plain(q, n, m, options) for _, n, m in shapes):
        flat = [x for shape in shapes for x in shape]
        return attention_blocks(q, k, v, groups.q_rows, groups.k_rows, flat, *options)
    q_sorted, k, v = _take(q, groups.q_rows), _take(k, groups.k_rows), _take(v, groups.k_rows)
    q_sizes, k_sizes = [c * n for c, n, _ in shapes], [c * m for c, _, m in shapes]
    parts = zip(shapes, q_sorted.split(q_sizes), k.split(k_sizes), v.split(k_sizes), strict=True)
    out = torch.cat([_group(*part, options) for part in parts])
    return out if groups.q_rows is None else torch.zeros_like(q).index_copy(0, groups.q_rows, out)


def _take(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def _group(shape: tuple[int, int, int], q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    q, k, v = (x.unflatten(0, (shape[0], -1)) for x in (q, k, v))
    return _sdpa(q, k, v, options.scale, causal=options.causal).flatten(0, 1)


# ---- short sequences, padded: of half precision, or with keys before those of their own ---------------------
#
#     p = softmax(scale q kᵀ + mask)    dp = do vᵀ      ds = p (dp − Σ p dp)
#     dv = pᵀ do                        dq = scale ds k   dk = scale dsᵀ q
#
# Attention is a small part of their layer, and what it costs is the number of calls: one for each length takes longer
# than computing the padding.


def _is_short(q: Tensor, k: Tensor, packing: Packing, k_packing: Packing, options: Options) -> bool:
    """Whether this is the way for sequences that attend to themselves, or to something before them, too."""
    fits = packing.max_len > 0 and 0 < k_packing.max_len <= SHORT and q.shape[1:] == k.shape[1:]
    fits = fits and q.device.type == "cpu" and options.window is None and options.softcap is None
    if packing is k_packing or not fits:
        return fits and _is_half_on_cpu(q)
    return all(n <= m for n, m in zip(packing.lengths, k_packing.lengths, strict=True))


def _short(q: Tensor, k: Tensor, v: Tensor, packing: Packing, k_packing: Packing, options: Options) -> Tensor:
    """q (N,H,D), k and v (M,H,D) → (N,H,D)."""
    mask = _mask(packing, k_packing, options.causal, q)
    return _Short.apply(q, k, v, _Padding.of(packing), _Padding.of(k_packing), mask, options)


def _mask(packing: Packing, k_packing: Packing, causal: bool, like: Tensor) -> Tensor:
    """(B or 1, T or 1, S), −inf where a key is padding or lies ahead, else 0. Padded queries see what is there."""
    is_one = packing.is_rectangular and k_packing.is_rectangular
    lengths = (each.lengths_tensor[: 1 if is_one else None, None] for each in (packing, k_packing))
    n, m = (length.clamp_min(1)[..., None] for length in lengths)
    key = torch.arange(k_packing.max_len, device=like.device)
    hidden = key >= m
    if causal:
        hidden = hidden | (key > torch.arange(packing.max_len, device=like.device)[:, None] + (m - n))
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


class _Padding(NamedTuple):
    """Where the tokens of packed sequences lie in (B·T,) rows; None: there is nothing between them."""

    slots: Tensor | None
    shape: tuple[int, int]  # B, T

    @classmethod
    def of(cls, packing: Packing) -> "_Padding":
        slots = None if packing.is_rectangular else packing.padded_slots
        return cls(slots, (packing.num_sequences, packing.max_len))


class _Short(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, of_queries, of_keys, mask, options):
        q, k, v = _pad(q, *of_queries), _pad(k, *of_keys), _pad(v, *of_keys)
        mask = mask if len(mask) == 1 else mask[:, None].expand(-1, len(q) // len(mask), -1, -1).flatten(0, 1)
        scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=options.scale)
        scores = scores.to(_softmax_dtype(q.dtype, k.shape[1]))
        probs = torch.softmax(scores, dim=-1, out=scores).to(q.dtype)
        p, seed = options.dropout_p, options.dropout_seed
        kept = dropout_factors(probs, p, generator_of(seed, q.device)) if p > 0.0 else None
        ctx.save_for_backward(q, k, v, probs, kept)
        ctx.paddings, ctx.scale = (of_queries, of_keys, of_keys), options.scale
        return _unpad(torch.bmm(probs if kept is None else probs * kept, v), *of_queries)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, probs, kept = ctx.saved_tensors
        grad = _pad(grad, *ctx.paddings[0])
        dv = torch.bmm((probs if kept is None else probs * kept).transpose(1, 2), grad)
        dprobs = torch.bmm(grad, v.transpose(1, 2))
        if kept is not None:
            dprobs *= kept
        wide = _softmax_dtype(q.dtype, k.shape[1])
        dprobs, probs = dprobs.to(wide), probs.to(wide)
        dscores = torch._softmax_backward_data(dprobs, probs, -1, wide, grad_input=dprobs).to(q.dtype)
        dq = torch.bmm(dscores, k).mul_(ctx.scale)
        dk = torch.bmm(dscores.transpose(1, 2), q).mul_(ctx.scale)
        grads = (_unpad(x, *padding) for x, padding in zip((dq, dk, dv), ctx.paddings, strict=True))
        return *grads, None, None, None, None


def _softmax_dtype(dtype: torch.dtype, keys: int) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32) if keys < FEW_KEYS else dtype


def _pad(x: Tensor, slots: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """(N,H,D) → (B·H,T,D), zeros where there is no token."""
    if slots is not None:
        x = x.new_zeros(shape[0] * shape[1], *x.shape[1:]).index_copy_(0, slots, x)
    return x.unflatten(0, shape).transpose(1, 2).reshape(-1, shape[1], x.shape[-1])


def _unpad(x: Tensor, slots: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """The reverse."""
    x = x.unflatten(0, (shape[0], -1)).transpose(1, 2).flatten(0, 1)
    return x if slots is None else x.index_select(0, slots)


# ---- a step of generation ----------------------------------------------------------------------------------
#
#     o_b = Σ_j p_bj v_bj        p_b = softmax(scale · q_b·k_bj) over the keys j that are visible to sequence b
#
# `attention` computes the same, but a small model spends more time on looking at its arguments than on arithmetic.
# S is the room for keys, n the keys there are.


def laid_out(keys: Tensor, num_heads: int) -> Tensor:
    """Keys (B,G,S,D) as they are to lie in memory: along S where `Step` is to sum rows, else along D."""
    B, G, S, D = keys.shape
    can_sum = HAS_FAST_SUMS and keys.device.type == "cpu" and keys.dtype in MANY
    if can_sum and num_heads >= SHARING * G and S <= FEW_SHARED:
        can_sum = B * num_heads * D >= MANY_SHARED
    if can_sum and B * num_heads * D >= MANY[keys.dtype]:
        return keys.mT.contiguous().mT
    return keys.contiguous()


class Step:
    """One new token a sequence: what all layers share. Without gradients."""

    def __init__(self, n: int, visible: Tensor | None = None):
        """Of the first n keys those count that are `visible` (B,1,1,n) bool, at least one a sequence; None: all."""
        self.n, self.visible = n, visible
        self.rows: tuple[Rows, Rows] | None = None

    def attend(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """q (B,H,D), keys and values (B,G,S,D) → (B,H,D). Query head h reads key/value head h // R.

        Keys that lie along S, see `laid_out`, are read by sums of rows, others by SDPA: to it the R heads that share
        keys are R queries, which of bfloat16 takes less than half of the time, and of float32 about as long.
        """
        if keys.stride(-1) != 1:
            return self._sum_rows(q, keys, values)
        keys, values = keys[:, :, : self.n], values[:, :, : self.n]
        q = q.unflatten(1, (keys.shape[1], -1))  # (B,G,R,D)
        return scaled_dot_product_attention(q, keys, values, self.visible).flatten(1, 2)

    def _sum_rows(self, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Both products with one query are weighted sums of rows, of kᵀ and of v: read at the rate of the memory.

        With 12 heads of 64 and 16 sequences of 96 tokens SDPA takes 0.68 ms in float32 and 1.43 in bfloat16, this 0.47
        and 0.27; in float32 the two meet at some hundred tokens. All S columns of kᵀ are read, so S must be near n.
        """
        B, H, D = q.shape
        G, S = keys.shape[1:3]
        if self.rows is None:
            of_keys = Rows(B * H, H // G, D, D, q.device)
            self.rows = of_keys, Rows(B * H, H // G, S, self.n, q.device)
        of_keys, of_values = self.rows
        scores = of_keys.weighted_sums(keys.mT, q * D**-0.5)[:, : self.n].float()
        if self.visible is not None:
            scores.unflatten(0, (B, H)).masked_fill_(~self.visible[:, 0], float("-inf"))
        probs = torch.softmax(scores, dim=-1).to(values.dtype)
        return of_values.weighted_sums(values, probs).view(B, H, D)


class Rows:
    """Which rows of a table each head reads: the first n of `size`, which it shares with as many heads as `sharing`."""

    def __init__(self, num_heads: int, sharing: int, size: int, n: int, device: torch.device):
        heads = torch.arange(num_heads, dtype=torch.int32, device=device)
        places = torch.arange(n, dtype=torch.int32, device=device)
        self.numbers = ((heads // sharing * size)[:, None] + places).flatten()  # (num_heads·n,)
        self.starts = heads * n  # where each head's begin, (num_heads,)

    def weighted_sums(self, table: Tensor, weights: Tensor) -> Tensor:
        """Of each head's rows of the table (…,W), by its weights (…): (num_heads, W)."""
        rows = table.flatten(0, -2)
        return embedding_bag(self.numbers, rows, self.starts, mode="sum", per_sample_weights=weights.flatten())
