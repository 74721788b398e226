"""Estimators of the policy gradient: by hand, against autograd of the published losses, and exactly, by going through
all that can be drawn (bench/estimators.py, on a world of 15 answers)."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import estimators
from estimators import BETA, Choice, World, judge

from minillm.episodes import Episode, distinct, entropy, rewards_of
from minillm.errors import UserError
from minillm.estimator import check
from minillm.policy import (
    AGGREGATIONS,
    BASELINES,
    KL_LOSSES,
    OF_GROUPS,
    UPDATES,
    Estimator,
    Rewards,
    Tokens,
    best_of,
    entropy_bonus,
    has_variance,
    leave_one_out,
    moved,
    steered,
)

# ---- baselines -----------------------------------------------------------------------------------


def test_leave_one_out_by_hand():
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.5]], dtype=torch.float64)
    truth = [[1.0, -1 / 3, -1 / 3, -1 / 3], [1 - 0.5, 1 - 0.5, -2.5 / 3, 0.5 - 2 / 3]]
    torch.testing.assert_close(leave_one_out(Rewards(rewards)), torch.tensor(truth, dtype=torch.float64))


def test_baselines_by_hand():
    rewards = Rewards(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), average=0.25, greedy=torch.tensor([1.0, 0.0]))
    truth = {
        "none": [[1.0, 0.0], [0.5, 0.5]],
        "moving-average": [[0.75, -0.25], [0.25, 0.25]],
        "batch-mean": [[0.5, -0.5], [0.0, 0.0]],
        "leave-one-out": [[1.0, -1.0], [0.0, 0.0]],
        "group-mean": [[0.5, -0.5], [0.0, 0.0]],
        "group-standardised": [[0.5**0.5, -(0.5**0.5)], [0.0, 0.0]],
        "greedy": [[0.0, -1.0], [0.5, 0.5]],
    }
    assert truth.keys() == BASELINES.keys()
    for name, values in truth.items():
        torch.testing.assert_close(BASELINES[name](rewards), torch.tensor(values), rtol=1e-5, atol=1e-6)


def test_the_baseline_of_a_sample_does_not_depend_on_it():
    rewards = torch.rand(3, 4, dtype=torch.float64)
    rewards.requires_grad_()
    baseline = rewards - leave_one_out(Rewards(rewards))
    for k in range(4):
        (slope,) = torch.autograd.grad(baseline[:, k].sum(), rewards, retain_graph=True)
        assert (slope[:, k].abs() < 1e-12).all()
        assert (slope.sum(1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("baseline", sorted(OF_GROUPS))
def test_equal_rewards_have_exactly_no_advantage(baseline):
    """Rounding must not make a direction out of nothing, which AdamW would follow at full length."""
    for reward in (2 / 3, 0.6, 0.9, 1 / 3):
        assert (BASELINES[baseline](Rewards(torch.full((2, 8), reward))) == 0).all()
    with pytest.raises(ValueError, match="at least 2 samples a prompt, not 1"):
        BASELINES[baseline](Rewards(torch.ones(3, 1)))


@pytest.mark.parametrize("baseline", BASELINES)
def test_rewards_are_left_alone(baseline):
    rewards = torch.tensor([[1.0, 0.0], [0.25, 0.5]])
    BASELINES[baseline](Rewards(rewards, 0.1, torch.zeros(2)))
    assert rewards.tolist() == [[1.0, 0.0], [0.25, 0.5]]


def test_the_best_answers():
    rewards = Rewards(torch.tensor([[0.0, 1.0, 1.0], [0.5, 0.5, 0.5], [2.0, 1.0, 0.0]]))
    assert best_of(rewards).tolist() == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_the_moving_average_begins_with_the_first_step():
    assert moved(None, torch.tensor([[1.0, 0.0]])) == 0.5
    assert moved(0.5, torch.tensor([[1.0, 1.0]])) == pytest.approx(0.55)


# ---- updates, against autograd of what is published ------------------------------------------------


@pytest.fixture
def tokens():
    """Of four answers of one to five tokens; ratios far from 1 on both sides."""
    generator = torch.Generator().manual_seed(0)
    answer = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3])
    then, now, reference = (-torch.rand(len(answer), generator=generator, dtype=torch.float64) for _ in range(3))
    advantages = torch.tensor([1.0, -0.5, 0.25, -2.0], dtype=torch.float64)
    return Tokens(answer, advantages[answer], then, now, reference)


def slope(loss, now):
    """The gradient of −loss with respect to log p."""
    logprobs = now.clone().requires_grad_()
    (found,) = torch.autograd.grad(-loss(logprobs), logprobs)
    return found


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_updates_are_the_gradients_of_the_usual_surrogates(tokens, level):
    options = Estimator(ratio=level, clip_low=0.1, clip_high=0.3, truncate=1.1)
    A = tokens.advantages

    def ratio(now):
        logs = now - tokens.then
        totals = torch.zeros(4, dtype=torch.float64).index_add(0, tokens.answer, logs)
        return (totals[tokens.answer] if level == "sequence" else logs).exp()

    def per_answer(values):
        """Of a sequence's ratio there is one term an answer, not one a token."""
        if level == "token":
            return values.sum()
        sizes = torch.bincount(tokens.answer)[tokens.answer]
        return (values / sizes).sum()

    losses = {
        "importance": lambda now: -per_answer(ratio(now) * A),
        "clip": lambda now: -per_answer(torch.minimum(ratio(now) * A, ratio(now).clamp(0.9, 1.3) * A)),
    }
    for name, loss in losses.items():
        torch.testing.assert_close(UPDATES[name](tokens, options), slope(loss, tokens.now))
    weight = ratio(tokens.now).clamp(max=1.1) * A
    torch.testing.assert_close(UPDATES["truncated"](tokens, options), weight)
    assert torch.equal(UPDATES["reinforce"](tokens, options), A)
    clipped = UPDATES["clip"](tokens, options) == 0
    assert 0 < clipped.sum() < len(A)


