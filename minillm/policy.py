"""What policy gradients do with rewards: tables of pure functions, from numbers to numbers.

    BASELINES      rewards of a step → advantages, one an answer
    UPDATES        advantages, and log p now and when the answers were drawn → a weight for each of their tokens
    KL_LOSSES      what pulls the policy back to a reference → a weight likewise
    AGGREGATIONS   what each token counts for in the mean over a step

Every variant is a weight on log p: the surrogate losses of the literature have the gradient Σ weight · ∇ log p(token)
with weights that are constants, so objective.py need know none of them. That they have, and how far each is biased, is
checked against autograd and against the exact gradient of the expected reward, by enumeration (tests/test_policy.py,
bench/estimators.py). values.py has the baseline that is learned.

Letters: P prompts, K samples of each, M tokens of answers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from minillm import cli

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
    differences = rewards.drawn - rewards.drawn[:, :1]  # so that equal rewards have exactly no advantage
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


def has_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: whether the samples of a prompt were rewarded differently. If not, leave-one-out learns nothing."""
    return (rewards != rewards[:, :1]).any(dim=1)


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


def ratio_of(tokens: Tokens, options: "Estimator") -> Tensor:
    logs = tokens.now - tokens.then
    return (tokens.sums(logs) if options.ratio == "sequence" else logs).exp()


def reinforce(tokens: Tokens, options: "Estimator") -> Tensor:
    """The advantage (Williams 1992): unbiased for answers that the present policy has drawn."""
    return tokens.advantages


def importance(tokens: Tokens, options: "Estimator") -> Tensor:
    """The advantage times p now / p then: unbiased for older answers too where the ratio is that of the sequence. That
    of the token alone leaves out how likely the tokens before have become."""
    return ratio_of(tokens, options) * tokens.advantages


def truncated(tokens: Tokens, options: "Estimator") -> Tensor:
    """The same, the ratio being at most `most`: biased, of bounded variance (Ionides 2008; arXiv:1611.01224)."""
    return ratio_of(tokens, options).clamp(max=options.truncate) * tokens.advantages


def clipped(tokens: Tokens, options: "Estimator") -> Tensor:
    """PPO's (Schulman et al. 2017, arXiv:1707.06347): the gradient of min(r·A, clip(r, 1 − low, 1 + high)·A), which is
    that of r·A, or nothing where the ratio is beyond the bound that the advantage pushes it to."""
    ratio, advantages = ratio_of(tokens, options), tokens.advantages
    beyond = torch.where(advantages > 0, ratio > 1 + options.clip_high, ratio < 1 - options.clip_low)
    return torch.where(beyond, 0.0, ratio * advantages)


def is_beyond(tokens: Tokens, options: "Estimator") -> Tensor:
    """(M,) bool: whether the ratio is outside of the bounds of PPO's clip, on either side."""
    ratio = ratio_of(tokens, options)
    return (ratio > 1 + options.clip_high) | (ratio < 1 - options.clip_low)


UPDATES: dict[str, Callable[[Tokens, "Estimator"], Tensor]] = {
    "reinforce": reinforce,
    "importance": importance,
    "truncated": truncated,
    "clip": clipped,
}


# ---- the KL(policy ‖ reference) of tokens as a loss ---------------------------------------------------
#
# log p − log p_ref of what the policy has drawn (k1 of Schulman 2020, "Approximating KL Divergence") has the KL as its
# mean. In the reward it is right, see Episode.earned; as a loss it would teach nothing: the mean of its gradient is 0.


def k2_loss(tokens: Tokens) -> Tensor:
    """The gradient of −½ (log p − log p_ref)², whose mean on answers just drawn is that of −KL at each token, given
    those before it; what tokens do to the KL of later ones is left out."""
    return tokens.reference - tokens.now


def k3_loss(tokens: Tokens) -> Tensor:
    """The gradient of −k3 (GRPO's), k3 = p_ref/p − 1 − log(p_ref/p): its mean is that of −KL(reference ‖ policy), the
    other way round, and so no gradient of the KL, which is the mean of k3 itself (arXiv:2506.09477)."""
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


# ---- a choice from each table --------------------------------------------------------------------

METHODS = ("policy-gradient", "best-of", "expert", "soft-q")


