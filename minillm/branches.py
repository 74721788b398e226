"""Sequences that begin alike, such as the answers to one prompt: what they share is computed once.

Attention is the only layer in which tokens meet. So a row of tokens holds each shared beginning, a stem, once, and what
follows it, the branches, each by itself: all other layers compute that row as it is. Attention looks up the keys and
values of a branch's stem, once for each of its branches, and their gradients are added up again.

Letters: N tokens of the row, M keys that are looked up, H query heads, G key/value heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from kernels import Packing, attention
from kernels.packing import derived


@dataclass(frozen=True, eq=False)
class Branches:
    """Where the sequences of a row lie, and which of them go on from which."""

    own: Packing  # of the tokens, (N,)
    keys: Packing  # what each sequence attends to: its stem, if it has one, and then itself, (M,)
    rows: Tensor  # (M,) int64 in which row of the tokens each of these is
    # (M,) and (N,) int64: the keys in the order of the tokens that they are of, and where those of each token begin.
    # Made on the host with the rest, as a GPU would have to be waited for.
    copies: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, lengths: Sequence[int], stems: Sequence[int | None]) -> "Branches":
        """Sequences of these lengths, in a row, each of which goes on from the one with its stem's number; None: it
        begins by itself."""
        starts = [0, *accumulate(lengths)]
        read = [[i] if stem is None else [stem, i] for i, stem in enumerate(stems)]
        rows = torch.cat([torch.arange(starts[i], starts[i + 1]) for those in read for i in those])
        keys = Packing.from_lengths([sum(lengths[i] for i in those) for those in read])
        return cls(Packing.from_lengths(lengths), keys, rows, copies_of(rows, starts[-1]))

    def to(self, device: torch.device) -> "Branches":
        order, starts = self.copies
        copies = order.to(device), starts.to(device)
        return Branches(self.own.to(device), self.keys.to(device), self.rows.to(device), copies)

    @property
    def lengths(self) -> tuple[int, ...]:
        return self.own.lengths

    @property
    def max_len(self) -> int:
        """Of a sequence with its stem."""
        return self.keys.max_len

    @derived
    def positions(self) -> Tensor:
        """(N,) int64: the place of each token in its own sequence, the stem counted."""
        stems = self.keys.lengths_tensor - self.own.lengths_tensor
        return self.own.positions + stems[self.own.sequence]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        """Causal attention of a row's q (N,H,D), k and v (N,G,D) → (N,H,D); the options are those of `attention`."""
        k, v = (_LookUp.apply(x, self.rows, *self.copies) for x in (k, v))
        return attention(q, k, v, causal=True, packing=self.own, k_packing=self.keys, **options)


def copies_of(rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Of rows (M,) that name each of 0 … count − 1: the places of each number, and where those of each begin."""
    counts = torch.bincount(rows, minlength=count)
    return torch.argsort(rows, stable=True), counts.cumsum(0) - counts


class _LookUp(torch.autograd.Function):
    """x[rows], whose gradient adds up the copies of a row in float32 and in a fixed order, also on GPUs, where
    PyTorch's own may do it in any."""

    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, order: Tensor, starts: Tensor) -> Tensor:
        ctx.save_for_backward(order, starts)
        return x.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        order, starts = ctx.saved_tensors
        sums = embedding_bag(order, grad.flatten(1), starts, mode="sum")
        return sums.view(-1, *grad.shape[1:]), None, None, None
