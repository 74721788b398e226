"""What is learned: for each study its labels, what suits it, and which examples are unlike those of training.

A study says how the scripts are called, and nothing of how they learn. Its examples come in three sets that nobody
trains on: `dev`, by which learning rates and stopping are chosen, `test`, and `shift`, which is unlike the training.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from minillm.errors import UserError
from minillm.files import read_text, write_text
from minillm.tasks import TASKS, pronounce
from minillm.tasks.arithmetic import Arithmetic
from minillm.tasks.arithmetic import Options as Sums
from minillm.tasks.base import Example
from minillm.tasks.points24 import Options as Hands
from minillm.tasks.points24 import Points24

Sets = Mapping[str, Sequence[Any]]
LETTERS = 3.0  # of a token, where its vocabulary is still to come
WATCHED_HERE = {"watch": 0}  # what train_rl.py would look at besides, measure.py looks at


@dataclass(frozen=True)
class Sizes:
    """Of a model from scratch, its training, and the steps of the arms; tests have smaller ones."""

    layers: int = 2
    width: int = 128
    heads: int = 4
    start_steps: int = 300
    batch_tokens: int = 1024
    prompts: int = 64
    samples: int = 8


@dataclass(frozen=True)
class Given:
    """What a person may give a study."""

    data: Path = Path()  # folder of the data sets
    reward: tuple[str, ...] = ()  # of train_rl.py, in place of the task's own
    train: Path | None = None  # their own files
    dev: Path | None = None
    test: Path | None = None
    shift: Path | None = None
    fields: str | None = None
    init: Path | None = None


class Study:
    """Made with the folder where its files may lie."""

    name: ClassVar[str]
    task: ClassVar[str]  # of the scripts
    shift: ClassVar[str]  # what is unlike the training
    diverse: ClassVar[Mapping[str, Any]] = {}  # options of the task by which the same labels have more prompts
    writes: ClassVar[bool] = True
    no_pairs: ClassVar[str] = ""  # why files of answers right and wrong cannot be learned from
    of_seeds: ClassVar[str] = (
        "Seeds differ in the starts' first weights and all that is drawn; their labels are the same."
    )
    label_bits: ClassVar[str] = "a whole answer"
    choices: ClassVar[float] = math.inf  # how many answers to a prompt there are
    lrs: ClassVar[Mapping[str, float]] = {"sft": 2e-3, "rl": 5e-4, "expert": 2e-3, "dpo": 1e-4, "judge": 5e-4}
    start_lr: ClassVar[float] = 5e-3
    temperature: ClassVar[float] = 1.0  # of the policy that learns
    usual: ClassVar[Sizes] = Sizes()

    def __init__(self, folder: Path, sizes: Sizes, given: Given = Given()):
        self.folder, self.sizes, self.given = folder, sizes, given

    def prepare(self) -> None:
        """Writes the files it needs."""

    def options(self, share: float) -> dict[str, Any]:
        """Of the task, where this share of the labels is known."""
        raise NotImplementedError

    @cache  # noqa: B019, a study lives as long as the experiment
    def made(self, share: float, seed: int) -> Any:
        """The task as the scripts see it."""
        kind = TASKS[self.task]
        return kind(kind.Options(**self.options(share)), seed)

    @cached_property
    def sets(self) -> Sets:
        raise NotImplementedError

    def tokens(self) -> float:
        """Of a prompt with its answer, on average."""
        raise NotImplementedError

    def answer_tokens(self) -> float:
        """Of an answer, with its end."""
        return 1.0

    def shape(self) -> dict[str, Any]:
        sizes = self.sizes
        return {"layers": sizes.layers, "width": sizes.width, "heads": sizes.heads}

    def start(self) -> dict[str, Any]:
        """Options of train_sft.py for the start: as good as these labels make it, by the looks at dev."""
        lr = {"lr": self.start_lr, "embedding_lr": self.start_lr}
        return {
            **self.shape(),
            **lr,
            **self.supervised(),
            "dropout": 0.1,
            "steps": self.sizes.start_steps,
            "keep": "best",
        }

    def supervised(self) -> dict[str, Any]:
        to_the_end = {"evaluations": 6, "keep": "last", "patience": 6}  # whatever the task would do by itself
        return {"optimizer": "muon", "batch_tokens": self.sizes.batch_tokens, "warmup": 0.05, **to_the_end}

    def reinforced(self) -> dict[str, Any]:
        sizes = {"prompts": self.sizes.prompts, "samples": self.sizes.samples, "reward": self.given.reward}
        return {**sizes, **WATCHED_HERE, "temperature": self.temperature, "warmup": 0.1, "evaluations": 6}

    def expert(self) -> dict[str, Any]:
        sizes = {"samples": self.sizes.samples, "batch_tokens": self.sizes.batch_tokens, "reward": self.given.reward}
        learning = {"rounds": 2, "temperature": 1.0, "dropout": 0.1, "optimizer": "muon", "warmup": 0.05}
        return {**sizes, **learning, **WATCHED_HERE, "evaluations": 6}


class Additions(Study):
    """Sums of two numbers below 90; the larger ones up to 99 are never seen."""

    name = task = "arithmetic"
    shift = "sums with a number from 90 to 99, larger than any in training"
    diverse: ClassVar[Mapping[str, Any]] = {"both_orders": True}
    of_seeds = "Seeds differ in the labels, in the starts' first weights, and in all that is drawn."
    temperature = 0.5
    largest, most = 89, 6400

    def options(self, share: float) -> dict[str, Any]:
        return {"examples": max(1, round(share * self.most)), "largest": self.largest}

    @cached_property
    def sets(self) -> Sets:
        within, everything = Arithmetic(Sums(largest=self.largest), 0).splits, Arithmetic(Sums(), 0).splits
        known, held_out = {*within.dev, *within.test}, [*everything.dev, *everything.test]
        return {"dev": within.dev, "test": within.test, "shift": [e for e in held_out if e not in known]}

    def tokens(self) -> float:
        return 10.0  # 12+34= and three digits with the end

    def answer_tokens(self) -> float:
        return 4.0


class Cards(Study):
    """24 points of four cards, J, Q and K being tens; where they are more is never seen."""

    name = task = "points24"
    shift = "hands with J, Q or K where the prompt says that they count as 11, 12 and 13; in training they count as 10"
    of_seeds = "Seeds differ in the labels, in the starts' first weights, and in all that is drawn."
    most = 8000

    def options(self, share: float) -> dict[str, Any]:
        return {"examples": max(1, round(share * self.most))}

    @cached_property
    def sets(self) -> Sets:
        splits = Points24(Hands(examples=1), 0).splits
        dev, test = splits.dev, [e for e in splits.test if not e.kind]
        return {"dev": dev, "test": test, "shift": [e for e in splits.test if e.kind == "changed_rule"]}

    def tokens(self) -> float:
        return fmean(len(example.prompt) for example in self.sets["dev"]) + self.answer_tokens()

    def answer_tokens(self) -> float:
        return 1 + fmean(len(example.answers[0]) for example in self.sets["dev"])


class Pronunciation(Study):
    """English words; those of rare spellings are looked at by themselves."""

    name = task = "pronounce"
    shift = "words of rare spellings: the fifth whose letters, three in a row, are rarest in the dictionary"
    no_pairs = "answers begin with a blank there, which files of preferences do not keep"
    most, rare, test_words, dev_words = 24_000, 0.2, 1500, 500  # all labels are those of `most` words
    usual = Sizes(width=96, start_steps=500)

    def prepare(self) -> None:
        if not self.path("test").exists():
            splits = pronounce.Pronounce(pronounce.Options(), 0).splits
            for name, examples in self.divided(splits.train, [*splits.dev, *splits.test]).items():
                write_text(self.path(name), "".join(map(lines_of, examples)))

    def divided(self, train: Sequence[Example], held_out: Sequence[Example]) -> Sets:
        """The words in common spellings are for dev and test, the others for what is called shift."""
        ordered = by_rarity(held_out, train)
        count = round(self.rare * len(ordered))
        common = sorted(ordered[count:], key=lambda e: e.prompt[::-1])  # any order that knows nothing of the spelling
        dev, test = (
            common[:: max(2, len(common) // self.dev_words)],
            common[1 :: max(2, len(common) // self.test_words)],
        )
        kept = {e.prompt for e in dev}
        some = sorted(train, key=lambda e: e.prompt[::-1])[:: max(1, len(train) // self.most)]
        return {"train": some, "dev": dev, "test": [e for e in test if e.prompt not in kept], "shift": ordered[:count]}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.txt"

    def options(self, share: float) -> dict[str, Any]:
        return {"train": self.path("train"), "dev": self.path("dev"), "labels": None if share == 1 else share}

    @cached_property
    def sets(self) -> Sets:
        return {name: pronounce.to_examples(pronounce.read_file(self.path(name))) for name in ("dev", "test", "shift")}

    def tokens(self) -> float:
        return fmean(len(example.prompt) for example in self.sets["dev"]) + self.answer_tokens()

    def answer_tokens(self) -> float:
        return 1 + fmean(len(example.answers[0].split()) for example in self.sets["dev"])


def lines_of(example: Example) -> str:
    return "".join(f"{example.prompt[:-1]} {answer}\n" for answer in example.answers)


def by_rarity(examples: Sequence[Example], train: Iterable[Example]) -> list[Example]:
    """The rarest spellings first, by the mean of −log of how many training words have each three letters in a row."""
    counts = Counter(three for example in train for three in set(threes(example)))

    def rarity(example: Example) -> float:
        found = threes(example)
        return sum(math.log(1 + counts[three]) for three in found) / len(found)

    return sorted(examples, key=rarity)


def threes(example: Example) -> list[str]:
    word = f"^{example.prompt}"
    return [word[i : i + 3] for i in range(max(1, len(word) - 2))]


class Texts(Study):
    """Which class a text is of. Those longer than most are never seen."""

    task = "classify"
    writes = False
    shift = "texts longer than any in training"
    source: ClassVar[str]  # the folder of train.jsonl and dev.jsonl
    label: ClassVar[str] = "label"
    lrs: ClassVar[Mapping[str, float]] = {"sft": 5e-4, "rl": 5e-4}
    start_lr = 1e-3
    usual = Sizes(start_steps=200)

    def supervised(self) -> dict[str, Any]:
        return {**super().supervised(), "optimizer": "adamw-head"}

    def prepare(self) -> None:
        if self.path("shift").exists():
            return
        train, held_out = (self.records(name) for name in ("train", "dev"))
        longest = sorted(len(r["text"].split()) for r in train)[round(0.7 * len(train))]
        short = [r for r in held_out if len(r["text"].split()) <= longest]
        files = {
            "train": [r for r in train if len(r["text"].split()) <= longest],
            "dev": short[::3],
            "test": [r for i, r in enumerate(short) if i % 3],
            "shift": [r for r in held_out if len(r["text"].split()) > longest],
        }
        for name, some in files.items():
            write_text(self.path(name), "".join(json.dumps(r) + "\n" for r in some))

    def records(self, name: str) -> list[dict[str, str]]:
        path = self.given.data / self.source / f"{name}.jsonl"
        if not path.is_file():
            raise UserError(f"--task {self.name} needs {path}; name the folder that holds {self.source} with --data")
        rows = map(json.loads, read_text(path).splitlines())
        return [{"text": row.get("text") or row["tokens"], "label": str(row[self.label])} for row in rows]

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.jsonl"

    def options(self, share: float) -> dict[str, Any]:
        return {"train": self.path("train"), "dev": self.path("dev"), "labels": None if share == 1 else share}

    @cached_property
    def sets(self) -> Sets:
        kind = TASKS["classify"]
        return {name: kind(kind.Options(test=self.path(name)), 0).splits.test for name in ("dev", "test", "shift")}

    def tokens(self) -> float:
        return 2 + 1.3 * fmean(len(example.texts[0].split()) for example in self.sets["dev"])  # words in pieces


class Sentiment(Texts):
    name, source, label_bits, choices = "sentiment", "sentiment_sst2", "1 bit", 2


class Intents(Texts):
    name, source, label, label_bits, choices = "intents", "slots_snips", "intent", "2.8 bits", 7


class Own(Study):
    """Prompts and answers of a person's own files."""

    name = task = "seq2seq"
    shift = "those of --shift, or where it is not given, of --test once more"
    lrs: ClassVar[Mapping[str, float]] = {"sft": 1e-3, "rl": 3e-4, "expert": 1e-3, "dpo": 1e-5, "judge": 5e-4}
    start_lr = 3e-3

    def prepare(self) -> None:
        if missing := [name for name in ("train", "dev", "test") if getattr(self.given, name) is None]:
            raise UserError(f"--task {self.name} needs files of your own: give --{missing[0]} FILE")

    def options(self, share: float) -> dict[str, Any]:
        given = {name: getattr(self.given, name) for name in ("train", "dev", "fields")}
        return {**given, "labels": None if share == 1 else share, "metric": "exact"}

    def start(self) -> dict[str, Any]:
        own = {name: value for name, value in super().start().items() if name not in self.shape()}
        return {**own, "init": self.given.init} if self.given.init else super().start()

    @cached_property
    def sets(self) -> Sets:
        files = {"dev": self.given.dev, "test": self.given.test, "shift": self.given.shift or self.given.test}
        kind = TASKS[self.task]
        given = {"fields": self.given.fields, "metric": "exact"}
        return {name: kind(kind.Options(test=path, **given), 0).splits.test for name, path in files.items()}

    def tokens(self) -> float:
        return fmean(len(e.prompt) / LETTERS for e in self.sets["dev"]) + 1 + self.answer_tokens()

    def answer_tokens(self) -> float:
        return fmean(len(e.answers[0]) / LETTERS for e in self.sets["dev"]) + 1


STUDIES: Mapping[str, type[Study]] = {s.name: s for s in (Additions, Cards, Pronunciation, Sentiment, Intents, Own)}
