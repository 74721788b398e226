"""Which estimator of the policy gradient: a choice from each table of policy.py, put together.

The default is REINFORCE with a leave-one-out baseline: unbiased for the expected reward. How far any other choice is
from that, `bench/estimators.py` prints.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm import cli
from minillm.errors import UserError
from minillm.policy import (
    AGGREGATIONS,
    BASELINES,
    KL_LOSSES,
    OF_GROUPS,
    UPDATES,
    Rewards,
    Tokens,
    best_of,
    entropy_bonus,
)


@dataclass(frozen=True)
class Estimator:
    """The options of train_rl.py that decide what an answer teaches."""

    baseline: str = cli.option("leave-one-out", "what is subtracted from a reward", choices=tuple(BASELINES))
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
        "policy-gradient", "or imitate the best answer to each prompt", choices=("policy-gradient", "best-of")
    )
    overlong: str = cli.option(
        "keep", "answers that did not end: judged as they are, penalised, or left out", ("keep", "penalise", "drop")
    )
    sft_share: float = cli.option(0.0, "share of the gradient that is supervised: of given answers to the prompts")
    shuffle_advantages: bool = cli.option(
        False, "among the answers of a step: the control that learns from noise alone"
    )

    @property
    def looks_back(self) -> bool:
        """Whether weights depend on log p as it is now, which takes a pass of its own."""
        return self.update != "reinforce" or self.kl in KL_LOSSES or self.entropy != 0

    def advantages(self, rewards: Rewards) -> Tensor:
        """(P, K) float."""
        found = best_of(rewards) if self.method == "best-of" else BASELINES[self.baseline](rewards)
        return found.flatten()[torch.randperm(found.numel())].view_as(found) if self.shuffle_advantages else found

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


def check(estimator: Estimator, samples: int) -> None:
    """UserError for options that make no sense together."""
    if estimator.baseline in OF_GROUPS and samples < 2:
        raise UserError(f"--samples {samples}: the {estimator.baseline} baseline needs at least 2")
    cli.require_positive(estimator, "passes", "minibatches", "clip_high", "truncate", "kl_target", "kl_limit")
    if not 0 < estimator.clip_low < 1:
        raise UserError(f"--clip-low {estimator.clip_low} must be above 0 and below 1")
    if estimator.beta < 0 or estimator.entropy < 0:
        raise UserError("--beta and --entropy must not be negative")
    if estimator.passes * estimator.minibatches > 1 and estimator.update == "reinforce":
        raise UserError(
            "--passes and --minibatches learn from answers that an older policy drew: give --update clip, or another "
            "that heeds it"
        )
    if estimator.method == "best-of" and samples < 2:
        raise UserError(f"--samples {samples}: the best of them takes at least 2")
    if not 0 <= estimator.sft_share < 1:
        raise UserError(f"--sft-share {estimator.sft_share} must be a share of the gradient, from 0 to below 1")
    if estimator.kl == "off" and estimator.kl_target is not None:
        raise UserError("--kl-target steers the weight of the KL: give --kl reward, or another")
