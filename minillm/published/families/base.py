"""What a family of published models calls things: data by which checkpoint.py reads and writes its files."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from minillm.heads import MultiLabelClassifier, RewardModel, Scorer, SequenceClassifier


@dataclass(frozen=True)
class Rule:
    """One module (or parameter) of ours, and those of theirs that it is made of, stacked from top to bottom.

    `*` stands for the number of a layer. The names are of modules, for their weights and biases alike, or of single
    parameters; the first rule that fits a name counts.
    """

    ours: str
    theirs: tuple[str, ...]
    transpose: bool = False  # theirs is stored the other way round, as GPT-2's are
    rows: Callable[[Any], Sequence[int]] | None = None  # config → rows of each of theirs; None: equal shares
    optional: bool = False  # such models are with and without it

    def names(self, parameter: str) -> list[str] | None:
        """Theirs for a parameter of ours; None if this rule is not about it."""
        if not (match := fits(self.ours, parameter)):
            return None
        *layer, kind = match.groups(default="")
        return [name.replace("*", *layer) + kind if layer else name + kind for name in self.theirs]


def rule(ours: str, *theirs: str, **more: Any) -> Rule:
    return Rule(ours, theirs, **more)


# Ours alone: a tagger that also says of what class a sequence is. transformers reads such a tagger without it.
OF_SEQUENCES = rule("sequence_classifier", "sequence_classifier", optional=True)


def fits(pattern: str, name: str) -> re.Match | None:
    """Groups: the layer, where the pattern has a star; then ".weight", ".bias" or nothing."""
    return re.fullmatch(re.escape(pattern).replace(r"\*", r"(\d+)") + r"(\.weight|\.bias)?", name)


@dataclass(frozen=True)
class Head:
    """One kind of model of a family."""

    model: type[nn.Module]  # made of the config, and of the classes if it has any
    architecture: str  # what config.json calls it
    also: tuple[str, ...] = ()  # other names under which it may be found
    rules: tuple[Rule, ...] = ()  # of what it has besides the encoder
    has_classes: bool = False
    is_bare: bool = False  # nothing but the encoder: their names have no prefix then
    problem_type: str | None = None  # as config.json has it, where heads of one architecture differ in their loss


def of_sequences(architecture: str, rules: tuple[Rule, ...]) -> dict[str, Head]:
    """The heads that say something of whole sequences, by what they do: of one architecture, as transformers has it."""
    kinds = {
        "classify": (SequenceClassifier, None),
        "multi": (MultiLabelClassifier, "multi_label_classification"),
        "score": (Scorer, "regression"),
        "reward": (RewardModel, None),
    }
    return {
        name: Head(model, architecture, rules=rules, has_classes=True, problem_type=problem)
        for name, (model, problem) in kinds.items()
    }


@dataclass(frozen=True)
class Family:
    model_type: str
    prefix: str  # of their encoder within a model with a head; files may leave it out
    rules: tuple[Rule, ...]  # of the encoder, theirs without the prefix
    heads: Mapping[str, Head]  # the first is what a file holds that doesn't say
    config_type: type
    config_from: Callable[["Fields"], Any]  # ValueError where something is not supported
    config_to: Callable[[Any], dict[str, Any]]
    old_names: Mapping[str, str] = field(default_factory=dict)  # endings of names in early files → today's
    twins: Mapping[str, str] = field(default_factory=dict)  # a second name of a tensor → the one that counts
    ignored: tuple[str, ...] = ()  # endings of names that are no weights, such as buffers

    def covers(self, config: Any) -> bool:
        """Whether config.json can say all of it."""
        if not isinstance(config, self.config_type):
            return False
        try:
            return self.config_from(Fields(self.config_to(config))) == config
        except ValueError:
            return False

    def head_of(self, model: nn.Module) -> Head | None:
        return next((head for head in self.heads.values() if type(model) is head.model), None)

    def rule(self, parameter: str, head: Head) -> Rule:
        """For a parameter of ours; without a rule it has the same name on both sides."""
        rules = (*head.rules, *self.rules)
        return next((rule for rule in rules if rule.names(parameter)), Rule(parameter, (parameter,)))

    def plain(self, name: str) -> str:
        """A name of theirs without what varies from file to file."""
        for old, new in self.old_names.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name.removeprefix(self.prefix)

    def by_plain_name(self, names: Iterable[str]) -> dict[str, str]:
        """Names of a file by what they are without what varies. ValueError for two of one tensor."""
        plain: dict[str, str] = {}
        for name in names:
            if plain.setdefault(self.plain(name), name) is not name:
                raise ValueError(f"holds {name!r} twice, with and without a prefix")
        for second, first in self.twins.items():
            if second in plain:
                plain.setdefault(first, plain.pop(second))
        return plain

    def head_in(self, names: Iterable[str]) -> str:
        """Which of the heads a file has that doesn't say so: the one with the most in it, or else the first."""
        modules = {self.plain(name).removesuffix(".weight") for name in names}
        whole = {}
        for key, head in self.heads.items():
            needed = (rule for rule in head.rules if rule.ours != "output" and not rule.optional)
            own = {self.plain(name) for rule in needed for name in rule.theirs}
            if own <= modules:
                whole[key] = len(own)
        return max(whole, key=whole.get)

    def is_known(self, name: str, head: Head) -> bool:
        """Whether a tensor that `head` has no use for may be left out: no weight, or one of another head."""
        plain = self.plain(name)
        others = (rule for other in self.heads.values() for rule in other.rules if other is not head or rule.optional)
        return name.endswith(self.ignored) or any(
            fits(self.plain(theirs), self.twins.get(plain, plain)) for rule in others for theirs in rule.theirs
        )


