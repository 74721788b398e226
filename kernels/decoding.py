"""Attention of one new query a sequence over its cached keys: a step of generation on a CPU.

    o_b = Σ_j p_bj v_bj        p_b = softmax(scale · q_b·k_bj) over the keys j that are visible to sequence b

`attention` computes the same; here nothing is checked or derived again for every layer, because a small model spends
more time on that than on arithmetic.

Letters: B sequences, S capacity, n keys, H query heads, G key/value heads, D head dim; R = H/G.
"""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

# Numbers in the queries of all sequences from which on sums of rows are faster than SDPA.
MANY = {torch.float32: 3000, torch.bfloat16: 384}
HAS_FAST_SUMS = "fbgemm" in torch.backends.quantized.supported_engines  # what computes them, on x86


def laid_out(keys: Tensor, num_heads: int) -> Tensor:
    """Keys (B,G,S,D) as they are to lie in memory for `decode_attention`: along S where it sums rows, else along D."""
    can_sum = HAS_FAST_SUMS and keys.device.type == "cpu" and keys.dtype in MANY
    if can_sum and keys.shape[0] * num_heads * keys.shape[3] >= MANY[keys.dtype]:
        return keys.mT.contiguous().mT
    return keys.contiguous()


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, n: int, visible: Tensor | None = None) -> Tensor:
    """q (B,H,D), keys and values (B,G,S,D) of which the first n count, visible (B,1,1,n) bool or None for all
    → (B,H,D), without gradients.

    Each sequence must see a key. Query head h reads key/value head h // R.
    """
    if keys.stride(-1) != 1:
        return _sums_of_rows(q, keys, values, n, visible)
    gqa = q.shape[1] != keys.shape[1]
    keys, values = keys[:, :, :n], values[:, :, :n]
    return scaled_dot_product_attention(q.unsqueeze(2), keys, values, visible, enable_gqa=gqa).squeeze(2)


def _sums_of_rows(q: Tensor, keys: Tensor, values: Tensor, n: int, visible: Tensor | None) -> Tensor:
    """Both products with one query are weighted sums of rows, of kᵀ and of v, and are read at the memory's own rate.

    SDPA takes up to twice as long in float32 and five to twelve times in bfloat16 (12 heads of 64, 16 sequences of 96
    tokens: 0.68 against 0.47 ms, and 1.43 against 0.27); batched products are no better than SDPA in float32, and
    twice as slow as sums in bfloat16.
    """
    B, G, S, D = keys.shape
    H = q.shape[1]
    scores = _weighted_sums(q * D**-0.5, keys.mT, *rows(B * H, H // G, D, D))[:, :n].float()
    if visible is not None:
        scores.unflatten(0, (B, H)).masked_fill_(~visible[:, 0], float("-inf"))
    probs = torch.softmax(scores, dim=-1).to(values.dtype)
    return _weighted_sums(probs, values, *rows(B * H, H // G, S, n)).view(q.shape)


def _weighted_sums(weights: Tensor, table: Tensor, rows: Tensor, starts: Tensor) -> Tensor:
    """(B·H, W): for each head the sum of its rows of the table (…,W), each times one of the weights (…)."""
    return embedding_bag(rows, table.flatten(0, -2), starts, mode="sum", per_sample_weights=weights.flatten())


@lru_cache(maxsize=2)  # every layer of a step asks for the same two
def rows(num_heads: int, sharing: int, size: int, n: int) -> tuple[Tensor, Tensor]:
    """The first n of the `size` rows that each head reads, (num_heads·n,), and where each head's begin, (num_heads,).

    As many heads as `sharing` says read the same rows.
    """
    heads = torch.arange(num_heads, dtype=torch.int32)
    numbers = (heads // sharing * size)[:, None] + torch.arange(n, dtype=torch.int32)
    return numbers.flatten(), heads * n
