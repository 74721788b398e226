"""What the CPU and the GPU side of a kernel share: its options, where its sequences lie, what it returns.

Letters: B sequences, N rows of logits.
"""

from typing import NamedTuple

from torch import Tensor

from kernels.packing import Packing


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
