"""What GPT and BERT are made of.

Letters: N tokens (packed: all sequences of a batch in one row), C width, H query heads, G key/value heads, D head dim.

Parameters stay in the dtype they are stored in (float32 when training); every product runs in the dtype of the
activations that reach it. So a model trains in bfloat16 over float32 weights, or in float64, with the same code.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.cpu.dropout import dropout_factors

# (q (N,H,D), k (N,G,D), v (N,G,D)) → (N,H,D): who attends to whom is the caller's business.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (N, 1, D/2)


class Linear(nn.Linear):
    """y = x Wᵀ + b in the dtype of x."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)

    def merged(self) -> "Linear":
        """The layer with nothing beside its weight, for whoever reads that; see lora.py."""
        return self


class LayerNorm(nn.LayerNorm):
    """(x − mean) / std · weight + bias over the last dimension (Ba et al. 2016, arXiv:1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) · weight over the last dimension (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": partial(F.gelu, approximate="tanh"),  # GPT-2's
    "gelu-erf": F.gelu,  # the exact one, BERT's
    "relu": F.relu,
}


class MLP(nn.Module):
    """Two products with one of ACTIVATIONS between them."""

    def __init__(self, width: int, hidden: int, bias: bool, activation: str):
        super().__init__()
        self.up = Linear(width, hidden, bias)
        self.down = Linear(hidden, width, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class SwiGLU(nn.Module):
    """(silu(x Wg) · x Wu) Wd (Shazeer 2020, arXiv:2002.05202); gate and up are one product."""

    activation = staticmethod(F.silu)

    def __init__(self, width: int, hidden: int, bias: bool):
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias)
        self.down = Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.activation(gate) * up)


class GeGLU(SwiGLU):
    """The same with a GELU, of ModernBERT."""

    activation = staticmethod(F.gelu)


class Transform(nn.Module):
    """norm(activation(x W)): what a head puts between an encoder and its last product."""

    def __init__(self, width: int, activation: Callable[[Tensor], Tensor], norm: nn.Module | None, bias: bool):
        super().__init__()
        self.dense = Linear(width, width, bias)
        self.activation = activation
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


class Attention(nn.Module):
    """Multi-head attention with grouped queries: H/G query heads share one key/value head (arXiv:2305.13245).

    Qwen2 has biases of queries, keys and values and none of the output. With `qk_norm_eps`, every query and key is
    normalised before it is turned (Qwen3; Dehghani et al. 2023, arXiv:2302.05442).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        qkv_bias: bool,
        out_bias: bool,
        qk_norm_eps: float | None = None,
    ):
        super().__init__()
        self.heads = (num_heads, num_kv_heads)  # of queries, and of keys
        self.turned = (num_heads + num_kv_heads, num_kv_heads)  # those that know their place, which values do not
        self.head_dim = head_dim
        self.qkv = Linear(width, sum(self.turned) * head_dim, qkv_bias)
        self.out = Linear(num_heads * head_dim, width, out_bias)
        self.has_qk_norm = qk_norm_eps is not None
        if self.has_qk_norm:
            self.q_norm = RMSNorm(head_dim, eps=qk_norm_eps)
            self.k_norm = RMSNorm(head_dim, eps=qk_norm_eps)

    def forward(self, x: Tensor, rotation: Rotation | None, attend: Attend, at: Tensor | None = None) -> Tensor:
        """(N, C) → (N, C), or where only the tokens `at` (M,) are asked for, their (M, C)."""
        heads = self.qkv(x).view(x.shape[0], -1, self.head_dim)  # (N, H+2G, D)
        turned, v = torch.split_with_sizes(heads, self.turned, dim=1)
        if self.has_qk_norm:
            q, k = torch.split_with_sizes(turned, self.heads, dim=1)
            turned = torch.cat([self.q_norm(q), self.k_norm(k)], dim=1)
        if rotation is not None:
            turned = rotate(turned, rotation)
        q, k = torch.split_with_sizes(turned, self.heads, dim=1)
        return self.out(taken(attend(q, k, v).flatten(1), at))


@dataclass(frozen=True)
class RopeScaling:
    """Slower turning for longer contexts: every pair's speed is divided by `factor`, but for the share of it that is
    kept. Here none is: position interpolation (Chen et al. 2023, arXiv:2306.15595), which files call "linear".
    """

    factor: float

    def __post_init__(self):
        require(1 <= self.factor < math.inf, f"factor={self.factor} must be at least 1")

    @property
    def magnitude(self) -> float:
        """What turned queries and keys are multiplied by."""
        return 1.0

    def kept(self, speeds: Tensor) -> Tensor:
        """Of each pair, in [0, 1]; (D/2,)."""
        return torch.zeros_like(speeds)

    def __call__(self, speeds: Tensor) -> Tensor:
        """Radians a token, (D/2,), before and after."""
        return speeds * torch.lerp(torch.full_like(speeds, 1 / self.factor), torch.ones_like(speeds), self.kept(speeds))


