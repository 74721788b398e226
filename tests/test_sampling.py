"""Sampling: what is cut is what transformers cuts, what is drawn is drawn from what remains."""

import math

import pytest
import torch

from minillm import generate
from minillm.generate import GREEDY, Sampling, cut, draw

V = 40


def logits(rows=6, seed=0):
    return 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distribution(scores, sampling):
    """The probabilities (B,V) that `draw` draws from, put back into the order of the vocabulary."""
    left, ids = cut(scores / sampling.temperature, sampling)
    probs = left.softmax(-1)
    return probs if ids is None else torch.zeros_like(scores).scatter(1, ids, probs)


SETTINGS = [
    Sampling(),
    Sampling(top_k=1),
    Sampling(top_k=7),
    Sampling(top_k=V + 5),
    Sampling(top_p=0.5),
    Sampling(top_p=0.9, temperature=1.7),
    Sampling(top_p=1e-9),
    Sampling(min_p=0.1),
    Sampling(min_p=1.0),
    Sampling(temperature=0.5, top_k=9, top_p=0.8, min_p=0.05),
    Sampling(temperature=2.0, top_k=3, top_p=0.99),
]


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_cuts_are_those_of_transformers(sampling):
    process = pytest.importorskip("transformers.generation.logits_process")
    scores = logits()
    theirs = scores / sampling.temperature
    if sampling.top_k:
        theirs = process.TopKLogitsWarper(min(sampling.top_k, V))(None, theirs)
    if sampling.top_p < 1:
        theirs = process.TopPLogitsWarper(sampling.top_p)(None, theirs)
    if sampling.min_p:
        theirs = process.MinPLogitsWarper(sampling.min_p)(None, theirs)
    torch.testing.assert_close(distribution(scores, sampling), theirs.softmax(-1))


@pytest.mark.parametrize("few", [(1,), (3, 20), (39,), (40, 50)], ids=str)
@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_as_few_as_reach_top_p_are_enough(sampling, few, monkeypatch):
    """The same tokens are left as where all are sorted, in rows that need more of them and less."""
    scores = logits(rows=50) * torch.linspace(0.1, 3, 50, dtype=torch.float64)[:, None]
    truth = distribution(scores, sampling)
    monkeypatch.setattr(generate, "FEW", few)
    for rows in (scores, *scores.split(1)):
        found = distribution(rows, sampling)
        torch.testing.assert_close(found, truth if rows is scores else truth[(scores == rows).all(-1)])


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_penalty_is_that_of_transformers(penalty):
    process = pytest.importorskip("transformers.generation.logits_process")
    scores = logits()
    context = torch.randint(V, (len(scores), 12), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(len(scores), V, dtype=torch.bool).scatter(1, context, True)
    theirs = process.RepetitionPenaltyLogitsProcessor(penalty)(context, scores.clone()).log_softmax(-1)
    tokens, logprobs = draw(scores, Sampling(temperature=0, repetition_penalty=penalty), seen=seen)
    assert torch.equal(tokens, theirs.argmax(-1))
    torch.testing.assert_close(logprobs, theirs.amax(-1))


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_draws_and_logprobs_are_of_the_distribution(sampling):
    n = 20_000
    scores = logits(rows=1)
    truth = distribution(scores, sampling)[0]
    generator = torch.Generator().manual_seed(0)
    tokens, logprobs = draw(scores.expand(n, -1), sampling, generator)
    torch.testing.assert_close(logprobs.exp(), truth[tokens])
    assert torch.all(truth[tokens] > 0)
    counts, due = torch.bincount(tokens, minlength=V).double(), n * truth
    common = due >= 5
    chi2 = float(((counts - due) ** 2 / due)[common].sum())
    df = int(common.sum()) - 1
    assert chi2 <= df + 5 * math.sqrt(2 * df)


@pytest.mark.parametrize(
    ("number", "place"),
    [(0.0, 1), (0.25 - 1e-6, 1), (0.25 + 1e-6, 3), (0.75 - 1e-6, 3), (0.75 + 1e-6, 4), (1 - 2**-53, 4)],
)
def test_a_number_below_1_is_a_place_by_the_sum_of_probabilities(number, place, monkeypatch):
    """What has no probability is never drawn, at whichever end."""
    monkeypatch.setattr(torch, "rand", lambda shape, **options: torch.full(shape, number, dtype=options["dtype"]))
    logits = torch.tensor([[0.0, 0.25, 0.0, 0.5, 0.25, 0.0, 0.0]]).log()
    tokens, logprobs = draw(logits, Sampling(1.0))
    assert tokens.tolist() == [place]
    assert logprobs.exp().tolist() == pytest.approx([0.5 if place == 3 else 0.25])


def test_rows_are_drawn_by_numbers_of_their_own():
    tokens, _ = draw(torch.zeros(4000, 2), Sampling(1.0), torch.Generator().manual_seed(0))
    assert 1850 < tokens.sum() < 2150


def test_where_no_probability_is_a_number_something_is_drawn():
    """Whoever reads the log-probability sees it."""
    tokens, logprobs = draw(torch.tensor([[0.0, math.nan], [0.0, 0.0]]), Sampling(1.0))
    assert max(tokens.tolist()) < 2
    assert logprobs.isnan().tolist() == [True, False]


def test_greedy_takes_the_likeliest_and_says_how_likely_it_was():
    scores = logits()
    tokens, logprobs = draw(scores, GREEDY)
    assert torch.equal(tokens, scores.argmax(-1))
    torch.testing.assert_close(logprobs, scores.log_softmax(-1).amax(-1))


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-36, 1e-30, 1e-10])
@pytest.mark.parametrize(
    "cuts", [{}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.1}, {"top_k": 4, "top_p": 0.9}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_temperatures_near_0_take_the_likeliest(temperature, cuts, dtype):
    """Whatever the size of the logits, whose quotients overflow."""
    for size in (1e-3, 1.0, 1e4):
        scores = (size * logits()).to(dtype)
        scores[:, 3], scores[:, 5] = 2 * scores.abs().amax(-1), -math.inf
        tokens, logprobs = draw(scores, Sampling(temperature, **cuts))
        assert tokens.tolist() == [3] * len(scores)
        assert logprobs.tolist() == [0.0] * len(scores)


def test_low_precision_is_drawn_from_in_float32():
    tokens, logprobs = draw(logits().bfloat16(), Sampling(top_p=0.9))
    assert logprobs.dtype == torch.float32
    assert tokens.dtype == torch.int64


def test_logits_are_left_alone():
    scores = logits().float()
    before = scores.clone()
    seen = torch.ones_like(scores, dtype=torch.bool)
    draw(scores, Sampling(top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=2), seen=seen)
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2},
        {"repetition_penalty": 0},
    ],
    ids=str,
)
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
