"""Attention of one new query a sequence over its cached keys: a step of generation on a CPU.

    o_b = Σ_j p_bj v_bj        p_b = softmax(scale · q_b·k_bj) over the keys j that are visible to sequence b

`attention` computes the same; here nothing is checked or derived again for every layer, because a small model spends
more time on that than on arithmetic.

Letters: B sequences, S keys, H query heads, G key/value heads, D head dim; R = H/G.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# SDPA takes heads one by one, which in half precision is slow; from so many on, two batched products are up to four
# times as fast (12 heads of 64, 32 sequences: 0.8 against 3.4 ms), if the keys lie as the products read them.
MANY = 33


def laid_out(keys: Tensor) -> Tensor:
    """Keys (B,G,S,D) as they are to lie in memory for `decode_attention`: along D, or along S where products run."""
    is_half_on_cpu = keys.device.type == "cpu" and keys.dtype in (torch.bfloat16, torch.float16)
    if is_half_on_cpu and keys.shape[0] * keys.shape[1] >= MANY:
        return keys.mT.contiguous().mT
    return keys.contiguous()


def decode_attention(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> Tensor:
    """q (B,H,D), keys and values (B,G,S,D), visible (B,1,1,S) bool or None for all → (B,H,D), without gradients.

    Each sequence must see a key. Query head h reads key/value head h // R.
    """
    if keys.stride(-1) != 1:
        return _products(q, keys, values, visible)
    gqa = q.shape[1] != keys.shape[1]
    return scaled_dot_product_attention(q.unsqueeze(2), keys, values, visible, enable_gqa=gqa).squeeze(2)


def _products(q: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """The R query heads that share keys are rows of one product."""
    B, G, _, D = keys.shape
    scores = torch.bmm((q * D**-0.5).view(B * G, -1, D), keys.mT.flatten(0, 1)).float()
    if visible is not None:
        scores.unflatten(0, (B, G)).masked_fill_(~visible, float("-inf"))
    probs = torch.softmax(scores, dim=-1).to(values.dtype)
    return torch.bmm(probs, values.flatten(0, 1)).view(q.shape)
