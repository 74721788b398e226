"""Which estimator of the policy gradient is meant: a choice from each table of policy.py, as options of train_rl.py."""

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
    no_baseline,
    steered,
)

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


def check(estimator: Estimator, samples: int | None) -> None:
    """UserError for options that make no sense together; without `samples` as far as they don't depend on it."""
    is_single = samples is not None and samples < 2
    if is_single and estimator.baseline in OF_GROUPS and estimator.method != "soft-q":
        raise UserError(f"--samples {samples}: the {estimator.baseline} baseline needs at least 2")
    cli.require_positive(estimator, "passes", "minibatches", "clip_high", "truncate", "kl_target", "kl_limit")
    if not 0 < estimator.clip_low < 1:
        raise UserError(f"--clip-low {estimator.clip_low} must be above 0 and below 1")
    if estimator.beta < 0 or estimator.entropy < 0:
        raise UserError("--beta and --entropy must not be negative")
    if is_repeated(estimator) and estimator.update == "reinforce" and estimator.method != "soft-q":
        raise UserError(
            "--passes and --minibatches learn from answers that an older policy drew: give --update clip, or another "
            "that heeds it"
        )
    if is_single and estimator.method == "best-of":
        raise UserError(f"--samples {samples}: the best of them takes at least 2")
    cli.require_share(estimator, "sft_share", "the gradient")
    if estimator.kl == "off" and estimator.kl_target is not None:
        raise UserError("--kl-target steers the weight of the KL: give --kl reward, or another")
    check_value(estimator)
    if estimator.method == "soft-q":
        check_soft_q(estimator)


def is_repeated(estimator: Estimator) -> bool:
    """Whether an answer is learned from after the policy that drew it has moved."""
    return estimator.passes * estimator.minibatches > 1


def check_value(estimator: Estimator) -> None:
    for name in ("gae_lambda", "discount"):
        if not 0 <= (value := vars(estimator)[name]) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be between 0 and 1")
    if not 0 <= estimator.value_coefficient < cli.LARGEST:
        raise UserError(f"--value-coefficient {estimator.value_coefficient} must be 0 or more")
    if estimator.learns_value and estimator.shuffle_advantages:
        raise UserError("--shuffle-advantages takes one advantage an answer; --baseline value has one a token")


def check_soft_q(estimator: Estimator) -> None:
    """UserError for what belongs to policy gradients."""
    defaults = Estimator()
    for name in ("kl", "update", "entropy"):
        if vars(estimator)[name] != vars(defaults)[name]:
            raise UserError(
                f"--method soft-q takes no --{name}: it is pulled to the start by --beta, and needs no ratios"
            )
    if estimator.beta == 0:
        raise UserError("--beta 0: --method soft-q divides rewards by it; give how many of them a nat is worth")