def k3(now, reference):
    return (reference - now).exp() - 1 - (reference - now)


def test_losses_of_the_kl_are_the_gradients_of_what_they_are_called(tokens):
    losses = {
        "k2": lambda now: (0.5 * (now - tokens.reference).square()).sum(),
        "k3": lambda now: k3(now, tokens.reference).sum(),
    }
    for name, loss in losses.items():
        torch.testing.assert_close(KL_LOSSES[name](tokens), slope(loss, tokens.now))


def test_aggregations_by_hand():
    lengths = torch.tensor([1.0, 3.0])
    truth = {"answer": [0.5, 0.5], "token": [0.25, 0.25], "sequence": [0.5, 1 / 6], "constant": [0.1, 0.1]}
    for name, shares in truth.items():
        torch.testing.assert_close(AGGREGATIONS[name](lengths, 5), torch.tensor(shares))


# ---- exactly ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return World(letters=2, longest=3)


def test_a_world_is_what_it_says(world):
    assert world.probabilities(world.now).sum() == pytest.approx(1)
    assert len(set(world.answers)) == len(world.answers) == 15
    logits = world.now.clone().requires_grad_()
    table = logits.log_softmax(-1)
    for answer, score in zip(world.answers, world.scores(), strict=True):
        for i, token in enumerate(answer):
            (slope,) = torch.autograd.grad(table[world.states[answer[:i]], token], logits, retain_graph=True)
            torch.testing.assert_close(score[i], slope.flatten())


EXACT = [
    *({"baseline": name} for name in ("none", "moving-average", "leave-one-out", "greedy")),
    {"update": "importance", "ratio": "sequence"},
]


@pytest.mark.parametrize("options", EXACT, ids=str)
def test_unbiased_estimators_are(world, options):
    choice = Choice(Estimator(**options), is_old="update" in options)
    assert judge(world, choice, world.gradient(world.expected_reward)).bias < 1e-12


