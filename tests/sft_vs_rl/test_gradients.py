"""The formulas of the report, each against autograd or enumeration, in float64.

The world is small enough to enumerate: answers of two tokens over four, logits for the first token and, after each, for
the second. Letters: V tokens, A answers.
"""

import itertools
from pathlib import Path

import pytest
import torch
from experiment import formulas

from kernels import cross_entropy
from minillm.policy import Estimator, Rewards, Tokens
from minillm.preference import METHODS, Pairs

V = 4
ANSWERS = list(itertools.product(range(V), repeat=2))


@pytest.fixture
def world():
    """Logits (1 + V, V), rewards (A,), and a reference's logits."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(1 + V, V, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits, torch.rand(len(ANSWERS), generator=generator, dtype=torch.float64), reference


def log_p(logits):
    """(A,)"""
    logs = logits.log_softmax(-1)
    return torch.stack([logs[0, a] + logs[1 + a, b] for a, b in ANSWERS])


def gradient(objective, logits):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(objective(logits), logits)[0]


def one_hot_minus_softmax(logits, answer):
    """∇ log p of an answer, as the report has it: e_y − p at the logits before each of its tokens, 0 elsewhere."""
    p, found = logits.softmax(-1), torch.zeros_like(logits)
    for row, token in ((0, answer[0]), (1 + answer[0], answer[1])):
        found[row] = -p[row]
        found[row, token] += 1
    return found


def test_cross_entropy_is_softmax_minus_one_hot():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, V, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 3, 1, 1, 2])
    cross_entropy(logits, targets, impl="torch").sum().backward()
    expected = logits.detach().softmax(-1) - torch.nn.functional.one_hot(targets, V)
    torch.testing.assert_close(logits.grad, expected)


def test_reinforce_is_the_gradient_of_the_expected_reward(world):
    """The mean over all pairs of answers, drawn for one prompt, of what the estimator of train_rl.py makes of them."""
    logits, rewards, _ = world
    options, p, mean = Estimator(), log_p(logits).exp(), torch.zeros_like(logits)
    for i, j in itertools.product(range(len(ANSWERS)), repeat=2):
        advantages = options.advantages(Rewards(rewards[[i, j]][None]))[0]
        answer, logs = torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.float64)
        shares = options.shares(torch.tensor([2.0, 2.0], dtype=torch.float64), 2)
        weights = options.weights(Tokens(answer, advantages[answer], logs, logs), shares[answer], 0.0)
        assert weights[0] == weights[1]  # the same for all tokens of an answer
        assert weights[2] == weights[3]
        step = weights[0] * one_hot_minus_softmax(logits, ANSWERS[i])
        mean += p[i] * p[j] * (step + weights[2] * one_hot_minus_softmax(logits, ANSWERS[j]))
    torch.testing.assert_close(mean, gradient(lambda z: log_p(z).exp() @ rewards, logits))


def test_a_mixture_is_the_sum_of_both(world):
    logits, rewards, _ = world
    s, given = 0.3, 5
    both = gradient(lambda z: (1 - s) * log_p(z).exp() @ rewards + s * log_p(z)[given], logits)
    p = log_p(logits).exp()
    own = sum(p[i] * rewards[i] * one_hot_minus_softmax(logits, answer) for i, answer in enumerate(ANSWERS))
    torch.testing.assert_close(both, (1 - s) * own + s * one_hot_minus_softmax(logits, ANSWERS[given]))


def test_imitating_right_answers_climbs_the_log_of_being_right(world):
    logits, rewards, _ = world
    right = (rewards > 0.6).double()
    assert 0 < right.sum() < len(ANSWERS)
    p = log_p(logits).exp()
    imitated = sum(p[i] * right[i] * one_hot_minus_softmax(logits, answer) for i, answer in enumerate(ANSWERS))
    climbed = gradient(lambda z: (log_p(z).exp() @ right).log(), logits)
    torch.testing.assert_close(imitated, (p @ right) * climbed)


def test_the_best_policy_under_a_kl_is_tilted_by_the_reward(world):
    """Nothing is better, and there is nothing left to climb."""
    _, rewards, reference = world
    beta = 0.5
    best = (log_p(reference) + rewards / beta).softmax(0).view(V, V)
    tilted = torch.cat([best.sum(1).log()[None], (best / best.sum(1, keepdim=True)).log()])

    def objective(z):
        logs = log_p(z)
        return logs.exp() @ (rewards - beta * (logs - log_p(reference)))

    torch.testing.assert_close(log_p(tilted).exp(), best.flatten())
    assert gradient(objective, tilted).abs().max() < 1e-12
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        other = tilted + 0.3 * torch.randn(tilted.shape, generator=generator, dtype=torch.float64)
        assert objective(other) < objective(tilted)


def test_dpo_is_a_weight_on_log_p(world):
    logits, _, reference = world
    beta, chosen, rejected = 0.7, 3, 9
    start = log_p(reference)[[chosen, rejected]]

    def loss(z):
        margin = (log_p(z)[[chosen, rejected]] - start) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
        return -torch.nn.functional.logsigmoid(beta * margin)

    pairs = Pairs(log_p(logits)[None, [chosen, rejected]], start[None], torch.full((1, 2), 2.0))
    value, weights = METHODS["dpo"](pairs, beta)
    torch.testing.assert_close(value[0], loss(logits))
    pull = beta * torch.sigmoid(-beta * pairs.margin[0])  # β (1 − σ)
    steps = [one_hot_minus_softmax(logits, ANSWERS[k]) for k in (chosen, rejected)]
    torch.testing.assert_close(-gradient(loss, logits), pull * (steps[0] - steps[1]))
    torch.testing.assert_close(weights[0], torch.stack([pull, -pull]))


def test_the_report_names_tests_that_there_are():
    assert (Path(__file__).resolve().parents[2] / formulas.TESTS).samefile(__file__)
    assert all(test in globals() for *_, test in formulas.FORMULAS)
