"""Attention: one function for training, prefill and decoding, and the choice of what computes it.

    o_i = Σ_j p_ij v_j        p_ij = exp(s_ij) / Σ_j' exp(s_ij')        s_ij = scale · q_i·k_j

over the keys j that query i may see.

    eager    reference.py       the definition
    torch    cpu/attention.py   SDPA, or blocks of queries where those are faster
    triton   gpu/attention.py   the GPU kernels; gpu/decode.py those of a step of generation

Letters: B batch, T queries, S keys (N and M in a packed row), H query heads, G key/value heads, D head dim.
"""

import math
from operator import index

import torch
from torch import Tensor

from kernels import reference
from kernels.arguments import AttentionOptions as Options
from kernels.backend import implementation, implementation_in_graph, is_transformed
from kernels.cpu import attention as cpu
from kernels.packing import Layout, Packing


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
    dropout_p   of the attention probabilities; a pure function of `dropout_seed` ≥ 0, so pass another seed every
                step and layer. `eager` and `triton` draw the same Philox mask, `torch` another.
    impl        see kernels/backend.py.

    Queries that see no key, and those beyond their q_length, give 0 and get zero gradient.
    float16, bfloat16 and float32 everywhere; float64 and D > 256 with `torch` and `eager`. Under autocast the
    inputs are cast to its dtype, as SDPA does. ValueError for arguments that do not fit together.
    """
    if torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    layout = Layout(packing, packing if k_packing is None else k_packing, q_lengths, k_lengths)
    _check_tensors(q, k, v, layout)
    if window is not None and window >= _longest(q, k, layout):
        window = None  # as it hides nothing; and numbers of that size would overflow in a kernel
    head_dim = index(q.shape[-1])  # a number, where torch.compile would have a symbol
    scale = head_dim**-0.5 if scale is None else scale
    options = Options(bool(causal), window, scale, softcap, dropout_p, dropout_seed)
    _check_options(options)
    choice = implementation_in_graph if torch.compiler.is_compiling() else implementation
    impl = choice(q.device, impl, q.dtype, head_dim, transformed=is_transformed())
    return _IMPLEMENTATIONS[impl](q, k, v, layout, options)


def _longest(q: Tensor, k: Tensor, layout: Layout) -> int:
    """More than any distance between a query and a key."""
    if layout.packing is None:
        return max(q.shape[1], k.shape[1])
    return max(layout.packing.max_len, layout.k_packing.max_len)


def _eager(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    """The reference; a packed batch is padded first."""
    packing, k_packing, q_lengths, k_lengths = layout
    if packing is None:
        return reference.attention(q, k, v, q_lengths=q_lengths, k_lengths=k_lengths, **options._asdict())
    q, k, v = packing.pad(q), k_packing.pad(k), k_packing.pad(v)
    lengths = Layout(q_lengths=packing.lengths_tensor, k_lengths=k_packing.lengths_tensor)
    return packing.unpad(_eager(q, k, v, lengths, options))


def _triton(q: Tensor, k: Tensor, v: Tensor, layout: Layout, options: Options) -> Tensor:
    from kernels.gpu import attention_launch  # imports Triton, which a machine without a GPU may lack

    return attention_launch.attention(q, k, v, layout, options)


_IMPLEMENTATIONS = {"eager": _eager, "torch": cpu.attention, "triton": _triton}


def leave_untraced() -> None:
    """Has torch.compile step around the implementation `torch`, from here on in this process: how that cuts a packed
    batch up follows from the lengths, in Python, and would be compiled anew for every batch."""
    _IMPLEMENTATIONS["torch"] = torch.compiler.disable(cpu.attention)


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> None:
    """Raise ValueError where the tensors do not fit together."""
    packing, k_packing, q_lengths, k_lengths = layout
    rank = 4 if packing is None else 3
    if q.dim() != rank or k.dim() != rank or k.shape != v.shape or q.shape[-1] != k.shape[-1]:
        wanted = "(B,T,H,D) and (B,S,G,D)" if packing is None else "(N,H,D) and (M,G,D)"
        got = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"attention takes q and k, v of shapes {wanted}, not {got}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q, k and v must have one dtype, not {q.dtype}, {k.dtype} and {v.dtype}")
    if not k.shape[-2] or not q.shape[-2] or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"{q.shape[-2]} query heads cannot share {k.shape[-2]} key/value heads evenly")
    if packing is None:
        if q.shape[0] != k.shape[0]:
            raise ValueError(f"the queries have batch size {q.shape[0]}, the keys {k.shape[0]}")
        if k_packing is not None:
            raise ValueError("k_packing needs packing: keys cannot be packed where queries are not")
        return
    if q_lengths is not None or k_lengths is not None:
        raise ValueError("packed sequences carry their lengths: leave out q_lengths and k_lengths")
    _check_packing(packing, q, "queries")
    _check_packing(k_packing, k, "keys")
    if packing.num_sequences != k_packing.num_sequences:
        raise ValueError(f"{packing.num_sequences} sequences of queries but {k_packing.num_sequences} of keys")


def _check_packing(packing: Packing, x: Tensor, what: str) -> None:
    """A packing that promises more rows than there are would let a kernel read behind them."""
    if packing.num_tokens != x.shape[0]:
        raise ValueError(f"the packing has {packing.num_tokens} tokens but there are {x.shape[0]} {what}")


def _check_options(options: Options) -> None:
    if options.window is not None and options.window < 1:
        raise ValueError(f"window={options.window} shows a query nothing; at least 1 shows it its own key")
    if not -math.inf < options.scale < math.inf:
        raise ValueError(f"scale={options.scale} must be finite")
    if options.softcap is not None and not 0.0 < options.softcap < math.inf:
        raise ValueError(f"softcap={options.softcap} must be positive and finite; None caps nothing")
    if not 0.0 <= options.dropout_p < 1.0:
        raise ValueError(f"dropout_p={options.dropout_p} is not in [0, 1)")
    if not 0 <= options.dropout_seed < 2**63:
        raise ValueError(f"dropout_seed={options.dropout_seed} is not in [0, 2**63)")
