"""Sequences of different lengths in one row of tokens, without padding.

Letters: B sequences, N tokens in all, T the longest length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """Where each of B sequences lies in a row: sequence i is rows cu_seqlens[i] .. cu_seqlens[i+1] of N.

    Built once for a batch and shared by all layers, so that what can be derived from it is derived once.
    """

    cu_seqlens: Tensor  # (B+1,) int32, on the device of the tokens
    lengths: tuple[int, ...]  # the same on the host, so that no kernel launch waits for the device

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Packing":
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(cu_seqlens, tuple(lengths))

    @property
    def max_len(self) -> int:
        return max(self.lengths, default=0)

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @cached_property
    def is_rectangular(self) -> bool:
        """All sequences are equally long, so that (N, ...) is a view of (B, T, ...)."""
        return len(set(self.lengths)) <= 1

    @cached_property
    def lengths_tensor(self) -> Tensor:
        """(B,) int64: `lengths` on the device of the tokens."""
        return self.cu_seqlens.diff().long()

    @cached_property
    def sequence(self) -> Tensor:
        """(N,) int64: which sequence each token belongs to."""
        numbers = torch.arange(len(self.lengths), device=self.cu_seqlens.device)
        return torch.repeat_interleave(numbers, self.lengths_tensor, output_size=self.num_tokens)

    @cached_property
    def positions(self) -> Tensor:
        """(N,) int64: the place of each token in its own sequence, from 0."""
        rows = torch.arange(self.num_tokens, device=self.cu_seqlens.device)
        return rows - self.cu_seqlens[:-1].long()[self.sequence]

    @cached_property
    def padded_slots(self) -> Tensor:
        """(N,) int64: the place of each token in a padded (B·T,) row."""
        return self.sequence * self.max_len + self.positions

    def pad(self, x: Tensor) -> Tensor:
        """(N, ...) → (B, T, ...), zeros behind each sequence."""
        shape = (len(self.lengths), self.max_len, *x.shape[1:])
        if self.is_rectangular:
            return x.view(shape)
        return x.new_zeros(shape).flatten(0, 1).index_copy(0, self.padded_slots, x).view(shape)

    def unpad(self, x: Tensor) -> Tensor:
        """(B, T, ...) → (N, ...), the reverse of `pad`."""
        if self.is_rectangular:
            return x.reshape(-1, *x.shape[2:])
        return x.flatten(0, 1)[self.padded_slots]

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """(N, ...) → B views (length, ...)."""
        return x.split(self.lengths)
