"""Sequences that begin alike, such as the answers to one prompt: what they share is computed once.

Attention is the only layer in which tokens meet. So a row of tokens holds each shared beginning, a stem, once, and what
follows it, the branches, each by itself: all other layers compute that row as it is. Attention looks up the keys and
values of a branch's stem, once for each of its branches, and their gradients are added up again.

Letters: N tokens of the row, M keys that are looked up, H query heads, G key/value heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from kernels import Packing, attention
from kernels.packing import derived


@dataclass(frozen=True, eq=False)
class Branches:
    """Where the sequences of a row lie: the stems first, then the branches, each of which goes on from a stem or from
    nothing."""

    stems: Packing
    own: Packing  # of the branches' tokens
    keys: Packing  # what each branch attends to: its stem, and then itself, (M,)
    rows: Tensor  # (M,) int64 in which row of all tokens each of these is
    # (M,) and (N,) int64: the keys in the order of the tokens that they are of, and where those of each token begin.
    # Made on the host with the rest, as a GPU would have to be waited for.
    copies: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, stems: Sequence[int], branches: Sequence[int], stem_of: Sequence[int | None]) -> "Branches":
        """Stems of these lengths, and branches, each with its stem's number; None: it begins by itself."""
        starts, count = [0, *accumulate([*stems, *branches])], len(stems)
        rows, lengths = [], []
        for i, stem in enumerate(stem_of):
            read = [count + i] if stem is None else [stem, count + i]
            rows += [torch.arange(starts[j], starts[j + 1]) for j in read]
            lengths.append(sum(starts[j + 1] - starts[j] for j in read))
        rows = torch.cat(rows)
        packings = map(Packing.from_lengths, (stems, branches, lengths))
        return cls(*packings, rows, copies_of(rows, starts[-1]))

    def to(self, device: torch.device) -> "Branches":
        packings = (each.to(device) for each in (self.stems, self.own, self.keys))
        order, starts = self.copies
        return Branches(*packings, self.rows.to(device), (order.to(device), starts.to(device)))

    @property
    def lengths(self) -> tuple[int, ...]:
        """Of the sequences as they lie in the row."""
        return *self.stems.lengths, *self.own.lengths

    @property
    def max_len(self) -> int:
        """Of a branch with its stem, which is longer than that."""
        return self.keys.max_len

    @derived
    def positions(self) -> Tensor:
        """(N,) int64: the place of each token in its sequence, of a branch with the stem before it."""
        read = self.keys.lengths_tensor - self.own.lengths_tensor
        return torch.cat([self.stems.positions, self.own.positions + read[self.own.sequence]])

    def attend(self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float, dropout_seed: int) -> Tensor:
        """Causal attention of a row's q (N,H,D), k and v (N,G,D) → (N,H,D)."""
        count, options = self.stems.num_tokens, {"dropout_p": dropout_p, "dropout_seed": dropout_seed}
        of_stems = attention(q[:count], k[:count], v[:count], causal=True, packing=self.stems, **options)
        k, v = (_LookUp.apply(x, self.rows, *self.copies) for x in (k, v))
        of_own = attention(q[count:], k, v, causal=True, packing=self.own, k_packing=self.keys, **options)
        return torch.cat([of_stems, of_own])


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
