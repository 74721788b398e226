"""What all sides of a kernel share: its options, and what is returned.

Letters: N rows of logits.
"""

from typing import NamedTuple

from torch import Tensor


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
