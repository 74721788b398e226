"""What policy gradients do with rewards: tables of pure functions, from numbers to numbers.

    BASELINES      rewards of a step → advantages, one an answer
    UPDATES        advantages, and log p now and when the answers were drawn → a weight for each of their tokens
    KL_LOSSES      what pulls the policy back to a reference → a weight likewise
    AGGREGATIONS   what each token counts for in the mean over a step

Every variant is a weight on log p: the surrogate losses of the literature have the gradient Σ weight · ∇ log p(token)
with weights that are constants, so objective.py need know none of them. That they have, and how far each is biased, is
checked against autograd and against the exact gradient of the expected reward, by enumeration (tests/test_policy.py,
bench/estimators.py). estimator.py chooses one from each table; values.py has the baseline that is learned.

Letters: P prompts, K samples of each, M tokens of answers.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# ---- baselines: rewards (P, K) → advantages (P, K) -----------------------------------------------


class Rewards(NamedTuple):
    drawn: Tensor  # (P, K) float
    average: float = 0.0  # of steps before this one, see `moved`
    greedy: Tensor | None = None  # (P,) of the greedy answer to each prompt, for ReMax


def no_baseline(rewards: Rewards) -> Tensor:
    """The reward itself (Williams 1992): unbiased, and noisier than it need be."""
    return rewards.drawn


def moving_average(rewards: Rewards) -> Tensor:
    """Each minus the average of earlier steps (Williams 1992): unbiased, as that does not depend on these answers."""
    return rewards.drawn - rewards.average


def batch_mean(rewards: Rewards) -> Tensor:
    """Each minus the mean of the step. Its own share of that shortens the gradient by the factor 1 − 1/(P·K)."""
    differences = rewards.drawn - rewards.drawn[0, 0]
    return differences - differences.mean()


def leave_one_out(rewards: Rewards) -> Tensor:
    """Each minus the mean of the other samples of the same prompt.

    The baseline of a sample does not depend on that sample, so the gradient stays unbiased (Kool et al. 2019;
    Ahmadian et al. 2024, arXiv:2402.14740). Raises ValueError for K < 2.
    """
    K = require_several(rewards)
    return group_mean(rewards) * (K / (K - 1))


def group_mean(rewards: Rewards) -> Tensor:
    """Each minus the mean of its prompt's samples, itself included (Dr. GRPO, arXiv:2503.20783): leave-one-out times
    1 − 1/K, the same direction. Raises ValueError for K < 2."""
    require_several(rewards)
    differences = (
        rewards.drawn - rewards.drawn[:, :1]
    )  # equal rewards have exactly no advantage, whatever rounding does
    return differences - differences.mean(dim=1, keepdim=True)


def group_standardised(rewards: Rewards) -> Tensor:
    """The same, divided by the standard deviation of the prompt's samples (GRPO, arXiv:2402.03300): biased, as prompts
    count for more whose answers are nearly all right or nearly all wrong. Raises ValueError for K < 2."""
    deviations = group_mean(rewards)
    return deviations / (rewards.drawn.std(dim=1, keepdim=True) + 1e-6)


def greedy_rollout(rewards: Rewards) -> Tensor:
    """Each minus the reward of the prompt's greedy answer (ReMax, arXiv:2310.10505): unbiased, for one more answer a
    prompt. Raises ValueError without those rewards."""
    if rewards.greedy is None:
        raise ValueError("the greedy baseline needs the rewards of greedy answers")
    return rewards.drawn - rewards.greedy[:, None]


def require_several(rewards: Rewards) -> int:
    if (K := rewards.drawn.shape[1]) < 2:
        raise ValueError(f"this baseline needs at least 2 samples a prompt, not {K}")
    return K


BASELINES: dict[str, Callable[[Rewards], Tensor]] = {
    "none": no_baseline,
    "moving-average": moving_average,
    "batch-mean": batch_mean,
    "leave-one-out": leave_one_out,
    "group-mean": group_mean,
    "group-standardised": group_standardised,
    "greedy": greedy_rollout,
}
OF_GROUPS = {"leave-one-out", "group-mean", "group-standardised"}  # those that need several samples a prompt
KEPT = 0.9  # share of the moving average that a step leaves


def best_of(rewards: Rewards) -> Tensor:
    """1 for the best answer to each prompt, the first of several, else 0; all 0 where none is better than another: for
    supervised learning from one's own best answers (online rejection sampling, arXiv:2310.02743)."""
    drawn = rewards.drawn
    best = torch.zeros_like(drawn).scatter(1, drawn.argmax(dim=1, keepdim=True), 1.0)
    return best * has_variance(drawn)[:, None]


def moved(average: float | None, rewards: Tensor) -> float:
    """The moving average after a step; None where there was none."""
    mean = float(rewards.mean())
    return mean if average is None else KEPT * average + (1 - KEPT) * mean


# ---- updates: what is known of tokens (M,) → weights of their log p (M,) ---------------------------


class Tokens(NamedTuple):
    """Those of answers, one answer after the other; none of the numbers has a gradient."""

    answer: Tensor  # (M,) int64 the number of the answer that it belongs to, from 0 on
    advantages: Tensor  # (M,) float
    then: Tensor  # (M,) log p under the policy that drew it
    now: Tensor  # (M,) log p under the policy that learns
    reference: Tensor | None = None  # (M,) log p under the reference, for the KL

    def sums(self, values: Tensor) -> Tensor:
        """Each token's sum of the values of its whole answer."""
        totals = values.new_zeros(int(self.answer[-1]) + 1).index_add(0, self.answer, values)
        return totals[self.answer]