@pytest.mark.parametrize("options", [{"baseline": "group-mean"}, {"baseline": "batch-mean"}, {"aggregate": "constant"}])
def test_some_are_biased_in_length_alone(world, options):
    found = judge(world, Choice(Estimator(**options)), world.gradient(world.expected_reward))
    assert found.bias > 0.1
    assert found.direction == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "is_old"),
    [
        ({"baseline": "group-standardised"}, False),
        ({"aggregate": "token"}, False),
        ({"aggregate": "sequence"}, False),
        ({}, True),
        ({"update": "importance"}, True),
        ({"update": "truncated", "ratio": "sequence", "truncate": 1.2}, True),
        ({"update": "clip", "ratio": "sequence"}, True),
    ],
    ids=str,
)
def test_others_in_direction(world, options, is_old):
    found = judge(world, Choice(Estimator(**options), is_old), world.gradient(world.expected_reward))
    assert found.direction < 0.9999


def test_in_the_reward_the_kl_is_exact_and_as_a_loss_it_is_not(world):
    truth = world.gradient(world.less_kl)
    biases = {kl: judge(world, Choice(Estimator(kl=kl)), truth).bias for kl in ("off", "reward", *KL_LOSSES)}
    assert biases.pop("reward") < 1e-12
    assert min(biases.values()) > 0.05


def of_each_state(world, divergence):
    """Σ over states of how often they are reached, held fixed, times a function of what follows there."""
    with torch.no_grad():
        reached = dict.fromkeys(world.states, 0.0)
        for answer, p in zip(world.answers, world.probabilities(world.now), strict=True):
            for i in range(len(answer)):
                reached[answer[:i]] += p
        share = torch.stack([torch.as_tensor(reached[beginning]) for beginning in world.states])
    return lambda logits: (share * divergence(logits.log_softmax(-1))).sum()


@pytest.mark.parametrize("kind", ["entropy", "k2", "k3"])
def test_what_is_added_for_every_token_is_a_gradient_at_each_state(world, kind):
    """Of the entropy; of −KL(policy ‖ reference) for k2; of −KL(reference ‖ policy) for k3."""
    theirs = world.reference.log_softmax(-1)
    divergences = {
        "entropy": lambda ours: -(ours.exp() * ours).sum(-1),
        "k2": lambda ours: -(ours.exp() * (ours - theirs)).sum(-1),
        "k3": lambda ours: -(theirs.exp() * (theirs - ours)).sum(-1),
    }
    truth = world.gradient(of_each_state(world, divergences[kind]))
    known = [world.logprobs(policy) for policy in (world.now, world.reference)]
    mean = torch.zeros_like(truth)
    for i, p in enumerate(world.probabilities(world.now)):
        now, reference = (each[i] for each in known)
        drawn = Tokens(torch.zeros(len(now), dtype=torch.int64), torch.zeros_like(now), now, now, reference)
        weights = entropy_bonus(drawn) if kind == "entropy" else KL_LOSSES[kind](drawn)
        mean += p * (weights @ world.scores()[i])
    torch.testing.assert_close(mean, truth)


def test_k3_has_the_mean_of_the_kl(world):
    """As k3_loss says."""
    p = world.probabilities(world.now)
    ours, theirs = (torch.stack([each.sum() for each in world.logprobs(x)]) for x in (world.now, world.reference))
    truth = (p * (ours - theirs)).sum()
    torch.testing.assert_close((p * k3(ours, theirs)).sum(), truth, rtol=0, atol=1e-12)


def test_the_table_is_printed(capsys):
    estimators.main(World(letters=1, longest=2))
    said = capsys.readouterr().out
    assert all(name in said for name in (*BASELINES, *UPDATES, *KL_LOSSES))
    assert BETA == 0.3


# ---- choices, and what is watched ------------------------------------------------------------------


