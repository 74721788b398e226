"""Sequences of different lengths in one row of tokens, without padding; and such as begin alike.

Letters: B sequences, N tokens in all, T the longest length.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag


class Groups(NamedTuple):
    """Sequences sorted by length, so that those of equal length form dense blocks: work without padding.

    Sequences without a query or without a key are in no group.
    """

    shapes: tuple[tuple[int, int, int], ...]  # of each group: sequences, queries of each, keys of each
    q_rows: Tensor | None  # the rows of the queries in the order of the groups; None if that is 0, 1, 2, … N − 1
    k_rows: Tensor | None  # the same of the keys

    @classmethod
    def of(cls, queries: "Spans", keys: "Spans", device: torch.device) -> "Groups":
        pairs = list(zip(queries.lengths, keys.lengths, strict=True))
        order = sorted((b for b, pair in enumerate(pairs) if min(pair) > 0), key=pairs.__getitem__)
        shapes = tuple((len(list(run)), *pair) for pair, run in groupby(pairs[b] for b in order))
        return cls(shapes, queries.rows(order, device), keys.rows(order, device))


class Spans(NamedTuple):
    """Where B sequences lie among N rows; on the host."""

    starts: Sequence[int]
    lengths: Sequence[int]
    N: int

    def rows(self, order: list[int], device: torch.device) -> Tensor | None:
        """The rows of these sequences in this order; None if that is 0, 1, 2, … N − 1."""
        starts, lengths = [self.starts[b] for b in order], [self.lengths[b] for b in order]
        before = [0, *accumulate(lengths)]
        total = before.pop()
        if total == self.N and starts == before:
            return None
        shift = torch.tensor([a - b for a, b in zip(starts, before, strict=True)], dtype=torch.int64, device=device)
        lengths = torch.tensor(lengths, dtype=torch.int64, device=device)
        return torch.arange(total, device=device) + torch.repeat_interleave(shift, lengths, output_size=total)


class derived:
    """functools.cached_property without the lock that it has before Python 3.12, which torch.compile cannot take; also
    of a frozen dataclass."""

    def __init__(self, derive: Callable[[Any], Any]):
        self.derive = derive
        self.__doc__ = derive.__doc__

    def __get__(self, of: Any, owner: type | None = None) -> Any:
        value = self.derive(of)
        object.__setattr__(of, self.derive.__name__, value)  # found first from now on
        return value


@dataclass(frozen=True, eq=False)
class Packing:
    """Where each of B sequences lies in a row: sequence i is rows cu_seqlens[i] .. cu_seqlens[i+1] of N.

    Built once for a batch and shared by all layers, so that what can be derived from it is derived once.
    """

    cu_seqlens: Tensor  # (B+1,) int32, on the device of the tokens
    lengths: tuple[int, ...]  # the same on the host, so that no kernel launch waits for the device
    # Numbers, not properties, so that torch.compile does not look at each length and compile for each batch again.
    num_tokens: int = field(init=False)
    max_len: int = field(init=False)
    is_rectangular: bool = field(init=False)  # all are equally long: (N, ...) is a view of (B, T, ...)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", sum(self.lengths))
        object.__setattr__(self, "max_len", max(self.lengths, default=0))
        object.__setattr__(self, "is_rectangular", len(set(self.lengths)) <= 1)

    @classmethod
    def from_lengths(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> "Packing":
        cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(cu_seqlens, tuple(lengths))

    def to(self, device: torch.device) -> "Packing":
        return Packing(self.cu_seqlens.to(device), self.lengths)

    @property
    def num_sequences(self) -> int:
        return len(self.cu_seqlens) - 1

    @derived
    def lengths_tensor(self) -> Tensor:
        """(B,) int64: `lengths` on the device of the tokens."""
        return self.cu_seqlens.diff().long()

    @derived
    def sequence(self) -> Tensor:
        """(N,) int64: which sequence each token belongs to."""
        numbers = torch.arange(self.num_sequences, device=self.cu_seqlens.device)
        return torch.repeat_interleave(numbers, self.lengths_tensor, output_size=self.num_tokens)

    @derived
    def positions(self) -> Tensor:
        """(N,) int64: the place of each token in its own sequence, from 0."""
        rows = torch.arange(self.num_tokens, device=self.cu_seqlens.device)
        return rows - self.cu_seqlens[:-1].long()[self.sequence]

    @derived
    def padded_slots(self) -> Tensor:
        """(N,) int64: the place of each token in a padded (B·T,) row."""
        return self.sequence * self.max_len + self.positions

    def groups_with(self, keys: "Packing") -> Groups:
        """For attention of each sequence to the one of `keys` with the same number; to itself: derived once."""
        if keys is self:
            return self._groups
        return Groups.of(self._spans, keys._spans, self.cu_seqlens.device)

    @derived
    def _spans(self) -> Spans:
        return Spans([0, *accumulate(self.lengths)][:-1], self.lengths, self.num_tokens)

    @derived
    def _groups(self) -> Groups:
        return Groups.of(self._spans, self._spans, self.cu_seqlens.device)

    def pad(self, x: Tensor) -> Tensor:
        """(N, ...) → (B, T, ...), zeros behind each sequence."""
        shape = (self.num_sequences, self.max_len, *x.shape[1:])
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


# ---- sequences that begin alike --------------------------------------------------------------------
#
# Such as the answers to one prompt: what they share is computed once. Attention is the only layer in which tokens meet.
# So the row holds each shared beginning, a stem, once, and what follows it, the branches, each by itself: all other
# layers compute that row as it is. Attention looks up the keys and values of a branch's stem, once for each of its
# branches, and their gradients are added up again. M is the number of keys that are looked up.


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

    def look_up(self, x: Tensor) -> Tensor:
        """Of the rows of all tokens (N, ...) those that are read, (M, ...)."""
        return _LookUp.apply(x, self.rows, *self.copies)


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


# ---- packed or padded ----------------------------------------------------------------------------


class Layout(NamedTuple):
    """Where the queries and keys of attention's sequences lie: in packed rows, or in (B,T) and (B,S), padded on
    the right where there are lengths."""

    packing: Packing | None = None  # of the queries
    k_packing: Packing | None = None
    q_lengths: Tensor | None = None  # (B,)
    k_lengths: Tensor | None = None


def blank(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x (B,T,…) with zeros behind each sequence: what stands there may be anything, and 0 · NaN would be NaN."""
    if lengths is None:
        return x
    behind = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
    return x.masked_fill(behind[..., None, None], 0.0)