@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Llama 3.1's: pairs that turn slowly turn more slowly still (arXiv:2407.21783)."""

    low_freq_factor: float  # pairs that turn less often than this within `original_max_seq_len` are slowed down fully
    high_freq_factor: float  # those that turn more often than this not at all; between them, in proportion
    original_max_seq_len: int  # the context that the model was trained with first

    def __post_init__(self):
        super().__post_init__()
        ordered = 0 <= self.low_freq_factor < self.high_freq_factor
        require(
            ordered, f"low_freq_factor={self.low_freq_factor} is not below high_freq_factor={self.high_freq_factor}"
        )
        check_positive(self, "original_max_seq_len")

    def kept(self, speeds: Tensor) -> Tensor:
        turns = self.original_max_seq_len * speeds / (2 * math.pi)
        return ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)


@dataclass(frozen=True)
class YarnScaling(RopeScaling):
    """YaRN (Peng et al. 2023, arXiv:2309.00071): the same from pair to pair, and a sharper softmax."""

    original_max_seq_len: int  # the context that the model was trained with first
    fast: float = 32.0  # pairs that turn more often than this within it keep their speed
    slow: float = 1.0  # those that turn less often are slowed down fully; between them, by their place in a head
    magnitude: float = 1.0  # what turned queries and keys are multiplied by
    whole_pairs: bool = True  # the two limits are moved outwards to the next pair

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "original_max_seq_len", "fast", "slow", "magnitude")

    def kept(self, speeds: Tensor) -> Tensor:
        first, last = self.pair_that_turns(self.fast, speeds), self.pair_that_turns(self.slow, speeds)
        if self.whole_pairs:
            first, last = first.floor(), last.ceil()
        first, last = first.clamp_min(0), last.clamp_max(2 * len(speeds) - 1)  # 2 ·, as its authors' code has it
        distance = torch.where(first == last, 1e-3, last - first)
        pairs = torch.arange(len(speeds), dtype=speeds.dtype, device=speeds.device)
        return 1 - ((pairs - first) / distance).clamp(0, 1)

    def pair_that_turns(self, times: float, speeds: Tensor) -> Tensor:
        """Which pair, counted in fractions, turns so many times within the original context."""
        return math.log(self.original_max_seq_len / (2 * math.pi * times)) / -speeds[1].log()


def rope(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, scaling: RopeScaling | None = None
) -> Rotation:
    """The rotations of RoPE (Su et al. 2021, arXiv:2104.09864) for positions (N,), computed in float64."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim
    speeds = theta**-exponents
    angles = positions[:, None] * (scaling(speeds) if scaling else speeds)
    cos, sin = angles.cos(), angles.sin()
    if scaling and scaling.magnitude != 1:
        cos, sin = scaling.magnitude * cos, scaling.magnitude * sin
    return cos.to(dtype)[:, None], sin.to(dtype)[:, None]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns the pairs (x[i], x[i + D/2]) of x (N, heads, D), the pairing of Llama and its relatives."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, dim=-1)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout; costs nothing where it is off."""
    if p == 0 or not training:
        return x
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # compilers know this one only
        return F.dropout(x, p)
    return x * dropout_factors(x, p)


def taken(x: Tensor, at: Tensor | None) -> Tensor:
    """The rows `at` (M,) of x; None: all of them."""
    return x if at is None else x.index_select(0, at)


def asked_of(count: int, at: Tensor | None) -> list[Tensor | None]:
    """For each of so many blocks the tokens whose hidden states are wanted of it, where `at` are those that anybody
    asks for in the end: every token is attended to, but behind the last attention each is by itself."""
    return [None] * (count - 1) + [at]


def recomputed(blocks: Sequence[nn.Module]) -> list[Callable[..., Tensor]]:
    """The same blocks, which keep for the backward pass nothing but what they read, and compute the rest again there
    (Chen et al. 2016, arXiv:1604.06174). Dropout draws the same numbers again."""
    return [partial(checkpoint, block, use_reentrant=False) for block in blocks] if torch.is_grad_enabled() else blocks


@torch.no_grad()
def initialise(module: nn.Module) -> None:
    """BERT's, for nn.Module.apply: weights and embeddings N(0, 0.02²), biases 0; norms are 1 as they are made."""
    if isinstance(module, Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


# ---- configs check themselves: ValueError, with the field named ---------------------------------------


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 < value < math.inf, f"{name}={value} must be positive")


def check_share(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(0 <= value < 1, f"{name}={value} is not in [0, 1)")


def check_multiple(config: Any, name: str, divisor: str) -> None:
    value, of = getattr(config, name), getattr(config, divisor)
    require(value % of == 0, f"{name}={value} is no multiple of {divisor}={of}")


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    value = getattr(config, name)
    require(value in choices, f"{name}={value!r} is not {' or '.join(map(repr, choices))}")


# ---- dropout, by whatever name ---------------------------------------------------------------------------

OF_DROPOUT = ("dropout", "attention_dropout", "classifier_dropout")  # fields of configs


def dropout_everywhere(config_type: type, p: float) -> dict[str, float]:
    """The fields that give configs of this type dropout p wherever their family has any."""
    return {field.name: p for field in fields(config_type) if field.name in OF_DROPOUT}
