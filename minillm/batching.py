"""Documents to packed batches: the tokens of a batch lie in one row, without padding.

Letters: E examples, B documents (sequences), N tokens.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kernels import Branches, Packing
from kernels.packing import derived

IGNORE = -100  # the target of a token that is only read


@dataclass(frozen=True)
class Document:
    """What a model reads, and what it is to say of every token, of the whole, or of both."""

    tokens: Sequence[int]
    targets: Sequence[int] = ()  # one a token: the token that follows, or its class; IGNORE where it is only read
    label: int | float | Sequence[float] | None = None  # one for the whole: a class, a number, or a number a class
    segments: Sequence[int] = ()  # one a token: 1 in the second text of a pair; nothing: all 0

    def __post_init__(self):
        if not self.tokens:
            raise ValueError("a document needs a token")
        for name in ("targets", "segments"):
            if (count := len(getattr(self, name))) not in (0, len(self.tokens)):
                raise ValueError(f"a document of {len(self.tokens)} tokens has {count} {name}")
        if not self.targets and self.label is None:
            raise ValueError("a document needs targets or a label: without either nothing is learned from it")

    @property
    def num_asked(self) -> int:
        """How many targets there are, a label among them."""
        return sum(target != IGNORE for target in self.targets) + (self.label not in (None, IGNORE))


Heard = Sequence[tuple[int, Sequence[int]]]  # behind so many tokens of an answer these others, in this order


def answering(prompt: Sequence[int], answer: Sequence[int], heard: Heard = ()) -> Document:
    """The document of a prompt and what should follow it: only the answer has targets, its last token no successor.
    What is `heard` between its tokens is read like the prompt."""
    if not prompt or not answer:
        raise ValueError("a document needs a prompt and an answer")
    tokens, learned = in_order(prompt, answer, heard)
    return Document(tokens[:-1], learned[1:])


def in_order(prompt: Sequence[int], answer: Sequence[int], heard: Heard = ()) -> tuple[list[int], list[int]]:
    """All tokens one after the other, and the same with IGNORE for those that are not of the answer."""
    tokens, learned, begun = [*prompt], [IGNORE] * len(prompt), 0
    for end, reply in (*heard, (len(answer), ())):
        tokens += [*answer[begun:end], *reply]
        learned += [*answer[begun:end], *[IGNORE] * len(reply)]
        begun = end
    return tokens, learned


@dataclass(frozen=True)
class Batch:
    tokens: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64; see Document, as all below
    labels: Tensor  # (B,) int64 classes, (B,) or (B, K) float32 numbers; (0,) where documents have none
    segments: Tensor | None  # (N,) int64; None where there are no pairs of texts
    packing: Packing | Branches
    count: int  # how many targets and labelled documents there are to learn from
    is_spare: bool = False  # whether it stands where a rank has none, with a count of 0: see ranks.py

    @derived
    def asked(self) -> Tensor | None:
        """Which tokens have a target, (M,) int64; None where all have."""
        at = (self.targets != IGNORE).nonzero()[:, 0]
        return at if len(at) < len(self.targets) else None

    def to(self, device: torch.device) -> "Batch":
        if self.tokens.device == device:
            return self
        tensors = (self.tokens, self.targets, self.labels, self.segments, self.asked)
        *moved, asked = (x if x is None else x.to(device) for x in tensors)
        batch = Batch(*moved, self.packing.to(device), self.count, self.is_spare)
        object.__setattr__(batch, "asked", asked)  # looked for here, as a GPU would have to be waited for
        return batch


class DocumentTable:
    """The documents of many examples as flat arrays, from which any batch is cut without a loop over them.

    Documents of one example stay together, such as the two answers that a preference compares.
    """

    def __init__(self, examples: Sequence[Sequence[Document]]):
        documents = [document for example in examples for document in example]
        if not documents:
            raise ValueError("a corpus needs at least one document")
        sizes = np.array([len(d.tokens) for d in documents])
        self.documents = Ranges.of_sizes(np.array([len(example) for example in examples]))
        self.tokens_of = Ranges.of_sizes(sizes)
        self.tokens = flat(d.tokens for d in documents)
        self.targets = flat(d.targets or [IGNORE] * len(d.tokens) for d in documents)
        has_pairs = any(any(d.segments) for d in documents)
        self.segments = flat(d.segments or [0] * len(d.tokens) for d in documents) if has_pairs else None
        labels = [d.label for d in documents if d.label is not None]
        if labels and len(labels) < len(documents):
            raise ValueError("either all documents have a label, or none")
        self.labels = np.array(labels, dtype=np.int64 if all(isinstance(x, int) for x in labels) else np.float32)
        before = np.concatenate([[0], np.cumsum(sizes)])
        first = self.documents.starts
        self.lengths = before[first + self.documents.sizes] - before[first]  # (E,) tokens of each example

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, examples: np.ndarray) -> Batch:
        """The documents of these examples, in this order."""
        documents = self.documents.select(examples)
        rows = self.tokens_of.select(documents)
        targets = self.targets[rows]
        labels = self.labels[documents] if len(self.labels) else self.labels
        arrays = self.tokens[rows], targets, labels, None if self.segments is None else self.segments[rows]
        packing = Packing.from_lengths(self.tokens_of.sizes[documents].tolist())
        tensors = (x if x is None else torch.from_numpy(x) for x in arrays)
        return Batch(*tensors, packing, int((targets != IGNORE).sum()) + len(labels))


@dataclass(frozen=True)
class Ranges:
    """Which consecutive rows of a table belong to each of some things."""

    starts: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of_sizes(cls, sizes: np.ndarray) -> "Ranges":
        return cls(np.cumsum(sizes) - sizes, sizes)

    def select(self, which: np.ndarray) -> np.ndarray:
        """The rows of these things, one after the other."""
        sizes = self.sizes[which]
        ends = np.cumsum(sizes)
        return np.arange(sizes.sum()) - np.repeat(ends - sizes - self.starts[which], sizes)


def flat(sequences: Iterator[Sequence[int]]) -> np.ndarray:
    return np.concatenate([np.array(ids, dtype=np.int64) for ids in sequences])


def pack(documents: Sequence[Document]) -> Batch:
    """One batch of these documents, in this order."""
    return DocumentTable([documents]).batch(np.array([0]))


def pack_branches(documents: Sequence[Document], shared: Sequence[int]) -> Batch:
    """The same, for a causal model. Of each document so many first tokens, which have no targets, are computed once
    for all documents that begin with just these; behind them the documents are in this order. ValueError where they
    have targets, or a document a label or segments."""
    if any(d.label is not None or d.segments for d in documents):
        raise ValueError("documents that share a beginning have targets alone")
    if any(set(d.targets[:length]) - {IGNORE} for d, length in zip(documents, shared, strict=True)):
        raise ValueError("what documents share has no targets")
    beginnings = [tuple(d.tokens[:length]) for d, length in zip(documents, shared, strict=True)]
    counts = Counter(beginnings)
    stems = {stem: i for i, stem in enumerate(stem for stem, count in counts.items() if stem and count > 1)}
    if not stems:
        return pack(documents)
    cuts = [len(each) if each in stems else 0 for each in beginnings]
    rest = [Document(d.tokens[n:], d.targets[n:]) for d, n in zip(documents, cuts, strict=True)]
    first = [Document(stem, [IGNORE] * len(stem)) for stem in stems]
    lengths = ([len(d.tokens) for d in documents] for documents in (first, rest))
    return dataclasses.replace(pack([*first, *rest]), packing=Branches.of(*lengths, [*map(stems.get, beginnings)]))


class Corpus:
    """The documents of all training examples, and which of them each step of a training learns from.

    Every example is seen once an epoch. The order depends on the seed and the epoch alone, so that a training goes on
    exactly where it was interrupted.
    """

    def __init__(
        self,
        draw: Callable[[int], Sequence[Sequence[Document]]],
        seed: int,
        is_redrawn: bool = False,
        counts_examples: bool = False,
    ):
        """`draw(epoch)` gives the documents of each example; it is asked for every epoch, or only once if that
        makes no difference. What is random in them comes from `example_rng`. Where a loss is the mean of one number an
        example, `counts_examples`, all steps have as many examples, so that each counts as much as any other."""
        self.draw, self.seed, self.is_redrawn, self.counts_examples = draw, seed, is_redrawn, counts_examples
        self.table = DocumentTable(draw(0))
        self.epoch, self.first_step, self.steps = -1, 0, []

    def step(
        self, step: int, batch_tokens: int, micro_tokens: int | None = None, rank: int = 0, ranks: int = 1
    ) -> list[Batch]:
        """About `batch_tokens` tokens, in batches of about `micro_tokens`, whose gradients belong together; of several
        ranks the share of one, in as many batches as all others have."""
        if step < self.first_step:
            self.epoch, self.first_step, self.steps = -1, 0, []
            self.table = DocumentTable(self.draw(0)) if self.is_redrawn else self.table
        while step >= self.first_step + len(self.steps):
            self._begin_epoch(batch_tokens)
        examples = self.steps[step - self.first_step]
        shares = [self._parts(examples[r::ranks], micro_tokens) for r in range(ranks)]
        batches = [self.table.batch(part) for part in shares[rank]]
        spare = [self._spare(examples[:1])] * (max(map(len, shares)) - len(batches))
        return batches + spare

    def share(self, *of: int | None) -> list[Batch]:
        """The batches of `step` that a rank learns from, however many others have."""
        return [batch for batch in self.step(*of) if not batch.is_spare]

    def most_tokens(self, batch_tokens: int, micro_tokens: int | None = None, ranks: int = 1) -> int:
        """The most that one rank computes at once in the first epoch."""
        shares = (step[r::ranks] for step in self._steps_of(0, batch_tokens) for r in range(ranks))
        parts = (part for share in shares for part in self._parts(share, micro_tokens))
        return max(int(self.table.lengths[part].sum()) for part in parts)

    def _parts(self, examples: np.ndarray, micro_tokens: int | None) -> list[np.ndarray]:
        if micro_tokens is None or not len(examples):
            return [examples] if len(examples) else []
        return cut(examples, self.table.lengths, micro_tokens)

    def _spare(self, examples: np.ndarray) -> Batch:
        return dataclasses.replace(self.table.batch(examples), count=0, is_spare=True)

    def _begin_epoch(self, batch_tokens: int) -> None:
        self.epoch, self.first_step = self.epoch + 1, self.first_step + len(self.steps)
        if self.is_redrawn and self.epoch > 0:
            self.table = DocumentTable(self.draw(self.epoch))
        self.steps = self._steps_of(self.epoch, batch_tokens)

    def _steps_of(self, epoch: int, batch_tokens: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, epoch))
        return one_epoch(self.table.lengths, batch_tokens, rng, self.counts_examples)

    def steps_per_epoch(self, batch_tokens: int) -> int:
        """Of the first; others have as many, but where documents are redrawn or one is larger than a step."""
        return len(self._steps_of(0, batch_tokens))


def example_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """For what is random in the documents of an example, such as which words are masked."""
    return np.random.default_rng((seed, epoch, index))


def one_epoch(
    lengths: np.ndarray, batch_tokens: int, rng: np.random.Generator, counts_examples: bool = False
) -> list[np.ndarray]:
    """Examples in random order, in batches of like numbers of tokens, or of examples; each batch by length, so that
    what it may be cut into, see `Corpus.step`, is nearly rectangular.

    Batches of one length each would be so, too, but a step has to stand for all the data: there long examples, of
    which a step has few, would count for more than short ones.
    """
    order = rng.permutation(len(lengths))
    if counts_examples:  # each stands for the mean length: whole numbers, so that the count of steps is exact
        batches = cut(order, np.full(len(lengths), lengths.sum()), len(lengths) * batch_tokens)
    else:
        batches = cut(order, lengths, batch_tokens)
    return [batch[np.argsort(lengths[batch], kind="stable")] for batch in batches]


def by_length(sizes: Sequence[int], most: int) -> list[np.ndarray]:
    """Indices of things of these sizes, by size, in parts of about `most` in all."""
    lengths = np.asarray(sizes)
    return [] if not len(lengths) else cut(np.argsort(lengths, kind="stable"), lengths, most)


def parts_of_branches(
    beginnings: Sequence[Sequence[int]], sizes: Sequence[int], most: int, rank: int = 0, ranks: int = 1
) -> list[np.ndarray]:
    """Indices of documents of these sizes, for `pack_branches`, in parts of about `most` tokens in all; of several
    ranks those of one, each with as many tokens. Documents that begin alike, up to the last token of the beginning,
    stay together, as far as that goes: in each part that is computed once."""
    if not sizes:
        return []
    keys = [(len(beginning), tuple(beginning), size) for beginning, size in zip(beginnings, sizes, strict=True)]
    order, adds = np.array(sorted(range(len(keys)), key=keys.__getitem__)), np.array(sizes)
    for before, after in pairwise(order):
        if keys[before][1] == keys[after][1]:
            adds[after] -= len(beginnings[after]) - 1
    ends = np.cumsum(adds[order])
    own = (ends - adds[order] / 2) * ranks // ends[-1] == rank
    return cut(order[own], adds, most) if own.any() else []


def cut(order: np.ndarray, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """The examples in this order, cut into the fewest batches of about `batch_tokens` tokens, all of like size.

    A batch is larger by at most one example; none is a small remainder, whose step would count as much as any other.
    """
    sizes = lengths[order]
    total = sizes.sum()
    count = -(-total // batch_tokens)
    number = ((np.cumsum(sizes) - sizes / 2) * count // max(total, 1)).astype(np.int64)  # by the middle of each
    return np.split(order, np.flatnonzero(np.diff(number)) + 1)
