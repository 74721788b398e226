"""What REINFORCE does with rewards: two tables of pure functions, from numbers to numbers.

Every row is checked against the exact gradient of the expected reward, by enumeration (tests/test_policy.py).

Letters: P prompts, K samples of each, N tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Episode:
    """An answer that the policy gave, and what became of it. The model learns from the ids, never from the text."""

    example: Any  # of the task
    prompt: Sequence[int]  # token ids
    answer: Sequence[int]  # token ids as they were drawn; the last one ends the answer unless it was cut
    logprobs: Sequence[float]  # of the answer's tokens, under the distribution that they were drawn from
    text: str  # for the reward and for people
    reward: float = 0.0
    parts: Mapping[str, float] = field(default_factory=dict)  # what the reward is the sum of, by name


def rewards_of(episodes: Sequence[Episode], samples: int) -> Tensor:
    """(P, K) float32 of P·K episodes, those of one prompt in a row."""
    return torch.tensor([episode.reward for episode in episodes]).view(-1, samples)


# ---- baselines: rewards (P, K) → advantages (P, K) -----------------------------------------------


def no_baseline(rewards: Tensor) -> Tensor:
    """The reward itself (Williams 1992): unbiased, and noisier than it need be."""
    return rewards


def leave_one_out(rewards: Tensor) -> Tensor:
    """Each minus the mean of the other samples of the same prompt.

    The baseline of a sample does not depend on that sample, so the gradient stays unbiased (Kool et al. 2019;
    Ahmadian et al. 2024, arXiv:2402.14740). Raises ValueError for K < 2.
    """
    K = rewards.shape[1]
    if K < 2:
        raise ValueError(f"leave-one-out needs at least 2 samples a prompt, not {K}")
    rewards = rewards - rewards[:, :1]  # changes no advantage, and equal rewards have exactly none
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (K - 1)
    return rewards - others


BASELINES: dict[str, Callable[[Tensor], Tensor]] = {"none": no_baseline, "leave-one-out": leave_one_out}


# ---- weights: advantages (P, K), the answer of each token (N,) → weights of −log p (N,) ------------


def reinforce(advantages: Tensor, answer: Tensor) -> Tensor:
    """Every token has its answer's advantage, divided by the number of answers: Σ weight · ∇ log p is then the mean
    over answers of advantage · ∇ log p(answer)."""
    return advantages.flatten()[answer] / advantages.numel()


WEIGHTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"reinforce": reinforce}


# ---- to look at ------------------------------------------------------------------------------------


def has_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: whether the samples of a prompt were rewarded differently. If not, leave-one-out learns nothing."""
    return (rewards != rewards[:, :1]).any(dim=1)


def entropy(episodes: Sequence[Episode]) -> float:
    """Nats a token, estimated by the mean of −log p over the tokens drawn."""
    logprobs = [logprob for episode in episodes for logprob in episode.logprobs]
    return -sum(logprobs) / len(logprobs)


def kl_estimate(logprobs: Tensor, start_logprobs: Tensor) -> Tensor:
    """Per token, for tokens drawn from the policy: log p − log p_start, whose mean is KL(policy ‖ start).

    Summed over the tokens of answers in `train_rl.kl_to`.

    The plainest of the unbiased estimates (k1 of Schulman 2020, "Approximating KL Divergence"). k3, which is never
    negative, has a mean that one unlikely token can blow up once the policy has moved far. For looking at only: its
    gradient is not that of the KL.
    """
    return logprobs - start_logprobs
