"""Attention from PyTorch's own kernels: what runs where Triton does not.

Letters: B batch, T queries, S keys, N tokens of a packed row, H query heads, G key/value heads, D head dim.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import reference
from kernels.packing import Packing


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    packing: Packing | None,
    k_packing: Packing | None,
    q_lengths: Tensor | None,
    k_lengths: Tensor | None,
    causal: bool,
    window: int | None,
    scale: float | None,
    softcap: float | None,
    dropout_p: float,
    dropout_seed: int,
) -> Tensor:
    """The arguments of `kernels.attention`, already checked."""
    if packing is not None:
        q_pad, k_pad, v_pad = packing.pad(q), k_packing.pad(k), k_packing.pad(v)
        # Behind a causal mask right padding is invisible, so a packed batch of whole sequences needs no mask.
        maskless = (packing.is_rectangular and k_packing.is_rectangular) or (causal and packing is k_packing)
        out = attention(
            q_pad,
            k_pad,
            v_pad,
            packing=None,
            k_packing=None,
            q_lengths=None if maskless else _lengths(packing),
            k_lengths=None if maskless else _lengths(k_packing),
            causal=causal,
            window=window,
            scale=scale,
            softcap=softcap,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
        )
        return packing.unpad(out)

    B, T, S = q.shape[0], q.shape[1], k.shape[1]
    if softcap is not None or dropout_p > 0.0:
        return reference.attention(
            q,
            k,
            v,
            q_lengths=q_lengths,
            k_lengths=k_lengths,
            causal=causal,
            window=window,
            scale=scale,
            softcap=softcap,
            dropout_p=dropout_p,
            dropout_seed=dropout_seed,
        )
    mask = None
    if q_lengths is not None or k_lengths is not None or window is not None or (causal and T not in (1, S)):
        q_lengths = q.new_full((B,), T, dtype=torch.int64) if q_lengths is None else q_lengths
        k_lengths = q.new_full((B,), S, dtype=torch.int64) if k_lengths is None else k_lengths
        mask = reference.attention_mask(T, S, q_lengths, k_lengths, causal=causal, window=window)[:, None]
    out = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal and mask is None and T > 1,
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    ).transpose(1, 2)
    if mask is not None:
        out = out.masked_fill(~mask.any(-1).transpose(1, 2)[..., None], 0.0)
    return out


def _lengths(packing: Packing) -> Tensor:
    return packing.cu_seqlens.diff()
