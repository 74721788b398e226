"""Attention of one new query a sequence over its cached keys: a step of generation on a CPU.

    o_b = Σ_j p_bj v_bj        p_b = softmax(scale · q_b·k_bj) over the keys j that are visible to sequence b

`attention` computes the same; here nothing is checked or derived again for every layer, because a small model spends
more time on that than on arithmetic.

Letters: B sequences, S keys, H query heads, G key/value heads, D head dim.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels.attention_torch import plain_products


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
    """q (B,H,D), keys and values (B,G,S,D), visible (B,1,1,S) bool or None for all → (B,H,D), without gradients.

    Each sequence must see a key. Query head h reads key/value head h // (H/G).
    """
    many = keys.shape[0] * keys.shape[1] > 32
    if many and q.dtype in (torch.bfloat16, torch.float16):  # SDPA takes those one by one, and twice as long
        rows = (x.transpose(1, 2) for x in (keys, values))
        return plain_products(q[:, None], *rows, q.shape[-1] ** -0.5, visible)[:, 0]
    gqa = q.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(q.unsqueeze(2), keys, values, visible, enable_gqa=gqa).squeeze(2)
