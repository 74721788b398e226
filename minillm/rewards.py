"""What answers are rewarded with: a task's own rewards by name, a function of a person's file, or a model trained here;
several of them with weights, each a part with a name of its own.

    --reward exact                      one of the task's own
    --reward my_reward.py:score         def score(examples, answers): one number an answer, or names → such lists
    --reward runs/classify-sft:pos      how likely a classifier takes the answer for one of its class
    --reward runs/preference-sft        what a reward model gives it
    --reward exact --reward length=-0.01        both; the second counts a hundredth, and against

A function is called once a step with all answers, of several processes by each with its own. What it does wrong, an
exception, a wrong count, a NaN, no end, is a RewardError, by which the training ends, saved, in a sentence that says
so; once it is mended --resume goes on at that very step. With --reward-errors skip the step is left out instead.
"""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from minillm import evaluate
from minillm.errors import UserError
from minillm.final_number import last_number
from minillm.functions import SECONDS, RewardError, function_of
from minillm.heads import Scorer
from minillm.metrics import entities
from minillm.published.checkpoint import open_checkpoint, resolve
from minillm.published.exchanges import Composer
from minillm.published.vocabularies import load_tokenizer
from minillm.tagging import Tags
from minillm.tokenizer import Tokenizer
from minillm.turns import last_turn
from minillm.wording import counted

Parts = Mapping[str, Sequence[float]]
Reward = Callable[[Sequence[Any], Sequence[str]], Parts]  # examples and answers, as many → for each part one an answer


@dataclass(frozen=True)
class Weighted:
    """Several rewards, and how much each counts."""

    rewards: Sequence[tuple[str, Reward, float]]  # name, reward, weight

    def __call__(self, examples: Sequence[Any], answers: Sequence[str]) -> dict[str, list[float]]:
        parts: dict[str, list[float]] = {}
        for name, reward, weight in self.rewards:
            for part, values in reward(examples, answers).items():
                if part in parts:
                    raise UserError(f"--reward: two rewards have a part {part!r}, the second one of {name}; rename one")
                parts[part] = [weight * value for value in values]
        return parts


def open_rewards(
    options: Sequence[str],
    own: Mapping[str, Reward],
    device: torch.device,
    of_texts: bool = True,
    seconds: float = SECONDS,
) -> Reward:
    """What the options ask for, together. `own` are the task's, of which the first is the default; `of_texts`: whether
    answers are texts, which a model can judge; `seconds`: what a function may take at a time. UserError."""
    if not options:
        return next(iter(own.values()))
    return Weighted([open_reward(option, own, device, of_texts, seconds) for option in options])


def open_reward(
    option: str, own: Mapping[str, Reward], device: torch.device, of_texts: bool, seconds: float
) -> tuple[str, Reward, float]:
    """From `NAME`, `FILE.py:FUNCTION` or a model, with `=WEIGHT` behind it if it is not 1."""
    name, weight = split_weight(option)
    if name in own:
        return name, own[name], weight
    if ".py" in name:
        path, _, function = name.rpartition(":") if ".py:" in name else (name, "", "score")
        return name, of_file(Path(path), function, seconds), weight
    if not Path(name.partition(":")[0]).exists() and "/" not in name:
        there = ", ".join(own) or "none"
        run = " or a run" if of_texts else ""
        raise UserError(f"--reward {option}: the task's own are {there}; else give FILE.py:FUNCTION{run}")
    if not of_texts:
        raise UserError(f"--reward {option}: a model judges texts, and these answers are none; give FILE.py:FUNCTION")
    return name, of_last_turn(of_model(name, device)), weight


def split_weight(option: str) -> tuple[str, float]:
    name, equals, weight = option.rpartition("=")
    if not equals:
        return option, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not name or not math.isfinite(value):
        raise UserError(f"--reward {option}: expected NAME=WEIGHT with a number as weight")
    return name, value


# ---- a function of a person's file ---------------------------------------------------------------


def of_file(path: Path, name: str, seconds: float) -> Reward:
    """The function `name` of a Python file, which is run for it. Its values are checked at every call. UserError."""
    return function_of(path, name, lambda found, count: checked(f"{path}:{name}", name, found, count), seconds)


def checked(what: str, name: str, found: Any, count: int) -> Parts:
    """What a function returned, as parts. RewardError for what is no number an answer."""
    parts = found if isinstance(found, Mapping) else {name: found}
    if not parts:
        raise RewardError(f"{what} returned no reward")
    return {str(part): numbers_of(f"{what}, part {part!r}", values, count) for part, values in parts.items()}


def numbers_of(what: str, values: Any, count: int) -> list[float]:
    try:
        found = iter(values.tolist() if hasattr(values, "tolist") else values)
    except TypeError:
        raise RewardError(
            f"{what} returned {type(values).__name__}, but a list with a number for each answer was expected"
        ) from None
    found = list(islice(found, count + 1))  # of what may have no end
    if len(found) != count:
        number = f"more than {counted(count, 'value')}" if len(found) > count else counted(len(found), "value")
        raise RewardError(f"{what} returned {number} for {counted(count, 'answer')}")
    for i, value in enumerate(found):
        if not isinstance(value, numbers.Real) or not is_finite(value):
            raise RewardError(f"{what} returned {shown(value)} for answer {i}, but a finite number was expected")
    return [float(value) for value in found]


