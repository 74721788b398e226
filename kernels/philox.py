"""Philox4x32-10, the counter-based random generator of GPUs, in plain PyTorch.

A random number is a pure function of a seed and a counter, so nothing needs to be stored between forward and
backward, and the dropout mask of attention depends on (seed, sequence, head, query, key) alone: not on tiles,
not on padding, not on the device. Triton's `tl.philox` computes the same integers.

Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

import torch
from torch import Tensor

ROUNDS = 10
_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)  # the golden ratio and √3 − 1


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random 32-bit integers for each counter (c0, c1, c2, c3): int64 tensors with values in [0, 2³²).

    The counters are int64 with values in [0, 2³²) and broadcast against each other; the seed has 64 bits.
    """
    key0, key1 = seed & _LOW, (seed >> 32) & _LOW
    c0, c1, c2, c3 = torch.broadcast_tensors(c0, c1, c2, c3)
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + _KEY_STEPS[0]) & _LOW, (key1 + _KEY_STEPS[1]) & _LOW
    return c0, c1, c2, c3


def _multiply(x: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low half of the 64-bit product of two 32-bit numbers, in int64 without overflow."""
    low_part = (x & 0xFFFF) * constant  # < 2⁴⁸
    high_part = (x >> 16) * constant + (low_part >> 16)  # < 2⁴⁸ + 2³²
    return high_part >> 16, ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF)


def dropout_threshold(p: float) -> int:
    """An element is kept when the upper 31 bits of its random integer are at least this: exact everywhere."""
    return min(round(p * 2**31), 2**31 - 1)


def attention_keep(seed: int, p: float, B: int, H: int, T: int, S: int, device: torch.device) -> Tensor:
    """(B, H, T, S) bool: which attention probabilities survive dropout."""
    sequence, head, query, key = (torch.arange(n, device=device) for n in (B, H, T, S))
    bits, *_ = philox(seed, key, query[:, None], head[:, None, None], sequence[:, None, None, None])
    return bits >> 1 >= dropout_threshold(p)
