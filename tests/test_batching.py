"""Documents to packed batches: what is read, what is asked for, in which order, and in pieces of which size."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import assert_same, bert_config, gpt, gradients, shake

from minillm.batching import (
    IGNORE,
    Corpus,
    Document,
    DocumentTable,
    Ranges,
    answering,
    cut,
    example_rng,
    one_epoch,
    pack,
)
from minillm.heads import SequenceClassifier
from minillm.objective import backward

token = st.integers(0, 9)
texts = st.lists(token, min_size=1, max_size=4)
pairs = st.lists(st.tuples(texts, texts), min_size=1, max_size=6)  # prompt and answer
LENGTHS = np.random.default_rng(0).integers(1, 20, size=200)


def documents_of(pairs):
    return [answering(prompt, answer) for prompt, answer in pairs]


# ---- a batch -------------------------------------------------------------------------------------


def test_a_batch_by_hand():
    batch = pack(documents_of([([1, 2, 3], [4, 9]), ([5], [9]), ([6, 7], [8, 8, 9])]))
    assert batch.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert batch.targets.tolist() == [IGNORE, IGNORE, 4, 9, 9, IGNORE, 8, 8, 9]
    assert batch.segments is None  # there are no pairs
    assert batch.packing.lengths == (4, 1, 4)
    assert batch.packing.cu_seqlens.tolist() == [0, 4, 5, 9]
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.labels.shape == (0,)
    assert batch.count == 6


def test_a_labelled_batch_by_hand():
    table = DocumentTable(
        [
            [Document([1, 2, 3], label=1, segments=[0, 0, 1])],
            [Document([4], label=0)],
            [Document([5, 6], label=2, segments=[0, 1])],
        ]
    )
    assert table.lengths.tolist() == [3, 1, 2]
    assert len(table) == 3
    batch = table.batch(np.array([2, 0]))
    assert batch.tokens.tolist() == [5, 6, 1, 2, 3]
    assert batch.segments.tolist() == [0, 1, 0, 0, 1]
    assert batch.labels.tolist() == [2, 1]
    assert batch.targets.tolist() == [IGNORE] * 5
    assert batch.packing.lengths == (2, 3)
    assert batch.tokens.dtype == batch.segments.dtype == batch.labels.dtype == torch.int64
    assert batch.count == 2


def test_targets_and_labels_are_counted_together():
    batch = pack([Document([1, 2], [IGNORE, 3], label=1), Document([4], [5], label=0)])
    assert batch.count == 2 + 2


def test_labels_that_are_a_number_for_each_class():
    batch = pack([Document([1], label=(0, 1.0, 1)), Document([2, 3], label=(1, 0, 0))])
    assert batch.labels.tolist() == [[0, 1, 1], [1, 0, 0]]
    assert (batch.labels.dtype, batch.count) == (torch.float32, 2)


def test_labels_that_are_numbers_are_float32():
    batch = pack([Document([1], label=2), Document([2], label=0.5)])
    assert batch.labels.tolist() == [2.0, 0.5]
    assert batch.labels.dtype == torch.float32


@given(pairs)
@settings(deadline=None)
def test_targets_are_the_answer_shifted(pairs):
    batch = pack(documents_of(pairs))
    assert batch.count == sum(len(answer) for _, answer in pairs)
    for (prompt, answer), read, asked in zip(
        pairs, batch.packing.split(batch.tokens), batch.packing.split(batch.targets), strict=True
    ):
        text = [*prompt, *answer]
        assert read.tolist() == text[:-1]
        assert asked.tolist() == [IGNORE] * (len(prompt) - 1) + list(answer)  # the end included


@given(pairs, st.data())
@settings(deadline=None)
def test_a_table_cuts_any_batch(pairs, data):
    documents = documents_of(pairs)
    chosen = data.draw(st.lists(st.integers(0, len(documents) - 1), min_size=1, max_size=5))
    table = DocumentTable([[document] for document in documents])
    batch, truth = table.batch(np.array(chosen)), pack([documents[i] for i in chosen])
    assert len(table) == len(documents)
    assert table.lengths.tolist() == [len(prompt) + len(answer) - 1 for prompt, answer in pairs]
    assert batch.tokens.tolist() == truth.tokens.tolist()
    assert batch.targets.tolist() == truth.targets.tolist()
    assert batch.packing.lengths == truth.packing.lengths
    assert batch.count == truth.count


@given(st.lists(st.lists(texts, max_size=3), min_size=1, max_size=6), st.data())
@settings(deadline=None)
def test_the_documents_of_an_example_stay_together(examples, data):
    examples = [*examples, [[1]]]  # or there might be no document at all
    table = DocumentTable([[Document(text, label=i) for text in texts] for i, texts in enumerate(examples)])
    chosen = [*data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=5)), len(examples) - 1]
    batch = table.batch(np.array(chosen))
    assert table.lengths.tolist() == [sum(map(len, texts)) for texts in examples]
    assert batch.labels.tolist() == [i for i in chosen for _ in examples[i]]
    assert [x.tolist() for x in batch.packing.split(batch.tokens)] == [text for i in chosen for text in examples[i]]


def test_a_batch_is_nobodys_memory():
    table = DocumentTable([[answering([1, 2], [3, 9])]])
    table.batch(np.array([0])).tokens.zero_()
    assert table.batch(np.array([0])).tokens.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DocumentTable([]), "a corpus needs at least one document"),
        (lambda: DocumentTable([[], []]), "a corpus needs at least one document"),
        (lambda: Document([], label=1), "a document needs a token"),
        (lambda: Document([], []), "a document needs a token"),
        (lambda: Document([1]), "a document needs targets or a label"),
        (lambda: answering([], [1]), "a document needs a prompt and an answer"),
        (lambda: answering([1], []), "a document needs a prompt and an answer"),
        (lambda: Document([1, 2], [3]), "a document of 2 tokens has 1 targets"),
        (lambda: Document([1, 2], label=0, segments=[0, 0, 1]), "a document of 2 tokens has 3 segments"),
        (lambda: pack([Document([1], label=0), Document([1], [2])]), "either all documents have a label, or none"),
    ],
)
def test_what_nothing_can_be_learned_from_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.data())
def test_ranges_are_slices_one_after_the_other(sizes, data):
    rows = np.arange(sum(sizes))
    slices = np.split(rows, np.cumsum(sizes)[:-1])
    chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=8))
    ranges = Ranges.of_sizes(np.array(sizes))
    assert ranges.starts.tolist() == [sum(sizes[:i]) for i in range(len(sizes))]
    selected = ranges.select(np.array(chosen, dtype=np.int64))
    assert selected.tolist() == [int(row) for i in chosen for row in slices[i]]


# ---- the order -----------------------------------------------------------------------------------


def corpus_of(lengths, seed=0, draw=None, is_redrawn=False):
    """Every example is one document, whose label is its number."""
    documents = [[Document([1] * n, label=i)] for i, n in enumerate(lengths)]
    return Corpus(draw or (lambda epoch: documents), seed, is_redrawn)


def steps_of(corpus, numbers, batch_tokens=64):
    """The numbers of the examples of each step."""
    return [corpus.step(n, batch_tokens)[0].labels.tolist() for n in numbers]


def epochs_of(corpus, count, batch_tokens=64):
    """The steps of the first epochs, one list an epoch."""
    epochs, number = [[] for _ in range(count + 1)], 0
    while not epochs[count]:
        (batch,) = corpus.step(number, batch_tokens)
        epochs[corpus.epoch].append(batch.labels.tolist())
        number += 1
    return epochs[:count]


def test_every_example_once_an_epoch():
    first, second = epochs_of(corpus_of(LENGTHS), 2)
    for steps in (first, second):
        assert sorted(itertools.chain(*steps)) == list(range(len(LENGTHS)))
    assert first != second


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 80), st.integers(0, 3), st.integers(1, 3))
@settings(deadline=None)
def test_every_example_once_an_epoch_whatever_the_sizes(lengths, batch_tokens, seed, count):
    for steps in epochs_of(corpus_of(lengths, seed), count, batch_tokens):
        assert sorted(itertools.chain(*steps)) == list(range(len(lengths)))
        assert all(steps)  # none is empty


def test_batches_keep_to_their_size():
    (steps,) = epochs_of(corpus_of(LENGTHS), 1)
    for step in steps:
        assert LENGTHS[step].sum() <= 64 + LENGTHS[step].max()  # larger by at most one example
        assert sorted(LENGTHS[step]) == LENGTHS[step].tolist()  # what it may be cut into is of like lengths
    assert np.mean([LENGTHS[step].sum() for step in steps]) > 48  # and are well filled
    assert np.mean([LENGTHS[step].sum() for step in steps]) <= 64


@pytest.mark.parametrize("counts_examples", [False, True])
def test_long_examples_count_as_much_as_short_ones(counts_examples):
    """Where a loss is a mean over the examples of a step, each weighs 1 / n in it: of 15 and of 500 tokens alike, and
    exactly so where examples are counted; where tokens are, a long one leaves a little less room for others."""
    lengths = np.array([15] * 300 + [500] * 300)
    table = [[Document([1] * n, label=i)] for i, n in enumerate(lengths)]
    corpus = Corpus(lambda _: table, seed=0, counts_examples=counts_examples)
    weights = np.zeros(len(lengths))
    for steps in epochs_of(corpus, 10, batch_tokens=32 * 258):
        for step in steps:
            weights[step] += 1 / len(step)
    short, long = weights[:300].mean(), weights[300:].mean()
    assert 0.999 < long / short < (1.001 if counts_examples else 1.1)
    assert not counts_examples or np.ptp(weights) < 0.04 * weights.mean()  # in an epoch, steps have 31 or 32


@pytest.mark.parametrize("count", [1, 7, 64, 65, 1000])
def test_where_examples_are_counted_steps_have_as_many(count):
    lengths = np.random.default_rng(count).integers(1, 400, size=count)
    steps = one_epoch(lengths, 3000, np.random.default_rng(0), counts_examples=True)
    assert np.ptp([len(step) for step in steps]) <= 1
    assert len(steps) == -(-lengths.sum() // 3000)


def test_an_epoch_has_no_order_of_lengths():
    """A step is a sample: how long its examples are on average is not what tells steps apart."""
    (steps,) = epochs_of(corpus_of(np.tile(LENGTHS, 20)), 1, batch_tokens=640)
    means = [np.tile(LENGTHS, 20)[step].mean() for step in steps]
    assert np.std(means) < 1.3 * LENGTHS.std() / np.sqrt(640 / LENGTHS.mean())


def test_the_most_that_is_computed_at_once():
    corpus = corpus_of(LENGTHS)
    for micro_tokens in (None, 20):
        count = corpus.steps_per_epoch(64)
        sizes = [len(part.tokens) for step in range(count) for part in corpus.step(step, 64, micro_tokens)]
        assert corpus.most_tokens(64, micro_tokens) == max(sizes)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [30, 64, 200, 1000])
def test_steps_of_an_epoch_are_of_like_size(seed, size):
    """None is a small remainder, whose targets would count for more than those of the others."""
    lengths = np.random.default_rng(seed).integers(1, 20, size=size)
    (steps,) = epochs_of(corpus_of(lengths, seed), 1, batch_tokens=200)
    sizes = [int(lengths[step].sum()) for step in steps]
    assert len(sizes) == -(-lengths.sum() // 200)
    assert max(sizes) / min(sizes) < 1.3


def test_a_document_longer_than_a_batch_is_a_batch():
    lengths = np.array([3, 100, 2])
    assert [1] in epochs_of(corpus_of(lengths), 1, batch_tokens=10)[0]


def test_lengths_are_shuffled():
    means = [LENGTHS[step].mean() for step in epochs_of(corpus_of(LENGTHS), 1)[0]]
    assert means != sorted(means)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


def test_examples_of_one_length_meet_others_in_every_epoch():
    first, second = ({frozenset(step) for step in epoch} for epoch in epochs_of(corpus_of([4] * 64), 2))
    assert len(first) == len(second) == 4
    assert not first & second


def test_the_order_is_fixed_by_the_seed():
    first, same, other = (steps_of(corpus_of(LENGTHS, seed), range(80)) for seed in (3, 3, 4))
    assert first == same != other


@pytest.mark.parametrize("start", [0, 1, 20, 31, 32, 33, 100, 133])
def test_a_start_continues_exactly(start):
    whole = steps_of(corpus_of(LENGTHS), range(start + 50))
    assert steps_of(corpus_of(LENGTHS), range(start, start + 50)) == whole[start:]


def test_steps_may_be_asked_for_in_any_order():
    whole, corpus = steps_of(corpus_of(LENGTHS), range(100)), corpus_of(LENGTHS)
    for number in (70, 3, 99, 0, 40):
        assert steps_of(corpus, [number]) == [whole[number]]


def test_cut_keeps_the_order_of_equal_lengths():
    parts = cut(np.array([3, 1, 2, 0]), np.array([5, 2, 2, 2]), batch_tokens=4)
    assert [part.tolist() for part in parts] == [[3, 1], [2], [0]]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 80))
@settings(deadline=None)
def test_cut_leaves_nothing_out_and_exceeds_by_one_example(lengths, batch_tokens):
    lengths = np.array(lengths)
    order = np.random.default_rng(0).permutation(len(lengths))
    parts = cut(order, lengths, batch_tokens)
    assert np.concatenate(parts).tolist() == order.tolist()
    assert all(len(part) for part in parts)
    assert len(parts) <= -(-lengths.sum() // batch_tokens)
    for part in parts:
        assert lengths[part].sum() < batch_tokens + lengths[part].max()


def test_nothing_is_cut_into_nothing():
    assert [part.tolist() for part in cut(np.arange(0), np.array([1, 2]), 4)] in ([], [[]])


# ---- documents that are drawn anew in every epoch ------------------------------------------------


def random_documents(seed):
    """Five random tokens an example, of the generator that belongs to it."""

    def draw(epoch):
        rngs = [example_rng(seed, epoch, i) for i in range(40)]
        return [[Document(rng.integers(100, size=5).tolist(), label=i)] for i, rng in enumerate(rngs)]

    return draw


def drawn(corpus, epoch, batch_tokens=50):
    """What each example was in an epoch."""
    length, found = corpus.steps_per_epoch(batch_tokens), {}
    for number in range(epoch * length, (epoch + 1) * length):
        (batch,) = corpus.step(number, batch_tokens)
        found |= dict(zip(batch.labels.tolist(), map(tuple, batch.tokens.view(-1, 5).tolist()), strict=True))
    assert len(found) == 40
    return found


def test_redrawn_documents_differ_by_epoch_and_are_fixed_by_seed_epoch_and_index():
    def fresh(seed=7):
        return corpus_of([], seed, random_documents(seed), is_redrawn=True)

    corpus = fresh()
    epochs = [drawn(corpus, epoch) for epoch in range(3)]
    for first, second in itertools.combinations(epochs, 2):
        assert all(first[i] != second[i] for i in range(40))
    assert drawn(fresh(), 2) == epochs[2]  # without those before
    assert drawn(corpus, 1) == epochs[1]  # also when going back
    assert drawn(fresh(seed=8), 1) != epochs[1]
    assert len(set(epochs[0].values())) == 40  # each example has a generator of its own


def test_what_is_not_redrawn_is_drawn_once():
    asked = []

    def draw(epoch):
        asked.append(epoch)
        return random_documents(7)(epoch)

    corpus = corpus_of([], 7, draw)
    assert drawn(corpus, 0) == drawn(corpus, 1)
    assert asked == [0]


# ---- steps in pieces -----------------------------------------------------------------------------


def classified():
    """A classifier, and documents that a class is asked of."""
    model = shake(SequenceClassifier(bert_config(), "abc")).eval()
    documents = [
        [Document(rng.integers(11, size=n).tolist(), label=int(rng.integers(3)))]
        for n, rng in ((n, np.random.default_rng(i)) for i, n in enumerate(LENGTHS[:60] % 12 + 1))
    ]
    return model, documents


def written():
    """A GPT, and documents that it is to write; some examples have several."""
    rngs = [np.random.default_rng(i) for i in range(60)]
    answers = [
        [
            answering(rng.integers(11, size=rng.integers(1, 6)).tolist(), rng.integers(11, size=n).tolist())
            for n in rng.integers(1, 6, size=rng.integers(1, 3))
        ]
        for rng in rngs
    ]
    return gpt(), answers


@pytest.mark.parametrize("make", [written, classified], ids=["gpt", "classifier"])
@pytest.mark.parametrize("micro_tokens", [1, 20, 45, 90])
def test_pieces_of_a_step_have_the_gradient_of_the_whole(make, micro_tokens):
    """The count is taken once over the step, however many targets each piece holds."""
    model, documents = make()
    corpus = Corpus(lambda epoch: documents, seed=0)
    for number in range(3):
        (whole,), parts = corpus.step(number, 100), corpus.step(number, 100, micro_tokens)
        assert sum(part.count for part in parts) == whole.count
        assert torch.cat([part.tokens for part in parts]).tolist() == whole.tokens.tolist()
        truth = backward(model, whole, 1 / whole.count), gradients(model)
        loss = sum(backward(model, part, 1 / whole.count) for part in parts)
        torch.testing.assert_close(loss, truth[0], rtol=1e-12, atol=0)
        assert_same(truth[1], gradients(model), tolerance=1e-12)
    if micro_tokens < 50:
        assert len(parts) > 1
        assert len({part.count / len(part.tokens) for part in parts}) > 1 or make is classified


def test_pieces_are_of_like_size():
    _, documents = written()
    corpus = Corpus(lambda epoch: documents, seed=0)
    for number in range(corpus.steps_per_epoch(200)):
        sizes = [len(part.tokens) for part in corpus.step(number, 200, 50)]
        assert max(sizes) <= 50 + max(corpus.table.lengths)


def test_one_epoch_is_a_permutation_in_batches():
    batches = one_epoch(LENGTHS, 64, np.random.default_rng(1))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(LENGTHS)))