@dataclass(frozen=True)
class Estimator:
    """The options of train_rl.py that decide what an answer teaches."""

    baseline: str = cli.option(
        "leave-one-out", "what is subtracted from a reward; value: learned, for every token", (*BASELINES, "value")
    )
    gae_lambda: float = cli.option(
        1.0, "of --baseline value: 1 for what was earned less what was expected; below it the expected counts for more"
    )
    discount: float = cli.option(1.0, "of --baseline value: what a reward loses with every token before it")
    value_coefficient: float = cli.option(0.0, "how much the value's loss moves the policy's layers; 0: its head only")
    update: str = cli.option(
        "reinforce", "how the ratio of p now to p when drawn enters: not at all, or …", choices=tuple(UPDATES)
    )
    ratio: str = cli.option("token", "of what that ratio is taken", choices=("token", "sequence"))
    clip_low: float = cli.option(0.2, "of --update clip: ratios count down to 1 − this")
    clip_high: float = cli.option(0.2, "and up to 1 + this")
    truncate: float = cli.option(2.0, "of --update truncated: the largest ratio")
    passes: int = cli.option(1, "passes over the answers of a step; more than one asks for another --update")
    minibatches: int = cli.option(1, "updates in a pass, each with its part of the answers")
    aggregate: str = cli.option("answer", "the mean over a step is that of its …", choices=tuple(AGGREGATIONS))
    kl: str = cli.option(
        "off",
        "pull towards the start: in the reward, which is exact, or as a loss",
        choices=("off", "reward", *KL_LOSSES),
    )
    beta: float = cli.option(0.05, "weight of that, in rewards a nat")
    kl_target: float | None = cli.option(None, "steer that weight so that the KL of an answer comes to so many nats")
    kl_limit: float | None = cli.option(None, "stop where the KL of an answer is beyond so many nats")
    entropy: float = cli.option(0.0, "weight of a bonus for the entropy of each token")
    method: str = cli.option(
        "policy-gradient",
        "or imitate the best answer to each prompt; or, in rounds, all that were right; or take logits for Q-values",
        choices=METHODS,
    )
    overlong: str = cli.option(
        "keep", "answers that did not end: judged as they are, penalised, or left out", ("keep", "penalise", "drop")
    )
    sft_share: float | None = cli.option(
        None, "share of the gradient that is supervised: of given answers to training prompts"
    )
    shuffle_advantages: bool = cli.option(
        False, "among the answers of a step: the control that learns from noise alone"
    )

    @property
    def looks_back(self) -> bool:
        """Whether weights depend on log p as it is now, which takes a pass of its own."""
        return self.uses_ratios or self.kl in KL_LOSSES or self.entropy != 0

    @property
    def uses_ratios(self) -> bool:
        return self.update != "reinforce"

    @property
    def learns_value(self) -> bool:
        return self.baseline == "value" and self.method == "policy-gradient"

    @property
    def all_teach(self) -> bool:
        """Whether answers without advantage have something to teach, too."""
        return self.looks_back or self.learns_value or self.method == "soft-q"

    def advantages(self, rewards: Rewards) -> Tensor:
        """(P, K) float, of whole answers; for soft-q, which weighs none against others, the rewards themselves."""
        tables = {"policy-gradient": BASELINES.get(self.baseline), "best-of": best_of, "soft-q": no_baseline}
        found = tables[self.method](rewards)
        return found.flatten()[torch.randperm(found.numel())].view_as(found) if self.shuffle_advantages else found

    def next_beta(self, beta: float, kl: float | None) -> float:
        """The weight of the KL for the next step, after one in which it was `kl` nats an answer, if that is known."""
        return steered(beta, kl, self.kl_target) if self.kl_target and kl is not None else beta

    def counts(self, advantage: float, is_cut: bool) -> bool:
        """Whether an answer is one of those that the mean over a step is over."""
        return not (self.overlong == "drop" and is_cut) and (self.method != "best-of" or advantage > 0)

    def shares(self, lengths: Tensor, longest: int) -> Tensor:
        """What each token of answers of these lengths (E,) float counts for, (E,)."""
        return AGGREGATIONS[self.aggregate](lengths, longest)

    def weights(self, tokens: Tokens, shares: Tensor, beta: float) -> Tensor:
        """Of the log p of each token, (M,); `shares`, (M,), are those of the tokens."""
        weights = UPDATES[self.update](tokens, self)
        if self.kl in KL_LOSSES:
            weights = weights + beta * KL_LOSSES[self.kl](tokens)
        if self.entropy:
            weights = weights + self.entropy * entropy_bonus(tokens)
        return weights * shares
