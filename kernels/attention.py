"""Attention: one function for training, prefill and decoding, and the choice of what computes it.

    o_i = Σ_j p_ij v_j        p_ij = exp(s_ij) / Σ_j' exp(s_ij')        s_ij = scale · q_i·k_j

over the keys j that query i may see.

    eager    reference.py         the definition
    torch    attention_torch.py   SDPA, or blocks of queries where those are faster
    triton   attention_triton.py  the GPU kernels

Letters: B batch, T queries, S keys (N and M in a packed row), H query heads, G key/value heads, D head dim.
"""

import torch
from torch import Tensor

from kernels import attention_torch, reference
from kernels.backend import choose
from kernels.packing import Packing


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    packing: Packing | None = None,
    k_packing: Packing | None = None,
    q_lengths: Tensor | None = None,
    k_lengths: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
    impl: str | None = None,
) -> Tensor:
    """Softmax attention of queries over keys; returns a tensor shaped like `q`.

    Dense:  q (B,T,H,D), k and v (B,S,G,D), optionally q_lengths and k_lengths (B,) of right-padded sequences.
    Packed: q (N,H,D), k and v (M,G,D), with `packing` for the queries and `k_packing` for the keys (default:
            the same); no token sees another sequence.

    H is a multiple of G: query head h reads key/value head h // (H/G).

    causal      query i of n sees key j of m iff j <= i + (m - n): the last query stands beside the last key,
                so that a few new queries see all of a longer cache and each other's past.
    window      only keys less than `window` places away: the last `window` keys, itself included, if causal.
    scale       of the scores, 1/√D by default.
    softcap     scores become softcap · tanh(score / softcap) (Gemma 2, arXiv:2408.00118).
    dropout_p   of the attention probabilities; a pure function of `dropout_seed`, so pass another seed every
                step and layer. `eager` and `triton` draw the same Philox mask, `torch` another.
    impl        see kernels/backend.py.

    Queries that see no key, and those beyond their q_length, give 0 and get zero gradient.
    float16, bfloat16 and float32 everywhere, float64 with `torch` and `eager`. Under autocast the inputs are cast
    to its dtype, as SDPA does.
    """
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    _check(q, k, v, packing, k_packing, q_lengths, k_lengths, window, dropout_p)
    if packing is not None and k_packing is None:
        k_packing = packing
    chosen = choose(q.device, impl).impl
    if chosen == "triton" and q.dtype == torch.float64 and impl in (None, "auto"):
        chosen = "torch"  # GPUs have no float64 tensor cores worth a kernel
    return _IMPLEMENTATIONS[chosen](
        q,
        k,
        v,
        packing=packing,
        k_packing=k_packing,
        q_lengths=q_lengths,
        k_lengths=k_lengths,
        causal=causal,
        window=window,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        softcap=softcap,
        dropout_p=dropout_p,
        dropout_seed=dropout_seed,
    )


def _eager(q: Tensor, k: Tensor, v: Tensor, *, packing: Packing | None, k_packing: Packing | None, **options) -> Tensor:
    """The reference; a packed batch is padded first."""
    if packing is None:
        return reference.attention(q, k, v, **options)
    options |= {"q_lengths": packing.cu_seqlens.diff(), "k_lengths": k_packing.cu_seqlens.diff()}
    return packing.unpad(reference.attention(packing.pad(q), k_packing.pad(k), k_packing.pad(v), **options))


def _triton(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    from kernels import attention_triton  # imports Triton, which a machine without a GPU may lack

    return attention_triton.attention(q, k, v, **options)


_IMPLEMENTATIONS = {"eager": _eager, "torch": attention_torch.attention, "triton": _triton}


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    packing: Packing | None,
    k_packing: Packing | None,
    q_lengths: Tensor | None,
    k_lengths: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> None:
    """Raise ValueError where the arguments do not fit together."""
    rank = 4 if packing is None else 3
    if q.dim() != rank or k.dim() != rank or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        wanted = "(B,T,H,D) and (B,S,G,D)" if packing is None else "(N,H,D) and (M,G,D)"
        got = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"attention takes q and k, v of shapes {wanted}, not {got}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, not {q.dtype}, {k.dtype} and {v.dtype}")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {k.shape[-2]} key/value heads evenly")
    if packing is None and q.shape[0] != k.shape[0]:
        raise ValueError(f"the queries have batch size {q.shape[0]}, the keys {k.shape[0]}")
    if packing is None and k_packing is not None:
        raise ValueError("k_packing needs packing: keys cannot be packed where queries are not")
    if packing is not None:
        _check_packing(packing, q, "queries")
        _check_packing(k_packing or packing, k, "keys")
        if k_packing is not None and len(packing.lengths) != len(k_packing.lengths):
            raise ValueError(f"{len(packing.lengths)} sequences of queries but {len(k_packing.lengths)} of keys")
    if packing is not None and (q_lengths is not None or k_lengths is not None):
        raise ValueError("packed sequences carry their lengths: leave out q_lengths and k_lengths")
    if window is not None and window < 1:
        raise ValueError(f"window={window} shows a query nothing; at least 1 shows it its own key")
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"dropout_p={dropout_p} is not in [0, 1)")


def _check_packing(packing: Packing, x: Tensor, what: str) -> None:
    """A packing that promises more rows than there are would let a kernel read behind them."""
    if packing.num_tokens != x.shape[0]:
        raise ValueError(f"the packing has {packing.num_tokens} tokens but there are {x.shape[0]} {what}")
