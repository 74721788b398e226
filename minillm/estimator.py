"""Which choices of policy.Estimator make no sense together."""

from minillm import cli
from minillm.errors import UserError
from minillm.policy import OF_GROUPS, Estimator


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
    if estimator.method != "expert":  # which heeds none of them, see expert.check
        check_effects(estimator)
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


def check_effects(estimator: Estimator) -> None:
    """UserError for an option that was changed and that nothing heeds, as the others are."""
    is_pulled = estimator.kl != "off" or estimator.method == "soft-q"
    needs = {
        "baseline": (estimator.method == "policy-gradient", "--method policy-gradient"),
        **dict.fromkeys(("gae_lambda", "discount", "value_coefficient"), (estimator.learns_value, "--baseline value")),
        "ratio": (estimator.uses_ratios, "an --update other than reinforce"),
        **dict.fromkeys(("clip_low", "clip_high"), (estimator.update == "clip", "--update clip")),
        "truncate": (estimator.update == "truncated", "--update truncated"),
        "beta": (is_pulled, "--kl, or --method soft-q"),
    }
    defaults = Estimator()
    for name, (is_heeded, what) in needs.items():
        if not is_heeded and vars(estimator)[name] != vars(defaults)[name]:
            raise UserError(f"--{name.replace('_', '-')} has an effect only with {what}; leave it out, or give that")


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