def test_options_that_make_no_sense_together():
    for options, sentence in (
        ({"passes": 2}, "give --update clip"),
        ({"minibatches": 2}, "give --update clip"),
        ({"kl_target": 1.0}, "give --kl reward"),
        ({"clip_low": 1.0}, "--clip-low 1"),
        ({"sft_share": 1.0}, "--sft-share 1"),
        ({"beta": -1.0}, "must not be negative"),
        ({"passes": 0, "update": "clip"}, "--passes 0 must be positive"),
    ):
        with pytest.raises(UserError, match=sentence):
            check(Estimator(**options), samples=4)
    for options in ({"baseline": "group-mean"}, {"method": "best-of"}):
        with pytest.raises(UserError, match="--samples 1"):
            check(Estimator(**options), samples=1)
    check(Estimator(baseline="none"), samples=1)


@pytest.mark.parametrize(
    ("option", "alone", "with_it"),
    [
        ({"baseline": "value"}, {"method": "best-of"}, {}),
        ({"baseline": "none"}, {"method": "soft-q"}, {}),
        ({"gae_lambda": 0.5}, {}, {"baseline": "value"}),
        ({"discount": 0.9}, {"baseline": "none"}, {"baseline": "value"}),
        ({"value_coefficient": 0.1}, {}, {"baseline": "value"}),
        ({"ratio": "sequence"}, {"entropy": 0.1}, {"update": "importance"}),
        ({"clip_low": 0.1}, {"update": "truncated"}, {"update": "clip"}),
        ({"clip_high": 0.3}, {}, {"update": "clip"}),
        ({"truncate": 3.0}, {"update": "clip"}, {"update": "truncated"}),
        ({"beta": 0.1}, {}, {"kl": "k2"}),
        ({"beta": 0.2}, {"method": "best-of"}, {"method": "soft-q"}),
    ],
)
def test_no_option_is_ignored_in_silence(option, alone, with_it):
    with pytest.raises(UserError, match=f"--{next(iter(option)).replace('_', '-')} has an effect only with"):
        check(Estimator(**option, **alone), samples=4)
    check(Estimator(**option, **with_it), samples=4)


def test_shuffled_advantages_are_the_same_ones():
    rewards = Rewards(torch.arange(12.0).view(3, 4))
    torch.manual_seed(0)
    found = Estimator(shuffle_advantages=True).advantages(rewards)
    truth = Estimator().advantages(rewards)
    assert sorted(found.flatten().tolist()) == sorted(truth.flatten().tolist())
    assert not torch.equal(found, truth)


def test_which_answers_count():
    assert Estimator().counts(0.0, is_cut=True)
    assert not Estimator(overlong="drop").counts(1.0, is_cut=True)
    assert not Estimator(method="best-of").counts(0.0, is_cut=False)


def test_the_weight_of_the_kl_is_steered_to_the_target():
    beta = 1.0
    for _ in range(50):
        beta = steered(beta, kl=2 / beta, target=4.0)  # where the KL falls as its weight rises
    assert 2 / beta == pytest.approx(4.0, rel=0.3)


def test_equal_answers_of_a_prompt_are_one():
    episodes = [Episode(None, prompt, answer, [0.0], "") for prompt, answer in (([1], [2]), ([1], [2]), ([3], [2]))]
    alike, apart = {0: 2, 2: 1}, {0: 1, 1: 1, 2: 1}
    for advantages, copies in (((), (), ()), alike), (([0.5],) * 3, alike), (([0.5], [0.25], [0.5]), apart):
        for episode, own in zip(episodes, advantages, strict=True):
            episode.advantages = own
        assert distinct(episodes) == copies


def test_rewards_lie_in_rows_of_one_prompt():
    episodes = [Episode(None, [0], [1], [0.0], "", reward=i / 4) for i in range(6)]
    assert rewards_of(episodes, 3).tolist() == [[0.0, 0.25, 0.5], [0.75, 1.0, 1.25]]
    assert entropy(episodes) == 0.0


def test_has_variance():
    rewards = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [0.5, 0.5]])
    assert has_variance(rewards).tolist() == [False, True, False, False]
    assert has_variance(torch.tensor([[0.2, 0.2, 0.3]])).tolist() == [True]
