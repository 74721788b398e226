"""What is going wrong in a training by reward, and why, from its log: a table of pure functions.

Each looks at all records so far and either finds nothing or says in a sentence what it saw, what the likely cause is
and what to do. What is compared are means over steps, by how far they lie apart in standard errors, or looks at the
dev set by their intervals, so that noise alone raises no alarm.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple

RECENT = 20  # steps that a mean is over; fewer say nothing
LOOKED = 5  # of the KL, which not every step looks at; the last so many, at least three
SURE = 4.0  # standard errors between two of them: by chance once in some ten thousand looks
LITTLE = 0.1  # share of the entropy at the start, and of the way to the best reward
MOST_KL = 1.0  # nats a token
MOST_ALIKE = 0.9  # share of prompts whose answers are all rewarded alike
MOST_UNFINISHED = 0.5  # share of answers
MOST_BEYOND = 0.3  # share of tokens


class Log(NamedTuple):
    """What there is to look at."""

    steps: Sequence[Mapping[str, Any]]  # records of steps
    looks: Sequence[Mapping[str, Any]]  # records of looks at the dev set, the first one before the training
    headline: str  # the metric that counts
    lower_is_better: bool = False
    is_over: bool = False  # whether there will be no more

    def values(self, name: str) -> list[float]:
        """Of all steps that logged it."""
        return [record[name] for record in self.steps if name in record]

    def recent(self, name: str) -> float | None:
        """The mean over the last steps; None where there were too few."""
        values = self.values(name)
        return fmean(values[-RECENT:]) if len(values) >= RECENT else None

    def change(self, name: str) -> float:
        """From the first steps to the last, if it is beyond chance, else 0."""
        values = self.values(name)
        if len(values) < 2 * RECENT:
            return 0.0
        first, last = values[:RECENT], values[-RECENT:]
        error = math.sqrt((variance(first) + variance(last)) / RECENT)
        moved = fmean(last) - fmean(first)
        return moved if abs(moved) > SURE * error else 0.0

    def fall(self, name: str, since: int = 0, lower_is_better: bool = False) -> tuple[float, float] | None:
        """A dev metric at a look and at the last one, if it got worse beyond both intervals."""
        looks = [record for record in self.looks if name in record]
        if len(looks) < 2:
            return None
        before, now = looks[since], looks[-1]
        ends = ("high", "low") if lower_is_better else ("low", "high")
        apart = before[f"{name}_{ends[0]}"] - now[f"{name}_{ends[1]}"]
        return (before[name], now[name]) if (-apart if lower_is_better else apart) > 0 else None

    @property
    def is_solved(self) -> bool:
        """Whether answers earn nearly the best that any was seen to earn."""
        bounds = [*self.values("best_reward"), *self.values("worst_reward")]
        reward = self.recent("reward")
        return bool(bounds) and reward is not None and max(bounds) - reward <= LITTLE * (max(bounds) - min(bounds))


def misses_the_metric(log: Log) -> str | None:
    """The reward is climbed, on held-out prompts, too, and the metric pays for it."""
    fallen = log.fall(f"dev_{log.headline}", lower_is_better=log.lower_is_better)
    if fallen and log.change("reward") > 0 and not log.fall("greedy_reward"):
        return (
            f"the reward rises while {log.headline} on dev got worse ({fallen[0]:.3g} → {fallen[1]:.3g}): what is "
            "rewarded is not what counts; look at the samples, mend the reward or hold the model back by --kl "
            "reward"
        )
    return None


def sharpens(log: Log) -> str | None:
    """Drawn answers get better, and the likeliest ones, on held-out prompts, worse."""
    if (fallen := log.fall("greedy_reward")) and log.change("reward") > 0:
        return (
            f"drawn answers earn more while greedy ones on dev earn less ({fallen[0]:.3g} → {fallen[1]:.3g}): the "
            "policy gets sharper and not better, or learns its prompts by heart; try a lower --lr, more --prompts, "
            "--sft-share"
        )
    return None


def is_past_its_best(log: Log) -> str | None:
    name = f"dev_{log.headline}"
    looks = [record[name] for record in log.looks if name in record]
    if not looks:
        return None
    best = (min if log.lower_is_better else max)(looks)
    if fallen := log.fall(name, looks.index(best), log.lower_is_better):
        return (
            f"{log.headline} on dev was better once ({fallen[0]:.3g}, now {fallen[1]:.3g}): --keep best hands on "
            "the best model and not the last; a lower --lr may keep it"
        )
    return None


def stops_trying(log: Log) -> str | None:
    entropies = log.values("entropy")
    if (now := log.recent("entropy")) is None or log.is_solved:
        return None
    if now < LITTLE * (before := fmean(entropies[:RECENT])):
        return (
            f"the entropy fell from {before:.2g} to {now:.2g} nats a token: hardly anything new is tried any more, "
            "and what is wrong now stays so; try a lower --lr, --entropy 0.01 or a higher --temperature"
        )
    return None


def leaves_the_start(log: Log) -> str | None:
    kls, lengths = log.values("kl")[-LOOKED:], log.recent("length")
    if len(kls) >= 3 and lengths and (kl := fmean(kls) / lengths) > MOST_KL:
        return (
            f"the policy is {fmean(kls):.1f} nats an answer, {kl:.1f} a token, away from the start: what the start "
            "knew gets lost; try a lower --lr, --kl reward with a larger --beta, or --kl-limit"
        )
    return None


def learns_nothing(log: Log) -> str | None:
    """Not even by luck: no step of a policy gradient, or no round of expert iteration, had anything to learn from."""
    norms, finds = log.values("gradient_norm"), log.values("finds")
    if len(norms) >= (1 if log.is_over else RECENT) and not any(norms):
        return (
            "in no step so far were there answers to learn from, as all to one prompt were rewarded alike or none "
            "counted: try more --samples, a higher --temperature, a reward with degrees, or another start"
        )
    if finds and not any(finds):
        best = max(log.values("best_reward"), default=math.nan)
        return (
            f"none of the answers was right, the best being rewarded {best:.3g}, so that only what is given is "
            "learned: try a lower --threshold, more --prompts, or a better start"
        )
    return None


def has_nothing_to_compare(log: Log) -> str | None:
    alike = log.recent("groups_without_variance")
    if alike is not None and alike > MOST_ALIKE and not log.is_solved:
        return (
            f"the answers to {alike:.0%} of the prompts are all rewarded alike, so that nothing is learned from "
            "them: try more --samples, a higher --temperature, a reward with degrees, or a start that is right "
            "more often"
        )
    return None


def does_not_stop(log: Log) -> str | None:
    unfinished = log.recent("unfinished")
    if unfinished is not None and unfinished > MOST_UNFINISHED:
        return (
            f"{unfinished:.0%} of the answers don't end by themselves: the start may not know how, or the reward "
            "pays for length; try --overlong penalise, or a start that was trained to end its answers"
        )
    return None


def eats_the_rest(log: Log) -> str | None:
    """One part of the reward rises at the cost of another."""
    parts = dict.fromkeys(name for record in log.steps for name in record if name.startswith("reward_"))
    changes = {name.removeprefix("reward_"): log.change(name) for name in parts}
    rising, falling = max(changes, key=changes.get, default=None), min(changes, key=changes.get, default=None)
    if rising and changes[rising] > 0 > changes[falling]:
        return (
            f"the part {rising!r} of the reward rises while {falling!r} falls: it is easier to earn, and weighs too "
            f"much; try a smaller weight, --reward {rising}=0.3"
        )
    return None


def goes_too_far(log: Log) -> str | None:
    beyond = log.recent("ratios_beyond")
    if beyond is not None and beyond > MOST_BEYOND:
        return (
            f"for {beyond:.0%} of the tokens p now / p then is beyond the bounds of the clip: a step goes too far "
            "for answers that an older policy drew; try a lower --lr, or fewer --passes or --minibatches"
        )
    return None


def expects_wrongly(log: Log) -> str | None:
    explained = log.recent("explained_variance")
    if explained is not None and explained < 0 and len(log.steps) >= 2 * RECENT:
        return (
            f"the learned value explains {explained:.0%} of the variance of returns, less than their mean would: it "
            "adds noise; try --baseline leave-one-out, or --value-coefficient 0.1"
        )
    return None


ALARMS: dict[str, Callable[[Log], str | None]] = {
    "reward up, metric down": misses_the_metric,
    "sampled up, greedy down": sharpens,
    "past its best": is_past_its_best,
    "entropy collapse": stops_trying,
    "far from the start": leaves_the_start,
    "nothing to learn from": learns_nothing,
    "groups without variance": has_nothing_to_compare,
    "answers without end": does_not_stop,
    "one part eats the rest": eats_the_rest,
    "ratios beyond bounds": goes_too_far,
    "a value that misleads": expects_wrongly,
}


def raised(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The alarms that a log holds, with what was said."""
    return {record["alarm"]: record["says"] for record in records if "alarm" in record}


def new_alarms(
    records: Sequence[Mapping[str, Any]], headline: str, lower_is_better: bool, is_over: bool = False
) -> dict[str, str]:
    """Those that the records give reason for and do not hold yet."""
    steps = [record for record in records if "reward" in record]
    looks = [record for record in records if f"dev_{headline}" in record]
    log, known = Log(steps, looks, headline, lower_is_better, is_over), raised(records)
    found = {name: find(log) for name, find in ALARMS.items() if name not in known}
    return {name: says for name, says in found.items() if says}
