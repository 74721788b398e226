"""Advantages and the KL estimate: exact expectations, by going through all that can be drawn."""

import itertools

import pytest
import torch

from minillm.policy import (
    BASELINES,
    WEIGHTS,
    Episode,
    has_variance,
    kl_estimate,
    leave_one_out,
    reinforce,
    rewards_of,
)


def test_leave_one_out_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.5]], dtype=torch.float64)
    truth = [[1.0, -1 / 3, -1 / 3, -1 / 3], [1 - 0.5, 1 - 0.5, -2.5 / 3, 0.5 - 2 / 3]]
    torch.testing.assert_close(leave_one_out(rewards), torch.tensor(truth, dtype=torch.float64))


def test_advantages_add_up_to_nothing_and_ignore_a_constant():
    torch.manual_seed(0)
    rewards = torch.rand(5, 4, dtype=torch.float64)
    advantages = leave_one_out(rewards)
    torch.testing.assert_close(advantages.sum(1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(leave_one_out(rewards + 7), advantages, rtol=0, atol=1e-12)
    torch.testing.assert_close(leave_one_out(3 * rewards), 3 * advantages)


def test_the_baseline_of_a_sample_does_not_depend_on_it():
    rewards = torch.rand(3, 4, dtype=torch.float64)
    rewards.requires_grad_()
    baseline = rewards - leave_one_out(rewards)
    for k in range(4):
        (slope,) = torch.autograd.grad(baseline[:, k].sum(), rewards, retain_graph=True)
        assert (slope[:, k].abs() < 1e-12).all()
        assert (slope.sum(1) - 1).abs().max() < 1e-12


def test_rewards_are_left_alone():
    rewards = torch.tensor([[1.0, 0.0]])
    leave_one_out(rewards)
    assert rewards.tolist() == [[1.0, 0.0]]


def test_one_sample_has_no_other():
    with pytest.raises(ValueError, match="at least 2 samples a prompt, not 1"):
        leave_one_out(torch.ones(3, 1))


def test_no_baseline_is_the_reward_itself():
    rewards = torch.rand(3, 1)
    assert torch.equal(BASELINES["none"](rewards), rewards)


def test_every_token_has_the_weight_of_its_answer():
    """Two prompts of two answers each; of the third answer two tokens are learned from, of the last one."""
    advantages = torch.tensor([[0.5, -0.5], [3.0, 1.0]])
    assert reinforce(advantages, torch.tensor([2, 2, 3])).tolist() == [0.75, 0.75, 0.25]


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("baseline", BASELINES.values(), ids=BASELINES)
def test_every_row_of_the_tables_leaves_its_arguments_alone(baseline, weights):
    rewards = torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    before = rewards.clone()
    advantages = baseline(rewards)
    kept = advantages.clone()
    weights(advantages, torch.tensor([0, 1, 3]))
    assert torch.equal(rewards, before)
    assert torch.equal(advantages, kept)


def test_rewards_lie_in_rows_of_one_prompt():
    episodes = [Episode(None, [0], [1], [0.0], "", reward=i / 4) for i in range(6)]
    assert rewards_of(episodes, 3).tolist() == [[0.0, 0.25, 0.5], [0.75, 1.0, 1.25]]


def test_has_variance():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.5, 0.5]])
    assert has_variance(rewards).tolist() == [False, True, False, False]
    assert has_variance(torch.tensor([[0.2, 0.2, 0.3]])).tolist() == [True]


def distributions():
    """Log-probabilities of the next two of four tokens: the first token decides what follows."""
    torch.manual_seed(0)
    policy, start = (torch.randn(5, 4, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    return policy, start


def test_kl_estimate_is_unbiased_for_a_token_and_for_a_text():
    policy, start = distributions()
    token = (policy[0].exp() * kl_estimate(policy[0], start[0])).sum()
    torch.testing.assert_close(token, (policy[0].exp() * (policy[0] - start[0])).sum(), rtol=0, atol=1e-12)

    expected = truth = 0.0
    for a, b in itertools.product(range(4), repeat=2):
        ours, theirs = (torch.stack((x[0, a], x[1 + a, b])) for x in (policy, start))
        p = ours.sum().exp()
        expected += p * kl_estimate(ours, theirs).sum()
        truth += p * (ours - theirs).sum()
    torch.testing.assert_close(expected, truth, rtol=0, atol=1e-12)


def test_kl_estimate_is_zero_at_the_start():
    logprobs = -torch.rand(1000, dtype=torch.float64) * 8
    assert (kl_estimate(logprobs, logprobs) == 0).all()


def test_equal_rewards_have_exactly_no_advantage():
    """Rounding must not make a direction out of nothing, which AdamW would follow at full length."""
    for reward in (2 / 3, 0.6, 0.9, 1 / 3):
        assert (leave_one_out(torch.full((2, 8), reward)) == 0).all()
