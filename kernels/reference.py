"""The definitions, in plain PyTorch: truth of the tests, fallback, and baseline of the benchmarks at once.

Nothing here is clever. Any floating dtype works, float64 included; autograd does the backward.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, D head dim, V vocabulary, N rows.
"""

import torch
from torch import Tensor

from kernels.packing import blank
from kernels.philox import attention_keep

# ---- attention ------------------------------------------------------------------------------------------


def attention_mask(
    T: int,
    S: int,
    q_lengths: Tensor,
    k_lengths: Tensor,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """(B, T, S) bool: which query sees which key.

    Query i of a sequence with n queries and m keys stands at place i + (m - n) of the keys: the last query
    beside the last key. That is the usual triangle when n = m, and the right one when the keys of earlier tokens
    are cached.
    """
    query = torch.arange(T, device=q_lengths.device)[:, None]
    key = torch.arange(S, device=q_lengths.device)[None, :]
    n, m = q_lengths[:, None, None], k_lengths[:, None, None]
    place = query + (m - n)
    visible = (query < n) & (key < m)
    if causal:
        visible = visible & (key <= place)
    if window is not None:
        visible = visible & ((key - place).abs() < window)
    return visible


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    q_lengths: Tensor | None = None,
    k_lengths: Tensor | None = None,
    window: int | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    dropout_p: float = 0.0,
    dropout_seed: int = 0,
) -> Tensor:
    """softmax(q kᵀ · scale) v over the visible keys. q (B,T,H,D); k, v (B,S,G,D) → (B,T,H,D).

    A query that sees nothing gives 0 and takes part in no gradient. `kernels.attention` explains the arguments.
    """
    B, T, H, D = q.shape
    S, G = k.shape[1], k.shape[2]
    q, k, v = blank(q, q_lengths), blank(k, k_lengths), blank(v, k_lengths)
    k, v = (x.repeat_interleave(H // G, dim=2) for x in (k, v))  # query head h reads key head h // (H / G)
    scores = torch.einsum("bthd,bshd->bhts", q, k) * (D**-0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)

    q_lengths = q.new_full((B,), T, dtype=torch.int64) if q_lengths is None else q_lengths
    k_lengths = q.new_full((B,), S, dtype=torch.int64) if k_lengths is None else k_lengths
    hidden = ~attention_mask(T, S, q_lengths, k_lengths, causal=causal, window=window)[:, None]
    # The lowest finite number instead of -inf, and zeros afterwards: a fully hidden row stays free of NaN.
    scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    probs = torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)
    if dropout_p > 0.0:
        keep = attention_keep(dropout_seed, dropout_p, B, H, T, S, q.device)
        probs = torch.where(keep, probs / (1.0 - dropout_p), 0.0)
    return torch.einsum("bhts,bshd->bthd", probs, v)


# ---- cross-entropy --------------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition of `kernels.cross_entropy`: (..., V) and (...) → loss, logprob, lse, entropy (...).

    Only the loss is differentiable. All four are 0 where the target is ignored.
    """
    s = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    counted = targets != ignore_index
    label = targets.masked_fill(~counted, 0)[..., None]
    top = s.detach().amax(-1, keepdim=True)
    logp = s - top - (s - top).exp().sum(-1, keepdim=True).log()  # small numbers first, or ±1e4 costs all digits
    lse = s.logsumexp(-1)
    logprob = logp.gather(-1, label).squeeze(-1)

    loss = -(1 - label_smoothing) * logprob + z_loss * lse.square()
    if label_smoothing:
        loss = loss - label_smoothing * logp.mean(-1)
    entropy = torch.special.entr(logp.detach().exp()).sum(-1)
    loss, logprob, lse, entropy = (x.masked_fill(~counted, 0) for x in (loss, logprob, lse, entropy))
    return loss, logprob.detach(), lse.detach(), entropy


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    token_weights: Tensor | float | None = None,
    bias: Tensor | None = None,
    **options: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The definition of `kernels.linear_cross_entropy`: all logits at once, then `cross_entropy`, then the sum."""
    bias = None if bias is None else bias.to(hidden.dtype)
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype), bias)
    loss, *stats = cross_entropy(logits, targets, **options)
    if token_weights is not None:
        w = torch.as_tensor(token_weights, dtype=loss.dtype, device=loss.device)
        loss = torch.where(w != 0, w * loss, 0.0).sum()
    return loss, *stats
