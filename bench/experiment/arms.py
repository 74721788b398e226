"""The ways to learn that are compared, as a table of choices.

An arm is a script, its options, and what it starts from. All have the same start, budget and held-out examples. What an
arm is told differs, and is said: labels (answers that are right), verdicts (whether its own answers are), or both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import train_rl

CONTROL = "sft"  # what every arm is compared with: supervised learning goes on
SHARE_OF_SFT = 0.3  # of the gradient, where verdicts and labels are mixed
ALONE = {"sft_share": 0.0}  # said in words, as some tasks mix unless told otherwise


@dataclass(frozen=True)
class Arm:
    name: str
    title: str
    is_told: str
    script: str
    options: Mapping[str, Any] = field(default_factory=dict)
    at_every_start: bool = False
    after: str | None = None  # what learns for the first half of the budget
    helper: str | None = None  # what must be trained before it, not counted: "pairs", "judge"
    writes_only: bool = False  # whether only a task whose answers are written has it


LABELS, VERDICTS, BOTH, PREFERENCES, NOISE = "labels", "verdicts", "labels and verdicts", "preferences", "nothing"

ARMS = {
    arm.name: arm
    for arm in (
        Arm("sft", "More SFT", LABELS, "sft", at_every_start=True),
        Arm("sft-early", "SFT, stopped early", LABELS, "sft", {"keep": "best", "patience": 2, "evaluations": 8}),
        Arm("sft-diverse", "SFT, more diverse prompts", LABELS, "sft"),
        Arm("rl", "REINFORCE", VERDICTS, "rl", ALONE, at_every_start=True),
        Arm("sft-rl", "SFT, then REINFORCE", BOTH, "rl", ALONE, after="sft"),
        Arm("rl-sft", "REINFORCE with a share of SFT", BOTH, "rl", {"sft_share": SHARE_OF_SFT}),
        Arm("best-of", "Best of the samples", VERDICTS, "rl", {**ALONE, "method": "best-of"}, writes_only=True),
        Arm("expert", "Expert iteration", BOTH, "rl", {"method": "expert"}, at_every_start=True, writes_only=True),
        Arm("learned", "REINFORCE, learned reward", PREFERENCES, "rl", ALONE, helper="judge", writes_only=True),
        Arm("q", "Soft Q-learning, token by token", VERDICTS, "rl", {**ALONE, "method": "soft-q"}, writes_only=True),
        Arm("dpo", "DPO", PREFERENCES, "sft", helper="pairs", writes_only=True),
        Arm("shuffled", "REINFORCE, verdicts shuffled", NOISE, "rl", {**ALONE, "shuffle_advantages": True}),
    )
}


def obstacle(arm: Arm, study: Any) -> str | None:
    """Why an arm makes no sense for a study, or cannot be run by the scripts as they are; None where it does."""
    if arm.name == "sft-diverse" and not study.diverse:
        return f"{study.name} has no other prompts with the same labels"
    if arm.writes_only and not study.writes:
        return f"{study.name} has no written answers"
    if arm.helper and study.no_pairs:
        return study.no_pairs
    if arm.script == "rl" and study.task not in learnable():
        return f"train_rl.py does not learn --task {study.task}"
    if unknown := missing(arm):
        return f"train_rl.py has no {unknown}"
    return None


def options_of_rl() -> Mapping[str, Any]:
    """What train_rl.py may be told, by name, and which choices there are."""
    return {field.name: field.metadata.get("choices") for field in fields(train_rl.Args)}


def learnable() -> Sequence[str]:
    return options_of_rl()["task"]


def missing(arm: Arm) -> str | None:
    """An option, or a value of one, that train_rl.py does not know."""
    known = options_of_rl()
    for name, value in arm.options.items() if arm.script == "rl" else ():
        if name not in known:
            return f"--{name.replace('_', '-')}"
        if known[name] and value not in known[name]:
            return f"--{name} {value}"
    return None
