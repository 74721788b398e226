"""What REINFORCE does with rewards: pure functions from numbers to numbers.

Letters: P prompts, K samples of each.
"""

from torch import Tensor


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages (P, K) of rewards (P, K): each minus the mean of the other samples of the same prompt.

    The baseline of a sample does not depend on that sample, so the gradient stays unbiased (Kool et al. 2019;
    Ahmadian et al. 2024, arXiv:2402.14740). Raises ValueError for K < 2.
    """
    K = rewards.shape[1]
    if K < 2:
        raise ValueError(f"leave-one-out needs at least 2 samples a prompt, not {K}")
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (K - 1)
    return rewards - others


def has_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: whether the samples of a prompt were rewarded differently. If not, all advantages are 0."""
    return (rewards != rewards[:, :1]).any(dim=1)


def kl_estimate(logprobs: Tensor, start_logprobs: Tensor) -> Tensor:
    """Per token, for tokens drawn from the policy: log p − log p_start, whose mean is KL(policy ‖ start).

    The plainest of the unbiased estimates (k1 of Schulman 2020, "Approximating KL Divergence"). k3, which is never
    negative, has a mean that one unlikely token can blow up once the policy has moved far. For looking at only: its
    gradient is not that of the KL.
    """
    return logprobs - start_logprobs
