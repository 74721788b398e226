"""A classifier that begins as naive Bayes says what counting says, and can learn everything else."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minillm.batching import Document, DocumentTable, pack
from minillm.bayes_start import (
    SPREAD,
    begin_as_naive_bayes,
    calibrated,
    count,
    counting_tells,
    log_likelihood,
    uncounted_sums,
)
from minillm.heads import SequenceClassifier
from minillm.modernbert import ModernBERTConfig

VOCABULARY = 60


def draw(num_classes, size, seed):
    """Texts whose tokens depend on their class, the first class being the commonest."""
    rng = np.random.default_rng(seed)
    tastes = np.random.default_rng(0).dirichlet(np.full(VOCABULARY - 5, 0.3), num_classes)
    documents = []
    for _ in range(size):
        label = int(min(rng.integers(0, num_classes + 1), num_classes - 1))
        tokens = 5 + rng.choice(VOCABULARY - 5, rng.integers(1, 20), p=tastes[label])
        documents.append(Document([2, *tokens.tolist(), 3], label=label))
    return documents


def start(documents, num_classes, seed=0, width=64):
    torch.manual_seed(seed)
    config = ModernBERTConfig(VOCABULARY, 64, num_layers=2, width=width, num_heads=4, pooling="mean")
    model = SequenceClassifier(config, [str(k) for k in range(num_classes)])
    table = DocumentTable([[document] for document in documents])
    begin_as_naive_bayes(model, table)
    return model.eval(), table


def logits(model, documents):
    batch = pack(documents)
    with torch.no_grad():
        return model(batch.tokens, batch.packing).double()


def counted(documents, table, num_classes):
    """What counting says: the scaled mean over a text of log p(token | class), and the scaled prior."""
    counts = count(table, VOCABULARY, num_classes)
    evidence = log_likelihood(counts)
    evidence[counts.sum(1) == 0] = 0  # what no class had says nothing
    scale, prior = calibrated(table, counts)
    return torch.stack([scale * evidence[d.tokens].mean(0) + prior for d in documents])


@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_it_begins_with_the_probabilities_of_counting(num_classes):
    documents = draw(num_classes, 300, seed=1)
    model, table = start(documents, num_classes)
    asked = draw(num_classes, 500, seed=2)
    found, expected = logits(model, asked), counted(asked, table, num_classes)
    assert (found.argmax(1) == expected.argmax(1)).double().mean() >= 0.99
    right = torch.tensor([document.label for document in asked])
    assert (found.argmax(1) == right).double().mean() > 1.5 / num_classes
    torch.testing.assert_close(found.softmax(1), expected.softmax(1), rtol=0, atol=0.08)


def test_with_more_classes_than_dimensions_it_begins_near_it():
    documents = draw(40, 800, seed=1)
    model, table = start(documents, 40)  # a signal of 16 dimensions for 39
    asked = draw(40, 300, seed=2)
    right = torch.tensor([document.label for document in asked])
    found, expected = (
        (each.argmax(1) == right).double().mean() for each in (logits(model, asked), counted(asked, table, 40))
    )
    assert found > 0.7 * expected > 0.2


def test_counts_and_smoothing_are_those_of_the_definition():
    documents = draw(3, 50, seed=3)
    table = DocumentTable([[document] for document in documents])
    counts = count(table, VOCABULARY, 3)
    for k in range(3):
        tokens = [token for document in documents if document.label == k for token in document.tokens]
        assert counts[:, k].tolist() == [tokens.count(v) for v in range(VOCABULARY)]
        known = len({token for document in documents for token in document.tokens})
        for v in (2, 7, 20):
            p = (tokens.count(v) + 1) / (len(tokens) + known)
            assert log_likelihood(counts)[v, k].item() == pytest.approx(np.log(p))


def test_how_sure_it_is_was_judged_without_the_text_itself():
    """With tokens that no two texts share, counting the text itself would make its class certain."""
    documents = [Document([2, 5 + i], label=i % 2) for i in range(50)]
    table = DocumentTable([[document] for document in documents])
    scale, _ = calibrated(table, count(table, VOCABULARY, 2))
    assert scale < 0.2
    shared = [Document([2, 5 + i % 2], label=i % 2) for i in range(50)]
    table = DocumentTable([[document] for document in shared])
    assert calibrated(table, count(table, VOCABULARY, 2))[0] > 3


def test_normalising_changes_no_embedding():
    model, _ = start(draw(3, 100, seed=1), 3)
    weight = model.encoder.tokens.weight.double()
    torch.testing.assert_close(weight.mean(1), torch.zeros(VOCABULARY).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        weight.square().mean(1).sqrt(), torch.full((VOCABULARY,), SPREAD).double(), rtol=1e-4, atol=0
    )
    others = F.normalize(weight[5:], dim=1) @ F.normalize(weight[5:], dim=1).T
    assert others.fill_diagonal_(0).max() < 0.99  # noise tells tokens apart


def test_the_same_seed_is_the_same_start():
    documents = draw(4, 100, seed=1)
    first, same, other = (start(documents, 4, seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["encoder.tokens.weight"], other["encoder.tokens.weight"])


def test_every_weight_learns_within_two_steps():
    """Products onto the stream are 0 at first, so that what is before them has no gradient in the first step."""
    documents = draw(3, 60, seed=1)
    model, table = start(documents, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        batch = table.batch(np.arange(60))
        optimizer.zero_grad()
        model.loss(batch, 1 / 60).backward()
        optimizer.step()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())


def test_each_text_is_judged_by_the_counts_without_it():
    documents = draw(3, 40, seed=4)
    table = DocumentTable([[document] for document in documents])
    text = np.repeat(np.arange(40), table.tokens_of.sizes)
    counts = count(table, VOCABULARY, 3)
    sums = uncounted_sums(table.tokens, text, torch.from_numpy(table.labels), counts)
    totals = counts.sum(0) + (counts.sum(1) > 0).sum()
    for i, document in enumerate(documents):
        for k in range(3):
            times = [counts[token, k] - float(document.label == k) for token in document.tokens]
            expected = sum(torch.log((n + 1) / totals[k]) for n in times)
            assert sums[i, k].item() == pytest.approx(expected.item())


def test_counting_tells_classes_apart_that_differ_in_more_than_order():
    rng = np.random.default_rng(0)
    words = [(5 + rng.permutation(10)).tolist() for _ in range(300)]
    ordered = [Document([2, *(w if i % 2 else sorted(w)), 3], label=i % 2) for i, w in enumerate(words)]
    shuffled = [Document(document.tokens, label=int(rng.integers(2))) for document in ordered]
    for documents, expected in ((ordered, False), (shuffled, False), (draw(4, 300, seed=1), True)):
        assert counting_tells(DocumentTable([[document] for document in documents]), 4) is expected
