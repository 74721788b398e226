"""Dropout's random factors from PyTorch's generators: forgotten after the step, unlike those of philox.py.

On a CPU PyTorch draws a number for each element, one after the other, which takes longer than all else about dropout;
here 64 random bits serve four elements.
"""

import torch
from torch import Tensor

LEVELS = 2**16  # p is rounded to a multiple of 1/LEVELS; the factors to what that makes the expectation 1


def dropout_factors(like: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Shaped like `like`, of its dtype, on its device: 0 with probability p, else 1/(1 − p) (Srivastava et al. 2014).

    0 ≤ p < 1. Without a generator, torch's global one of the device.
    """
    if like.device.type != "cpu":
        return torch.empty_like(like).bernoulli_(1 - p, generator=generator).div_(1 - p)
    kept = max(1, round((1 - p) * LEVELS))
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(
        -(2**63), None, generator=generator
    )
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    # `kept` of the values −2¹⁵ … 2¹⁵ − 1; all of them would be a bound beyond the type's.
    return (bits <= kept - LEVELS // 2 - 1).to(like.dtype).mul_(LEVELS / kept)


def generator_of(seed: int, device: torch.device) -> torch.Generator:
    """0 ≤ seed < 2⁶³; smaller ones than 2³² are PyTorch's own, which looks at no more bits on a CPU."""
    high, low = divmod(seed, 2**32)
    return torch.Generator(device).manual_seed(low ^ high * 0x9E3779B1 % 2**32)
