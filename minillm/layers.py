"""What GPT and BERT are made of.

Letters: N tokens (packed: all sequences of a batch in one row), C width, H query heads, G key/value heads, D head dim.

Parameters stay in the dtype they are stored in (float32 when training); every product runs in the dtype of the
activations that reach it. So a model trains in bfloat16 over float32 weights, or in float64, with the same code.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# (q (N,H,D), k (N,G,D), v (N,G,D)) → (N,H,D): who attends to whom is the caller's business.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (N, 1, D/2)


class Linear(nn.Linear):
    """y = x Wᵀ + b in the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """(x − mean) / std · weight + bias over the last dimension (Ba et al. 2016, arXiv:1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class MLP(nn.Module):
    """Two products with a GELU between them; `approximate` is "tanh" (GPT-2) or "none" (BERT)."""

    def __init__(self, width: int, hidden: int, bias: bool, approximate: str):
        super().__init__()
        self.up = Linear(width, hidden, bias)
        self.down = Linear(hidden, width, bias)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate=self.approximate))


class SwiGLU(nn.Module):
    """(silu(x Wg) · x Wu) Wd (Shazeer 2020, arXiv:2002.05202); gate and up are one product."""

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias)
        self.down = Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Attention(nn.Module):
    """Multi-head attention with grouped queries: H/G query heads share one key/value head (arXiv:2305.13245)."""

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, head_dim: int, bias: bool):
        super().__init__()
        self.heads = (num_heads, num_kv_heads, num_kv_heads)
        self.head_dim = head_dim
        self.qkv = Linear(width, sum(self.heads) * head_dim, bias)
        self.out = Linear(num_heads * head_dim, width, bias)

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim))  # (N, H+2G, D)
        q, k, v = heads.split(self.heads, dim=1)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self.out(attend(q, k, v).flatten(1))


def rope(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotation:
    """The rotations of RoPE (Su et al. 2021, arXiv:2104.09864) for positions (N,), computed in float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    angles = positions[:, None] * theta**-exponents
    return angles.cos().to(dtype)[:, None], angles.sin().to(dtype)[:, None]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns the pairs (x[i], x[i + D/2]) of x (N, heads, D), the pairing of Llama and its relatives."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout; costs nothing where it is off."""
    return F.dropout(x, p) if p > 0 and training else x


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds; configs check themselves with it."""
    if not condition:
        raise ValueError(message)
