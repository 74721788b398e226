"""The questions, each answered by pictures and by sentences that their intervals carry.

A sentence is made of a difference and its interval alone (effects.sentence): without an interval that tells it from
none, it says that no difference was seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from experiment.arms import CONTROL
from experiment.effects import is_told, mean_of, over_seeds, sentence
from experiment.pictures import Picture, curve
from experiment.results import START, Results, title_of, told
from minillm.metrics import Interval
from minillm.pages.charts import Series, Value

SHOWN = ("sft", "rl", "expert")  # arms whose curves share a picture, in colours of their own, behind the start


@dataclass
class Question:
    title: str
    asked: str
    pictures: list[Picture] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def answered(results: Results) -> list[Question]:
    found = [ask(results) for ask in (optimised, labelled, generalises, moved, stable)]
    for question in found:
        question.sentences = [*filter(None, question.sentences)]
    return found


# ---- what sentences are made of ------------------------------------------------------------------------


def compared(
    results: Results, first: str, second: str, what: str, of: str, higher: str, lower: str, nothing: str, **more: float
) -> list[str]:
    """A sentence of the first arm less the second, unless one of them was not run."""
    found = results.difference(first, second, what, of, **more)
    return [] if found is None else [sentence(found, higher, lower, nothing)]  # empty without an interval


def by_arms(results: Results, other: str, what: str, of: str) -> list[Value]:
    """Each arm at the shared start, less another."""
    rows = []
    for arm in results.design.arms:
        if arm != other and (found := results.difference(arm, other, what, of)) is not None:
            rows.append(Value(f"{title_of(arm)} ({told(arm)})", in_points(found), arm != "shuffled"))
    return known([("", row) for row in rows])


def in_points(found: Interval) -> Interval:
    """A difference of shares, in points, which nobody takes for a share."""
    is_share = found.form.endswith("%")
    return Interval(*(100 * value if is_share else value for value in found), "+.1f" if is_share else f"+{found.form}")


def known(rows: Sequence[tuple[str, Value]]) -> list[Value]:
    """Those with an interval; one seed has none."""
    return [value for _, value in rows if value.interval.low == value.interval.low]


def by_effort(results: Results, axis: str) -> list[Series]:
    """How the share of right dev answers grew, as the mean over seeds between the least and the greatest of them."""
    before = results.value(START, of="dev")
    found = [Series(title_of(START), [0.0], [before.value])] if before else []
    for arm in SHOWN:
        looks = results.looks(arm, axis)
        count = min((len(x) for x, _ in looks), default=0)
        if count:
            x, y = (np.array([each[k][:count] for each in looks]) for k in (0, 1))
            found.append(
                Series(title_of(arm), x.mean(0).tolist(), y.mean(0).tolist(), y.min(0).tolist(), y.max(0).tolist())
            )
    return found


# ---- the five ------------------------------------------------------------------------------------------


def optimised(results: Results) -> Question:
    asked = (
        "SFT raises the likelihood of given answers, REINFORCE the reward of its own. Do they move together? "
        "References are the given answers of the test set, which nobody has learned from."
    )
    question = Question("What is optimised?", asked)
    right, nats = (by_arms(results, START, what, "test") for what in ("right", "nats"))
    question.pictures = [
        Picture("right_since_start", "Right answers, change since the start", "in points; greedy, test", values=right,
                has_shares=False),
        Picture(
            "nats_since_start", "−log p of the reference answers, change since the start",
            "nats a token; above 0 the references have become less likely", values=nats, has_shares=False,
        ),
    ]  # fmt: skip
    for arm in ("sft", "rl", "expert", "learned"):
        name = title_of(arm)
        question.sentences += compared(
            results, arm, START, "right", "test", f"{name} made more answers right than its start",
            f"{name} made fewer answers right than its start", f"{name}: no change of right answers was seen",
        )  # fmt: skip
        question.sentences += compared(
            results, arm, START, "nats", "test", f"{name} made the references less likely",
            f"{name} made the references likelier", f"{name}: no change of the references' likelihood was seen",
        )  # fmt: skip
    return question


def labelled(results: Results) -> Question:
    asked = "Labels tell what is right; a verdict tells whether one own answer is. How far do verdicts go instead?"
    question = Question("How much labelled data does it take?", asked)
    shares = results.design.shares
    series = []
    for arm in (START, *SHOWN):
        points = [(labels(results, s), results.value(arm, share=s)) for s in shares]
        points = [(x, value) for x, value in points if value is not None]
        if points:
            series.append(curve(title_of(arm), [x for x, _ in points], [value for _, value in points]))
    question.pictures = [
        Picture("by_labels", "Right answers by labels", "test; the band is the 95 % interval; labels on a log axis",
                series, unit="labels", is_log=True),
    ]  # fmt: skip
    for share in shares:
        for arm in ("rl", "expert"):
            found = results.difference(arm, CONTROL, share=share) if results.has(arm, share) else None
            if found is not None:
                name, there = title_of(arm), f"from {share:.0%} of the labels"
                question.sentences.append(sentence(
                    found, f"{there} {name} is ahead of more SFT", f"{there} {name} is behind more SFT",
                    f"{there} no difference between {name} and more SFT was seen",
                ))  # fmt: skip
    for arm in ("rl", "expert"):
        found = results.difference(arm, CONTROL, other_share=1.0) if 1.0 in shares else None
        if found is not None:
            name, there = title_of(arm), f"from {results.design.shared:.0%} of the labels"
            question.sentences.append(sentence(
                found, f"{name} {there} is ahead of more SFT of all of them",
                f"{name} {there} is behind more SFT of all of them",
                f"no difference was seen between {name} {there} and more SFT of all of them",
            ))  # fmt: skip
    question.sentences += bits(results)
    return question


def labels(results: Results, share: float) -> int:
    return len(results.study.made(share, 0).splits.train)


def bits(results: Results) -> list[str]:
    """What the arms were told, counted."""
    cost = results.mean_cost("rl")
    if cost is None:
        return []
    told_bits = f"Told at the shared start: {cost.labels:,.0f} labels of {results.study.label_bits} each; besides "
    return [f"{told_bits}REINFORCE was told {cost.verdicts:,.0f} verdicts, each of one bit at most."]


def generalises(results: Results) -> Question:
    asked = f"Held-out examples like those of training, and unlike them: {results.study.shift}."
    question = Question("Does it generalise?", asked)
    for of, title in (("test", "like the training"), ("shift", "unlike the training")):
        question.pictures.append(Picture(
            f"against_sft_{of}", f"Right answers, difference to more SFT: {title}", "in points; greedy",
            values=by_arms(results, CONTROL, "right", of), has_shares=False,
        ))  # fmt: skip
    for arm in ("rl", "sft-rl", "expert", "sft-early", "sft-diverse"):
        name = title_of(arm)
        question.sentences += compared(
            results, arm, CONTROL, "right", "shift", f"unlike the training, {name} is ahead of more SFT",
            f"unlike the training, {name} is behind more SFT",
            f"unlike the training, no difference between {name} and more SFT was seen",
        )  # fmt: skip
    found = gap(results, "rl", CONTROL)
    if found is not None:
        question.sentences.append(sentence(
            found, "what REINFORCE gains over more SFT is larger unlike the training than like it",
            "what REINFORCE gains over more SFT is smaller unlike the training than like it",
            "no difference was seen between how far REINFORCE is ahead of more SFT unlike the training, and like it",
        ))  # fmt: skip
    return question


def gap(results: Results, first: str, second: str) -> Interval | None:
    """How much more the first is ahead of the second on `shift` than on `test`: examples differ, seeds are the same."""
    pairs = [results.pair(first, second, "right", of) for of in ("shift", "test")]
    if any(pair is None for pair in pairs):
        return None
    (a, b), (c, d) = pairs
    return between(a - b, c - d)


def between(first: np.ndarray, second: np.ndarray, form: str = ".1%") -> Interval:
    """The mean of (S, n) less that of (S, m), of the same seeds and other examples: as one matrix of n + m examples
    whose mean is that difference."""
    n, m = first.shape[1], second.shape[1]
    return mean_of(np.hstack([first * (n + m) / n, -second * (n + m) / m]), form, strata=(n, m))


def moved(results: Results) -> Question:
    asked = "Answers drawn at temperature 1: how far they are from the start's, how varied, and how many are right."
    question = Question("What is forgotten, and how far does it move?", asked)
    kl = [Value(f"{title_of(a)} ({told(a)})", value, a != "shuffled") for a in results.design.arms
          if (value := results.value(a, "kl"))]  # fmt: skip
    question.pictures = [
        Picture("kl", "KL to the start", "nats an answer", values=known([("", v) for v in kl]), has_shares=False),
        Picture("pass_1", "pass@1, change since the start", "in points: one answer drawn",
                values=by_arms(results, START, "passed", "test"), has_shares=False),
        Picture("pass_8", "pass@8, change since the start", "in points: one of eight answers is right",
                values=by_arms(results, START, "any", "test"), has_shares=False),
        Picture("entropy", "Entropy, change since the start", "nats a token drawn",
                values=by_arms(results, START, "entropy", "test"), has_shares=False),
        Picture("distinct", "Diversity, change since the start", "in points: share of eight answers that differ",
                values=by_arms(results, START, "distinct", "test"), has_shares=False),
    ]  # fmt: skip
    for arm in ("rl", "sft", "expert"):
        name = title_of(arm)
        for what, called in (("passed", "pass@1"), ("any", "pass@8"), ("entropy", "entropy")):
            question.sentences += compared(
                results, arm, START, what, "test", f"{name} raised {called}", f"{name} lowered {called}",
                f"{name}: no change of {called} was seen",
            )  # fmt: skip
    question.sentences += compared(
        results, "rl", CONTROL, "kl", "test", "REINFORCE moved further from the start than more SFT",
        "REINFORCE moved less far from the start than more SFT", "no difference was seen in how far the two moved",
    )  # fmt: skip
    return question


def stable(results: Results) -> Question:
    asked = (
        "The same again with other seeds; with verdicts that say nothing; at other learning rates; and whether two "
        "batches agree on where to go."
    )
    question = Question("How stable is it?", asked)
    before = results.value(START, of="dev")
    series = [Series(title_of(START), [1.0], [before.value])] if before else []
    for arm in SHOWN:
        trials = sorted((f, right) for f, right in results.work.trials(arm).items() if right == right)
        if trials:
            series.append(Series(title_of(arm), [f for f, _ in trials], [right for _, right in trials]))
    question.pictures = [
        Picture("learning_rates", "Right answers by learning rate", "dev, after a short trial; times the usual rate",
                series, unit="times the usual rate", is_log=True),
        noise(results),
    ]  # fmt: skip
    question.sentences.append(signal(results))
    question.sentences += compared(
        results, "shuffled", START, "right", "test", "verdicts that say nothing made more answers right",
        "verdicts that say nothing made fewer answers right: what noise alone does",
        "verdicts that say nothing changed nothing that was seen",
    )  # fmt: skip
    question.sentences += compared(
        results, "rl", "shuffled", "right", "test", "true verdicts are ahead of shuffled ones",
        "true verdicts are behind shuffled ones", "no difference between true verdicts and shuffled ones was seen",
    )  # fmt: skip
    return question


def noise(results: Results) -> Picture:
    """How far two batches agree, by what they are told."""
    series = []
    for by in ("labels", "verdicts"):
        points = [(labels(results, s), results.agreement(by, s)) for s in results.design.shares]
        points = [(x, over_seeds(cosines, ".3f")) for x, cosines in points if cosines]
        series += [curve(by, [x for x, _ in points], [value for _, value in points])] if points else []
    return Picture(
        "gradient_noise", "Cosine of the gradients of two batches", "at the starts; 1: all signal, 0: all noise",
        series, unit="labels of the start", is_log=True, has_shares=False,
    )  # fmt: skip


def signal(results: Results) -> str:
    """Which of the two has less noise in its gradient, at the shared start."""
    both = [results.agreement(by, results.design.shared) for by in ("labels", "verdicts")]
    if not all(both):
        return ""
    found = over_seeds([a - b for a, b in zip(*both, strict=True)], ".3f")
    return sentence(
        found, "batches of labels agree more on where to go than batches of verdicts",
        "batches of verdicts agree more on where to go than batches of labels",
        "no difference was seen in how far batches of labels and of verdicts agree on where to go",
    )  # fmt: skip


# ---- what others found -------------------------------------------------------------------------------------


def published(results: Results) -> list[tuple[str, str, str]]:
    """Of each paper: which, what it says, what was seen here."""
    shift = {"what": "right", "of": "shift"}
    return [
        ("arXiv:2501.17161", "SFT memorises, RL generalises: it also learns what is unlike the training.",
         verdict(results.difference("rl", CONTROL, **shift), "agrees: unlike the training REINFORCE is ahead of SFT",
                 "disagrees: unlike the training REINFORCE is behind SFT")),
        ("arXiv:2510.00237", "With diverse prompts SFT generalises, too.",
         verdict(results.difference("sft-diverse", CONTROL, **shift), "agrees: more diverse prompts help there",
                 "disagrees: more diverse prompts do harm there")),
        ("arXiv:2509.12235", "Unlike the training, SFT is best early, and RL behind it restores what more SFT lost.",
         verdict(results.difference("sft-early", CONTROL, **shift), "agrees in part: SFT stopped early is ahead there",
                 "disagrees: SFT stopped early is behind there")
         + " " + verdict(results.difference("sft-rl", CONTROL, **shift), "And SFT, then REINFORCE is ahead of more SFT",
                         "And SFT, then REINFORCE is behind more SFT")),
    ]  # fmt: skip


def verdict(found: Interval | None, higher: str, lower: str) -> str:
    said = "" if found is None else sentence(found, higher, lower, "no difference was seen there")
    return said or "Nothing can be said."


def headline(results: Results) -> str:
    """In one sentence what came out: who was ahead of the control, and by how much; none of them is picked out."""
    arms = [arm for arm in results.design.arms if arm not in (CONTROL, "shuffled")]
    rows = [(arm, found) for arm in arms if (found := results.difference(arm, CONTROL)) is not None and is_told(found)]
    ahead = [f"{title_of(arm)} by {by(found)}" for arm, found in rows if found.value > 0]
    behind = [f"{title_of(arm)} by {by(found.turned())}" for arm, found in rows if found.value < 0]
    said = [f"{word} {', '.join(some)}" for word, some in (("ahead:", ahead), ("behind:", behind)) if some]
    others = f"{len(arms)} arm{'' if len(arms) == 1 else 's'} beside more SFT"
    compared = f"{results.study.name}, from {results.design.shared:.0%} of the labels, {others}"
    return f"{compared}: {'; '.join(said) or 'none is told apart from it'}"


def by(found: Interval) -> str:
    return f"{100 * found.value:.1f} points [{100 * found.low:.1f}, {100 * found.high:.1f}]"