ACTIVATIONS = {  # as transformers calls them, the first name being the one that is written → as layers.py does
    "gelu": "gelu-erf",
    "gelu_python": "gelu-erf",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu_fast": "gelu",
    "relu": "relu",
}


def written(table: Mapping[str, Any], ours: Any) -> str:
    """The first name under which files have what is ours; empty where they have none."""
    return next((theirs for theirs, value in table.items() if value == ours), "")


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are not null."""
    return {key: value for key, value in values.items() if value is not None}


class Fields:
    """config.json as a family reads it. ValueError, with the key named, where a value is not what it must be."""

    def __init__(self, values: Mapping[str, Any]):
        self.values = values

    def get(self, key: str, default: Any = None) -> Any:
        """null counts as not there."""
        value = self.values.get(key)
        return default if value is None else value

    def _number(self, key: str, default: Any, kinds: Any, what: str) -> Any:
        value = self.get(key, default)
        if value is None:
            raise ValueError(f"{key!r} is missing")
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"{key}={value!r} is no {what}")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        value = self._number(key, default, int, "whole number")
        if abs(value) >= 2**31:
            raise ValueError(f"{key}={value} is too large")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A count of at least 1, or the default."""
        value = self.count(key, default)
        if value < 1 and self.get(key) is not None:
            raise ValueError(f"{key}={value} is not at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, int | float, "number"))

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if not 0 < value < math.inf:
            raise ValueError(f"{key}={value} is not positive")
        return value

    def share(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if not 0 <= value < 1:
            raise ValueError(f"{key}={value} is not in [0, 1)")
        return value

    def choice(self, key: str, table: Mapping[str, Any], default: str) -> Any:
        """What one of the names in the table stands for."""
        value = self.get(key, default)
        if not isinstance(value, str) or value not in table:
            raise ValueError(f"{key}={value!r} is not supported, only {' or '.join(map(repr, table))}")
        return table[value]

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{key}={value!r} is not true or false")
        return value

    def table(self, key: str) -> dict[str, Any]:
        """Empty where there is none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise ValueError(f"{key}={value!r} is no table")
        return value

    def expect(self, key: str, *values: Any) -> None:
        """Nothing there, or one of these values: anything else would be another model than ours."""
        if (value := self.get(key, values[0])) not in values:
            raise ValueError(f"{key}={value!r} is not supported, only {' or '.join(map(repr, values))}")
