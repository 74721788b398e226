"""What all sides of a kernel share: which of them runs, options, where sequences lie, what is returned, what is
refused.

Letters: B sequences, N rows of logits, V vocabulary.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backend import choose, implementation, is_transformed
from kernels.operators import constant
from kernels.packing import Packing

LEAST_TEMPERATURE = 1e-30  # logits up to 10⁸ divided by it are float32 numbers


class Layout(NamedTuple):
    """Where the queries and keys of attention's sequences lie: in packed rows, or in (B,T) and (B,S), padded on
    the right where there are lengths."""

    packing: Packing | None = None  # of the queries
    k_packing: Packing | None = None
    q_lengths: Tensor | None = None  # (B,)
    k_lengths: Tensor | None = None


class AttentionOptions(NamedTuple):
    """`kernels.attention` explains them."""

    causal: bool
    window: int | None
    scale: float
    softcap: float | None
    dropout_p: float
    dropout_seed: int


class CrossEntropyOptions(NamedTuple):
    """`kernels.cross_entropy` explains them."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    temperature: float = 1.0


class Rows(NamedTuple):
    """What the forward pass knows of rows of logits."""

    loss: Tensor  # (N,) in float32 or float64, and so are the others
    stats: Tensor | None  # (3, N) logprob, lse, entropy
    norm: Tensor  # (2, N) max_j s_j and log Σ_j exp(s_j − max): their sum is lse, but exact only as two


def blank(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B,T,…) with zeros behind each sequence: what stands there may be anything, and 0 · NaN would be NaN."""
    if lengths is None:
        return x
    behind = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(behind[..., None, None], 0.0)


@constant  # torch.compile shall not trace the search
def chosen(device: torch.device, impl: str | None, dtype: torch.dtype, head_dim: int = 0) -> str:
    """Which implementation runs: that of `backend.choose`."""
    if is_transformed():
        return choose(device, impl, dtype, head_dim).impl
    return implementation(device, impl, dtype, head_dim)


# ---- what is refused ----------------------------------------------------------------------------------


def check_options(ignore_index: int, label_smoothing: float, z_loss: float, temperature: float) -> CrossEntropyOptions:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing={label_smoothing} must lie between 0 and 1")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss={z_loss} must not be negative")
    if not temperature > 0.0:
        raise ValueError(f"temperature={temperature} must be positive")
    if temperature < LEAST_TEMPERATURE:
        raise ValueError(f"temperature={temperature} makes logits overflow; at least {LEAST_TEMPERATURE} does not")
    return CrossEntropyOptions(ignore_index, float(label_smoothing), float(z_loss), float(temperature))


def check_targets(targets: Tensor, V: int, ignore_index: int) -> None:
    """Raise for a target that is no word: ValueError, or an assertion on a GPU, which it does not stall, and under
    torch.compile, whose graph it does not break."""
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}, not torch.int64")
    if not torch.compiler.is_compiling() and is_transformed():
        return  # within vmap nobody may look, but gathering a wrong one raises
    if targets.device.type == "cuda" or torch.compiler.is_compiling():
        right = ~_wrong(targets, V, ignore_index).any()
        torch._assert_async(right, f"a target is neither in 0 … {V - 1} nor ignore_index={ignore_index}")
    elif targets.numel() and (targets.min() < 0 or targets.max() >= V):  # mostly not, and then two passes are enough
        wrong = targets[_wrong(targets, V, ignore_index)].tolist()
        if wrong:
            raise ValueError(f"target {wrong[0]} is neither in 0 … {V - 1} nor ignore_index={ignore_index}")


def _wrong(targets: Tensor, V: int, ignore_index: int) -> Tensor:
    return ((targets < 0) | (targets >= V)) & (targets != ignore_index)
