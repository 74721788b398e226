"""Documents to packed batches: the tokens of a batch lie in one row, without padding.

Letters: B sequences, N tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels import Packing

IGNORE = -100  # the target of a token that is not trained on


@dataclass(frozen=True)
class Document:
    """What the model reads, and what it should say next; only the answer is trained on. Both are token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]  # its last token is END, so that the model learns to stop


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # (N,) int64: prompt and answer without the last token
    targets: Tensor  # (N,) int64: the token that follows, or IGNORE where that is part of the prompt
    packing: Packing

    @property
    def num_targets(self) -> int:
        return int((self.targets != IGNORE).sum())

    def to(self, device: torch.device) -> "Batch":
        if self.tokens.device == device:
            return self
        packing = Packing(self.packing.cu_seqlens.to(device), self.packing.lengths)
        return Batch(self.tokens.to(device), self.targets.to(device), packing)


class Corpus:
    """Many documents as flat arrays, from which any batch is cut without a loop over its documents."""

    def __init__(self, documents: Sequence[Document]):
        if not documents:
            raise ValueError("a corpus needs at least one document")
        self.tokens = np.concatenate([np.array([*d.prompt, *d.answer], dtype=np.int64) for d in documents])
        self.prompt_lengths = np.array([len(d.prompt) for d in documents])
        total = self.prompt_lengths + np.array([len(d.answer) for d in documents])
        self.starts = np.cumsum(total) - total
        self.lengths = total - 1  # inputs of a document: the last token is only ever a target
        if self.prompt_lengths.min() < 1 or self.lengths.min() < 1:
            raise ValueError("a document needs a prompt and an answer")

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: np.ndarray) -> Batch:
        lengths = self.lengths[indices]
        positions = places(lengths)
        rows = positions + np.repeat(self.starts[indices], lengths)
        answered = positions + 1 >= np.repeat(self.prompt_lengths[indices], lengths)
        targets = np.where(answered, self.tokens[rows + 1], IGNORE)
        packing = Packing.from_lengths(lengths.tolist())
        return Batch(torch.from_numpy(self.tokens[rows]), torch.from_numpy(targets), packing)


def places(lengths: np.ndarray) -> np.ndarray:
    """0, 1, … length − 1 for each length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)


@dataclass(frozen=True)
class LabelledBatch:
    tokens: Tensor  # (N,) int64
    segments: Tensor  # (N,) int64: 1 in the second text of a pair
    labels: Tensor  # (B,) int64: the class of each sequence
    packing: Packing

    def to(self, device: torch.device) -> "LabelledBatch":
        if self.tokens.device == device:
            return self
        packing = Packing(self.packing.cu_seqlens.to(device), self.packing.lengths)
        return LabelledBatch(self.tokens.to(device), self.segments.to(device), self.labels.to(device), packing)


class LabelledCorpus:
    """Many sequences with one label each; as `Corpus`, which holds documents with an answer."""

    def __init__(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], labels: Sequence[int]):
        """`sequences` are token ids and segments of each."""
        if not sequences:
            raise ValueError("a corpus needs at least one sequence")
        tokens, segments = zip(*sequences, strict=True)
        self.tokens, self.segments = (
            np.concatenate([np.array(ids, dtype=np.int64) for ids in x]) for x in (tokens, segments)
        )
        self.labels = np.array(labels, dtype=np.int64)
        self.lengths = np.array([len(ids) for ids in tokens])
        self.starts = np.cumsum(self.lengths) - self.lengths
        if self.lengths.min() < 1:
            raise ValueError("a sequence needs a token")

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: np.ndarray) -> LabelledBatch:
        lengths = self.lengths[indices]
        rows = places(lengths) + np.repeat(self.starts[indices], lengths)
        arrays = self.tokens[rows], self.segments[rows], self.labels[indices]
        return LabelledBatch(*map(torch.from_numpy, arrays), Packing.from_lengths(lengths.tolist()))


def pack(documents: Sequence[Document]) -> Batch:
    """One batch of these documents, in this order."""
    return Corpus(documents).batch(np.arange(len(documents)))


def epochs(lengths: np.ndarray, batch_tokens: int, seed: int, start: int = 0) -> Iterator[np.ndarray]:
    """Indices of one batch after the other, for ever; every document once an epoch, in batches of like length.

    Like lengths make batches nearly rectangular, which every attention likes. The order depends on `seed` and
    the epoch alone, so that `start` (batches already seen) continues exactly where a run was interrupted.
    """
    epoch = 0
    while True:
        batches = one_epoch(lengths, batch_tokens, np.random.default_rng((seed, epoch)))
        yield from batches[start:]
        start = max(0, start - len(batches))
        epoch += 1


def one_epoch(lengths: np.ndarray, batch_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Batches of at most `batch_tokens` tokens (or of one longer document), shuffled."""
    batches = cut(rng.permutation(len(lengths)), lengths, batch_tokens)
    return [batches[i] for i in rng.permutation(len(batches))]


def cut(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """The indices in `order`, by length, those of equal length in the order given, cut into batches."""
    order = order[np.argsort(lengths[order], kind="stable")]
    cuts, room = [], batch_tokens
    for i, length in enumerate(lengths[order].tolist()):
        if length > room and i > 0:
            cuts.append(i)
            room = batch_tokens
        room -= length
    return np.split(order, cuts)
