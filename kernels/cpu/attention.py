"""Attention from PyTorch's own kernels: what runs where Triton does not.

    plain attention          SDPA, for queries and keys of equal length, or one query
    sequences of different   sorted by length, those of equal length together, so that no padding is computed and
    lengths                  no mask is needed (`Groups`)
    short ones in bfloat16   short.py: padded to the longest
    everything else          blocks.py: window, soft cap, dropout; and bfloat16 and float16 on a CPU,
                             where SDPA is slow

Letters: B batch, T queries, S keys, N queries of a packed row, H query heads, G key/value heads, D head dim.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import reference
from kernels.arguments import AttentionOptions as Options
from kernels.arguments import Layout
from kernels.cpu import short
from kernels.cpu.blocks import attention_blocks
from kernels.packing import Groups, Spans

FEW = 16  # so many queries are a step of decoding, not a prompt


def attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    """The arguments of `kernels.attention`, already checked."""
    packing, k_packing, *_ = layout
    if packing is None:
        return _dense(q, k, v, layout, options)
    if packing.is_rectangular and k_packing.is_rectangular and packing.num_tokens and k_packing.num_tokens:
        q, k, v = (x.unflatten(0, (packing.num_sequences, -1)) for x in (q, k, v))
        return _dense(q, k, v, Layout(), options).flatten(0, 1)
    if packing is k_packing and short.suits(q, k, packing, options):
        return short.attention_short(q, k, v, packing, options)
    return _grouped(q, k, v, packing.groups_with(k_packing), options)


def _dense(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    trains = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    if T <= FEW and not trains and options.softcap is None and options.dropout_p == 0.0 and S > 0:
        return _few_queries(q, k, v, layout, options)
    if layout.q_lengths is not None or layout.k_lengths is not None:
        groups = _groups_of_padded(q, k, layout)
    elif _is_plain(q, T, S, options):
        return _sdpa(q, k, v, options.scale, causal=bool(options.causal and T > 1))
    else:
        groups = Groups(((B, T, S),), None, None) if q.numel() and S else Groups((), None, None)
    return _grouped(*(x.flatten(0, 1) for x in (q, k, v)), groups, options).view(q.shape)


def _is_plain(q: Tensor, n: int, m: int, options: Options) -> bool:
    """SDPA can do it, its causal mask being aligned at the first key and ours at the last, and is fast at it."""
    if options.window is not None or options.softcap is not None or options.dropout_p > 0.0 or m == 0:
        return False
    return not (options.causal and n not in (1, m)) and not _is_half_on_cpu(q)


def _is_half_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """SDPA on (B,T,H,D). (torch.compile, to which a length is a symbol, wants to be told that `causal` is a bool.)"""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    gqa = q.shape[1] != k.shape[1]
    out = scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=gqa)
    return out.transpose(1, 2)


# ---- decoding -----------------------------------------------------------------------------------------


def _few_queries(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    """No gradient, few queries: the scores are small, so a mask costs little, and what counts is overhead."""
    (B, T), S = q.shape[:2], k.shape[1]
    causal, window, scale, *_ = options
    _, _, q_lengths, k_lengths = layout
    mask = None
    if q_lengths is not None or k_lengths is not None or window is not None or (causal and T > 1):
        q_lengths = q.new_full((B,), T, dtype=torch.int64) if q_lengths is None else q_lengths
        k_lengths = q.new_full((B,), S, dtype=torch.int64) if k_lengths is None else k_lengths
        mask = reference.attention_mask(T, S, q_lengths, k_lengths, causal=causal, window=window)[:, None]
    attend = plain_products if _is_half_on_cpu(q) else _sdpa
    out = attend(q, k, v, scale, mask)
    if mask is not None:  # softmax over nothing is not a number
        out = out.masked_fill(~mask.any(-1).transpose(1, 2)[..., None], 0.0)
    return out


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
    return _sdpa(q, k, v, options.scale, causal=bool(options.causal and shape[1] > 1)).flatten(0, 1)