class Options(Protocol):
    """Of updates, see estimator.py."""

    ratio: str
    clip_low: float
    clip_high: float
    truncate: float


def ratio_of(tokens: Tokens, options: Options) -> Tensor:
    logs = tokens.now - tokens.then
    return (tokens.sums(logs) if options.ratio == "sequence" else logs).exp()


def reinforce(tokens: Tokens, options: Options) -> Tensor:
    """The advantage (Williams 1992): unbiased for answers that the present policy has drawn."""
    return tokens.advantages


def importance(tokens: Tokens, options: Options) -> Tensor:
    """The advantage times p now / p then: unbiased for older answers too where the ratio is that of the sequence. That
    of the token alone leaves out how likely the tokens before have become."""
    return ratio_of(tokens, options) * tokens.advantages


def truncated(tokens: Tokens, options: Options) -> Tensor:
    """The same, the ratio being at most `most`: biased, of bounded variance (Ionides 2008; arXiv:1611.01224)."""
    return ratio_of(tokens, options).clamp(max=options.truncate) * tokens.advantages


def clipped(tokens: Tokens, options: Options) -> Tensor:
    """PPO's (Schulman et al. 2017, arXiv:1707.06347): the gradient of min(r·A, clip(r, 1 − low, 1 + high)·A), which is
    that of r·A, or nothing where the ratio is beyond the bound that the advantage pushes it to."""
    ratio, advantages = ratio_of(tokens, options), tokens.advantages
    beyond = torch.where(advantages > 0, ratio > 1 + options.clip_high, ratio < 1 - options.clip_low)
    return torch.where(beyond, 0.0, ratio * advantages)


def is_beyond(tokens: Tokens, options: Options) -> Tensor:
    """(M,) bool: whether the ratio is outside of the bounds of PPO's clip, on either side."""
    ratio = ratio_of(tokens, options)
    return (ratio > 1 + options.clip_high) | (ratio < 1 - options.clip_low)


UPDATES: dict[str, Callable[[Tokens, Options], Tensor]] = {
    "reinforce": reinforce,
    "importance": importance,
    "truncated": truncated,
    "clip": clipped,
}


# ---- KL(policy ‖ reference): estimates, and the losses made of them ---------------------------------


def kl_estimate(logprobs: Tensor, reference: Tensor) -> Tensor:
    """k1 of Schulman 2020 ("Approximating KL Divergence"): log p − log p_ref of tokens that the policy has drawn, whose
    mean is the KL. As a loss it would teach nothing, for the mean of its gradient is 0; in the reward it is right."""
    return logprobs - reference


def k3_estimate(logprobs: Tensor, reference: Tensor) -> Tensor:
    """k3: p_ref/p − 1 − log(p_ref/p), whose mean is the KL, too, and which is never negative; but one unlikely token
    can blow it up once the policy has moved far."""
    return (reference - logprobs).expm1() - (reference - logprobs)


def k2_loss(tokens: Tokens) -> Tensor:
    """The gradient of −½ (log p − log p_ref)², whose mean on answers just drawn is that of −KL at each token, given
    those before it; what tokens do to the KL of later ones is left out."""
    return tokens.reference - tokens.now


def k3_loss(tokens: Tokens) -> Tensor:
    """The gradient of −k3 (GRPO's), 1 − p_ref/p negated: the mean is that of −KL(reference ‖ policy), the other way
    round, and so no gradient of the KL that k3 estimates (arXiv:2506.09477)."""
    return (tokens.reference - tokens.now).expm1()


KL_LOSSES: dict[str, Callable[[Tokens], Tensor]] = {"k2": k2_loss, "k3": k3_loss}


def steered(beta: float, kl: float, target: float) -> float:
    """The weight for the next step, where the KL is to come to a target (Ziegler et al. 2019, arXiv:1909.08593)."""
    return beta * (1 + 0.1 * max(-0.2, min(0.2, kl / target - 1)))


def entropy_bonus(tokens: Tokens) -> Tensor:
    """−log p: its mean with ∇ log p is the gradient of the entropy at each token, given those before it."""
    return -tokens.now


# ---- aggregations: lengths of a step's answers (E,) → what each of their tokens counts for (E,) -------


def by_answer(lengths: Tensor, longest: int) -> Tensor:
    """The sum over an answer's tokens, the mean over answers: what the gradient of the expected reward asks for."""
    return torch.full_like(lengths, 1 / len(lengths))


def by_token(lengths: Tensor, longest: int) -> Tensor:
    """The mean over all tokens of a step (DAPO, arXiv:2503.14476): of by-answer a multiple that depends on the lengths
    that were drawn, so slightly biased."""
    return torch.full_like(lengths, 1 / float(lengths.sum()))


def by_sequence(lengths: Tensor, longest: int) -> Tensor:
    """The mean over an answer's tokens, then over answers (GRPO): biased, as a long answer's tokens count for less, so
    that wrong answers get longer."""
    return 1 / (len(lengths) * lengths)


def by_constant(lengths: Tensor, longest: int) -> Tensor:
    """By-answer, divided by the most tokens that an answer may have (Dr. GRPO): the same direction."""
    return torch.full_like(lengths, 1 / (len(lengths) * longest))


AGGREGATIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "answer": by_answer,
    "token": by_token,
    "sequence": by_sequence,
    "constant": by_constant,
}


# ---- to look at ------------------------------------------------------------------------------------


def has_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: whether the samples of a prompt were rewarded differently. If not, leave-one-out learns nothing."""
    return (rewards != rewards[:, :1]).any(dim=1)
