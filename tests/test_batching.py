"""Documents to packed batches: what is read, what is asked for, and in which order."""

from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.batching import IGNORE, Corpus, Document, LabelledCorpus, cut, epochs, pack

tokens = st.integers(0, 9)
documents = st.lists(
    st.builds(Document, st.lists(tokens, min_size=1, max_size=4), st.lists(tokens, min_size=1, max_size=4)),
    min_size=1,
    max_size=6,
)
LENGTHS = np.random.default_rng(0).integers(1, 20, size=200)


def test_a_batch_by_hand():
    batch = pack([Document([1, 2, 3], [4, 9]), Document([5], [9]), Document([6, 7], [8, 8, 9])])
    assert batch.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert batch.targets.tolist() == [IGNORE, IGNORE, 4, 9, 9, IGNORE, 8, 8, 9]
    assert batch.packing.lengths == (4, 1, 4)
    assert batch.packing.cu_seqlens.tolist() == [0, 4, 5, 9]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.num_targets == 6


@given(documents)
@settings(deadline=None)
def test_targets_are_the_answer_shifted(docs):
    batch = pack(docs)
    assert batch.num_targets == sum(len(d.answer) for d in docs)
    for document, read, asked in zip(
        docs, batch.packing.split(batch.tokens), batch.packing.split(batch.targets), strict=True
    ):
        text = [*document.prompt, *document.answer]
        assert read.tolist() == text[:-1]
        assert asked.tolist() == [IGNORE] * (len(document.prompt) - 1) + list(document.answer)  # the end included


@given(documents, st.data())
@settings(deadline=None)
def test_a_corpus_cuts_any_batch(docs, data):
    chosen = data.draw(st.lists(st.integers(0, len(docs) - 1), min_size=1, max_size=5))
    corpus = Corpus(docs)
    batch, truth = corpus.batch(np.array(chosen)), pack([docs[i] for i in chosen])
    assert len(corpus) == len(docs)
    assert corpus.lengths.tolist() == [len(d.prompt) + len(d.answer) - 1 for d in docs]
    assert batch.tokens.tolist() == truth.tokens.tolist()
    assert batch.targets.tolist() == truth.targets.tolist()
    assert batch.packing.lengths == truth.packing.lengths


def test_a_batch_is_nobodys_memory():
    corpus = Corpus([Document([1, 2], [3, 9])])
    corpus.batch(np.array([0])).tokens.zero_()
    assert corpus.batch(np.array([0])).tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize("docs", [[], [Document([], [1])], [Document([1], [])], [Document([1], [2]), Document([], [])]])
def test_empty_documents_are_refused(docs):
    with pytest.raises(ValueError, match="needs"):
        Corpus(docs)


# ---- the order -----------------------------------------------------------------------------------


def one_epoch(stream, size=200):
    batches, seen = [], 0
    while seen < size:
        batches.append(next(stream))
        seen += len(batches[-1])
    return batches


def test_every_document_once_an_epoch():
    stream = epochs(LENGTHS, 64, seed=0)
    first, second = one_epoch(stream), one_epoch(stream)
    for batches in (first, second):
        assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
    assert [b.tolist() for b in first] != [b.tolist() for b in second]


def test_batches_keep_to_their_size_and_to_like_lengths():
    batches = one_epoch(epochs(LENGTHS, 64, seed=0))
    for batch in batches:
        longest = LENGTHS[batch].max()
        assert LENGTHS[batch].sum() <= 64
        assert longest - LENGTHS[batch].min() <= 4
    assert np.mean([LENGTHS[batch].sum() for batch in batches]) > 48  # and are well filled


def test_a_document_longer_than_a_batch_is_a_batch():
    lengths = np.array([3, 100, 2])
    assert [100] in [lengths[b].tolist() for b in one_epoch(epochs(lengths, 10, seed=0), 3)]


def test_lengths_are_shuffled():
    means = [LENGTHS[batch].mean() for batch in one_epoch(epochs(LENGTHS, 64, seed=0))]
    assert means != sorted(means)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_the_order_is_fixed_by_the_seed():
    first, same, other = ([b.tolist() for b in islice(epochs(LENGTHS, 64, s), 80)] for s in (3, 3, 4))
    assert first == same != other


@pytest.mark.parametrize("start", [0, 1, 20, 39, 40, 41, 100, 133])
def test_a_start_continues_exactly(start):
    whole = [b.tolist() for b in islice(epochs(LENGTHS, 64, 0), start + 50)]
    assert [b.tolist() for b in islice(epochs(LENGTHS, 64, 0, start=start), 50)] == whole[start:]


def test_a_labelled_batch_by_hand():
    corpus = LabelledCorpus([([1, 2, 3], [0, 0, 1]), ([4], [0]), ([5, 6], [0, 1])], labels=[1, 0, 2])
    assert corpus.lengths.tolist() == [3, 1, 2]
    assert len(corpus) == 3
    batch = corpus.batch(np.array([2, 0]))
    assert batch.tokens.tolist() == [5, 6, 1, 2, 3]
    assert batch.segments.tolist() == [0, 1, 0, 0, 1]
    assert batch.labels.tolist() == [2, 1]
    assert batch.packing.lengths == (2, 3)
    assert batch.tokens.dtype == batch.segments.dtype == batch.labels.dtype == torch.int64


@pytest.mark.parametrize("sequences", [[], [([1], [0]), ([], [])]])
def test_a_labelled_corpus_needs_tokens(sequences):
    with pytest.raises(ValueError, match=r"a (corpus|sequence) needs"):
        LabelledCorpus(sequences, [0] * len(sequences))


def test_cut_keeps_the_order_of_equal_lengths():
    batches = cut(np.array([3, 1, 2, 0]), np.array([5, 2, 2, 2]), batch_tokens=4)
    assert [batch.tolist() for batch in batches] == [[3, 1], [2], [0]]