def is_finite(value: numbers.Real) -> bool:
    """Whether a float can hold it: an int or a fraction may be too large for any."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def shown(value: Any) -> str:
    """For a sentence; Python writes no integer of thousands of digits, nor could anyone read it."""
    return f"a number of {value.bit_length():,} bits" if isinstance(value, int) and abs(value) >= 2**64 else repr(value)


# ---- a model trained here --------------------------------------------------------------------------


def of_model(name: str, device: torch.device) -> Reward:
    """A classifier, `MODEL:CLASS`: how likely an answer is of that class, from 0 to 1. Or a model with one output: the
    score that it gives an answer to its prompt. UserError."""
    folder, _, label = name.partition(":")
    saved = open_checkpoint(resolve(folder))
    if saved.head_name not in ("classify", "multi"):
        raise UserError(f"--reward {name}: this model is no classifier, so it judges no answers")
    if saved.head_name == "classify" and saved.has_one_output and not label:
        return of_judge(saved.load("score").to(device).eval(), load_tokenizer(saved.path))
    model, tokenizer = saved.load(saved.head_name).to(device).eval(), load_tokenizer(saved.path)
    if label not in model.classes:
        raise UserError(f"--reward {name}: name one of its classes, {folder}:{model.classes[0]} or another of them")
    column = model.classes.index(label)

    def reward(examples: Sequence[Any], answers: Sequence[str]) -> Parts:
        texts = [(answer if answer.strip() else " ",) for answer in answers]
        return {label: evaluate.classify(model, tokenizer, texts)[:, column].tolist()}

    return reward


def of_judge(model: Scorer, tokenizer: Tokenizer) -> Reward:
    """The scores of a reward model."""
    compose = Composer(model, tokenizer)

    def reward(examples: Sequence[Any], answers: Sequence[str]) -> Parts:
        prompts = [example.prompt for example in examples]
        return {"score": evaluate.score(model, tokenizer, prompts, answers, compose).tolist()}

    return reward


# ---- rewards that tasks share ----------------------------------------------------------------------


def of_last_turn(reward: Reward) -> Reward:
    """The same reward, of what the model said last where its answers have turns: what is compared or read is that."""
    return lambda examples, answers: reward(examples, [*map(last_turn, answers)])


def exact(examples: Sequence[Any], answers: Sequence[str]) -> Parts:
    """1 for a right answer, such as one of those that are given, but for blanks around it; else 0."""
    return {"exact": [float(e.is_right(answer)) for e, answer in zip(examples, answers, strict=True)]}


def length(examples: Sequence[Any], answers: Sequence[str]) -> Parts:
    """The number of characters."""
    return {"length": [float(len(answer)) for answer in answers]}


def number(examples: Sequence[Any], answers: Sequence[str]) -> Parts:
    """1 where the number that an answer gives, see `last_number`, equals the right one, else 0."""
    right = [{value for each in example.answers if (value := last_number(each)) is not None} for example in examples]
    return {"number": [float(last_number(answer) in those) for answer, those in zip(answers, right, strict=True)]}


SHARED: dict[str, Reward] = {"exact": exact, "number": number, "length": length}


# ---- rewards of classes and of tags ---------------------------------------------------------------


def right_class(examples: Sequence[Any], answers: Sequence[str]) -> Parts:
    """1 for the right class, else 0."""
    return {"right": [float(answer == e.label) for e, answer in zip(examples, answers, strict=True)]}


def balanced(counts: Mapping[str, int]) -> Reward:
    """1 for the right class over K times its share of these counts, so that the mean is that of the recalls of the K
    classes: rare ones count as much as common ones."""
    mean = sum(counts.values()) / len(counts)

    def reward(examples: Sequence[Any], answers: Sequence[str]) -> Parts:
        found = zip(examples, right_class(examples, answers)["right"], strict=True)
        return {"balanced": [value * mean / counts[example.label] for example, value in found]}

    return reward


def right_tags(examples: Sequence[Any], answers: Sequence[Tags]) -> Parts:
    """The share of words with the right tag."""
    pairs = [list(zip(e.tags, answer, strict=True)) for e, answer in zip(examples, answers, strict=True)]
    return {"right": [sum(true == found for true, found in pair) / len(pair) for pair in pairs]}


def entity_f1(examples: Sequence[Any], answers: Sequence[Tags]) -> Parts:
    """F1 of each sentence's entities, 1 where it has none and none were found."""
    pairs = [(entities(e.tags), entities(answer)) for e, answer in zip(examples, answers, strict=True)]
    return {"f1": [2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0 for a, b in pairs]}


def right_intent(examples: Sequence[Any], answers: Sequence[Tags]) -> Parts:
    """1 for the right class of the whole, else 0."""
    return {"intent": [float(answer.intent == e.intent) for e, answer in zip(examples, answers, strict=True)]}
