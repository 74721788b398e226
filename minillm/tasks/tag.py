"""Tagging: what every word is, such as the entities and slots of a sentence, and with `intent` beside the tags what the
whole is. The data is the user's own: lists of words and tags in JSONL, JSON, Parquet or CSV, or columns (CoNLL)."""

import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from torch import nn

from minillm import records, rewards
from minillm.baselines import TagLookup
from minillm.batching import IGNORE, Document
from minillm.errors import UserError
from minillm.heads import TokenClassifier
from minillm.metrics import Interval, entities, entity_f1, entity_report, rate, token_accuracy
from minillm.naive_bayes import NaiveBayes
from minillm.published.subwords import learn_wordpiece
from minillm.records import Record
from minillm.report import cells, shortened, values_of
from minillm.rewards import Reward
from minillm.tagging import Tagged, Tags, WordReader, tagged
from minillm.tags import Grammar, in_order, mark, split
from minillm.tasks import encoders, files
from minillm.tasks.base import Judged, Question, Shape, Splits
from minillm.tasks.encoders import FROM_NOTHING, SHAPE, VOCABULARY, Options
from minillm.tasks.files import Fields
from minillm.tokenizer import Tokenizer
from minillm.variation import Exchange, Splitter
from minillm.wording import counted

VARIED = "varied_in_training"  # a key of tokenizer_config.json
MOST_TAGS = 1000  # more are no tags; most likely the field is another one
SHOWN = 20  # tags that are listed with their number of words
WORST = 10


@dataclass(frozen=True)
class Sentence(Question):
    words: tuple[str, ...]
    tags: tuple[str, ...]
    intent: str | None  # of what class the whole is

    @property
    def prompt(self) -> str:
        return " ".join(self.words)

    @property
    def answers(self) -> tuple[str, ...]:
        return (str(Tags(self.tags, self.intent)),)


class Tag(Judged):
    name = "tag"
    lower_is_better = False
    head = "tag"
    is_redrawn = False
    Options = Options

    def __init__(self, options: Options, seed: int):
        """The task from files. Sentences that are held out are never trained on, also where the files overlap."""
        self.kind = options.model
        self.splits, self.classes, self.sequence_classes, self.notes = load(options)
        self.has_entities = mark(self.classes)
        self.headline = "f1" if self.has_entities else "accuracy"

    def tokenizer(self) -> Tokenizer:
        tokenizer = learn_wordpiece([sentence.prompt for sentence in self.splits.train], VOCABULARY)
        tokenizer.config = {**tokenizer.config, VARIED: True}
        encoders.without_segments(tokenizer, self.kind)
        return tokenizer

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        """A published model learns slowly, one from scratch faster and longer. Few sentences need a least number of
        steps, many a most; of all looks at the dev set the best counts."""
        encoders.refuse_beside_init(self.kind, model)
        count = len(self.splits.train)
        both = {"optimizer": "adamw-head", "warmup": 0.06, "evaluations": 12, "keep": "best"}
        if model:
            rates = {"lr": 1e-4, "embedding_lr": 1e-3, "dropout": 0.1}
            return {**both, **rates, "batch_examples": 32, "epochs": encoders.epochs(6.0, count, 32, 200, 10_000)}
        epochs = encoders.epochs(15.0, count, 64, 400, 10_000)
        return {**both, **SHAPE, **FROM_NOTHING, "batch_examples": 64, "epochs": epochs}

    def rl_recipe(self, model: nn.Module | None) -> dict[str, Any]:
        """The reward of a sentence says little of each of its tags: many samples, and from a run half of the gradient
        from the given tags, without which what is drawn gets better and the likeliest tags get worse."""
        rates = {"lr": 3e-5, "embedding_lr": 3e-4} if model else {"lr": 1e-3, "embedding_lr": 1e-3}
        both = {"optimizer": "adamw-head", "warmup": 0.06, "temperature": 1.0, "sft_share": 0.5 if model else 0.0}
        return {**both, **rates, "prompts": 32, "samples": 8, "minutes": 5.0}

    def new_model(self, tokenizer: Tokenizer, shape: Shape) -> TokenClassifier:
        config = encoders.new_config(self.kind, tokenizer.vocab_size, shape)
        return TokenClassifier(config, self.classes, self.sequence_classes)

    def adapt(self, model: TokenClassifier, tokenizer: Tokenizer) -> None:
        """Take over the order of the model's classes, and how it reads words. One whose vocabulary was learned here
        sees every sentence differently in each epoch."""
        self.classes, self.sequence_classes = list(model.classes), list(model.sequence_classes)
        self.has_entities = mark(self.classes)
        # Held-out data may have others, of which nothing is asked.
        self.number = {tag: k for k, tag in enumerate(self.classes)}
        self.intents = {name: k for k, name in enumerate(self.sequence_classes)}
        self.reader = WordReader(tokenizer, model.config)
        self.is_redrawn = tokenizer.config.get(VARIED) is True and bool(self.splits.train)
        if self.is_redrawn:
            self.splitter = Splitter(tokenizer.backend.get_vocab(), tokenizer.control)
            self.exchange = Exchange([(each.words, each.tags) for each in self.splits.train], self.classes)
        train = [self.reader.windows(sentence.words) for sentence in self.splits.train]
        if several := sum(len(windows) > 1 for windows in train):
            long = counted(several, "sentence has", "sentences have")
            text = f"{long} more than the {counted(self.reader.room, 'token')} that the model reads at once;"
            self.notes = [*self.notes, f"{text} such are read in overlapping windows"]

    def documents(self, example: Sentence, tokenizer: Tokenizer, rng: np.random.Generator | None) -> list[Document]:
        """A document for each window. Only those tokens have targets that say what a word is."""
        label = self.intents.get(example.intent, IGNORE) if self.sequence_classes else None
        words, tags, vary = example.words, example.tags, None
        if rng is not None:
            words, tags = self.exchange(words, tags, rng) if self.has_entities else (words, tags)
            vary = partial(self.splitter, rng=rng)
        found = []
        for window in self.reader.windows(words, vary):
            targets = np.full(len(window.tokens), IGNORE)
            targets[window.at] = [self.number.get(tags[i], IGNORE) for i in window.words]
            found.append(Document(window.tokens, targets.tolist(), label))
        return found

    def answer(self, model: TokenClassifier, tokenizer: Tokenizer, examples: Sequence[Sentence]) -> list[Tagged]:
        return tagged(model, tokenizer, [example.words for example in examples])

    def measure(self, examples: Sequence[Sentence], answers: Sequence[Tagged]) -> dict[str, Interval]:
        """Entity F1, the share of right words, and that of right intents, as far as the data has them."""
        measured = {}
        truth, found = [example.tags for example in examples], [answer.tags for answer in answers]
        if self.has_entities:
            measured["f1"] = entity_f1(truth, found)
        measured["accuracy"] = token_accuracy(truth, found)
        if have_intents(examples):
            measured["intent_accuracy"] = rate([a.intent == e.intent for e, a in zip(examples, answers, strict=True)])
        return measured

    def baselines(self, examples: Sequence[Sentence]) -> dict[str, Interval]:
        """Each word its commonest tag of training, and the intent that naive Bayes says."""
        truth = [example.tags for example in examples]
        found = [self.look_up.answer(example.words) for example in examples]
        measured = {"look_up": (entity_f1 if self.has_entities else token_accuracy)(truth, found)}
        if have_intents(examples):
            right = [self.naive_bayes.answer((example.prompt,)) == example.intent for example in examples]
            measured["naive_bayes"] = rate(right)
        return measured

    @cached_property
    def look_up(self) -> TagLookup:
        """Words that training did not have are O, or where there is none, of its commonest tag."""
        train = self.splits.train
        counts = Counter(tag for sentence in train for tag in sentence.tags)
        unknown = "O" if self.has_entities else counts.most_common(1)[0][0]
        return TagLookup([sentence.words for sentence in train], [sentence.tags for sentence in train], unknown)

    @cached_property
    def naive_bayes(self) -> NaiveBayes:
        train = self.splits.train
        return NaiveBayes([(sentence.prompt,) for sentence in train], [sentence.intent for sentence in train])

    def reward(self, examples: Sequence[Sentence], answers: Sequence[Tagged]) -> dict[str, list[float]]:
        return self.own(examples, list(map(self.said, answers)))

    def said(self, answer: Tagged) -> Tags:
        return Tags(answer.tags, answer.intent)

    @property
    def rewards(self) -> dict[str, Reward]:
        """Of tags that were drawn."""
        of_entities = {"f1": rewards.entity_f1} if self.has_entities else {}
        of_wholes = {"intent": rewards.right_intent} if self.sequence_classes else {}
        return {"own": self.own, **of_entities, "right": rewards.right_tags, **of_wholes}

    def own(self, examples: Sequence[Sentence], answers: Sequence[Tags]) -> dict[str, list[float]]:
        """F1 of each sentence's entities or its share of right words; with an intent each counts half."""
        tags = (rewards.entity_f1 if self.has_entities else rewards.right_tags)(examples, answers)
        parts = {**tags, **(rewards.right_intent(examples, answers) if have_intents(examples) else {})}
        return {name: [value / len(parts) for value in values] for name, values in parts.items()}

    def details(self, examples: Sequence[Sentence], answers: Sequence[Tagged]) -> dict[str, Any]:
        """Each type of entity by itself, and the worst mistakes."""
        worst = [
            {"text": example.prompt, "tags": example.tags, "answer": answer.tags}
            for example, answer in worst_mistakes(examples, answers)
        ]
        if not self.has_entities:
            return {"worst_mistakes": worst}
        report = entity_report([example.tags for example in examples], [answer.tags for answer in answers])
        return {"by_type": values_of(report), "worst_mistakes": worst}

    def table(self, examples: Sequence[Sentence], answers: Sequence[Tagged]) -> Table:
        table = Table("text", "answer", "truth", title="the sentences with most mistakes", title_justify="left")
        for example, answer in worst_mistakes(examples, answers):
            found, truth = (self.shown(example.words, tags) for tags in (answer.tags, example.tags))
            only = (", ".join(a for a in one if a not in other) for one, other in ((found, truth), (truth, found)))
            table.add_row(*cells(shortened(example.prompt), *only))
        return table

    def shown(self, words: Sequence[str], tags: Sequence[str]) -> list[str]:
        """Each entity with its type, or each word with its tag."""
        if self.has_entities:
            return [f"{' '.join(words[start:stop])} ({kind})" for kind, start, stop in in_order(tags)]
        return [f"{word} ({tag})" for word, tag in zip(words, tags, strict=True)]

    def remarks(self, measured: dict[str, Interval]) -> list[str]:
        """Where nothing, or less than by looking up words, was learned."""
        beaten = measured.get("look_up", Interval(0.0, 0.0, 0.0)).value
        if measured[self.headline].value <= beaten:
            return [f"giving each word its commonest tag does as well ({beaten:.1%}): {files.MAY_HELP}"]
        return []

    def next_command(self, folder: Path) -> str:
        return f'python -m minillm tag {shlex.quote(str(folder))} "a sentence of your own"'


def have_intents(examples: Sequence[Sentence]) -> bool:
    return any(example.intent is not None for example in examples)


def worst_mistakes(examples: Sequence[Sentence], answers: Sequence[Tagged]) -> list[tuple[Sentence, Tagged]]:
    """The sentences with most wrong words, the worst first."""
    pairs = list(zip(examples, answers, strict=True))
    wrong = [sum(x != y for x, y in zip(example.tags, answer.tags, strict=True)) for example, answer in pairs]
    order = sorted((i for i in range(len(pairs)) if wrong[i]), key=lambda i: -wrong[i])
    return [pairs[i] for i in order[:WORST]]


# ---- the data ------------------------------------------------------------------------------------


def load(options: Options) -> tuple[Splits, list[str], list[str], list[str]]:
    """Splits, tags, classes of the whole, and notes for a person. UserError says what is wrong with the files."""
    fields, faults = Fields(options.fields, ("tokens", "tags", "intent")), []

    def read_split(path: Path, train: Sequence[Sentence]) -> list[Sentence]:
        sentences, notes = read(path, fields, train)
        faults.extend(notes)
        return sentences

    splits, notes = files.load(options, "tag", read_split, lambda e: e.words, lambda e: e.intent)
    learned = [*splits.train, *splits.unlabelled] or [*splits.dev, *splits.test]
    tags = Counter(tag for sentence in learned for tag in sentence.tags)
    intents = Counter(sentence.intent for sentence in learned if sentence.intent is not None)
    if options.train:
        check(tags, intents, options.train)
        notes = [*notes, *notes_on(splits, tags, intents), *faults]
    return splits, sorted(tags, key=by_type), sorted(intents), notes


def by_type(tag: str) -> tuple[bool, str, str]:
    """O first, then type by type."""
    return tag != "O", *reversed(split(tag))


def check(tags: Collection[str], intents: Collection[str], path: Path) -> None:
    if len(tags) == 1:
        raise UserError(f"{path}: all words bear the tag {min(tags)!r}; there is nothing to tell apart")
    if len(tags) > MOST_TAGS:
        raise UserError(f"{path}: there are {len(tags):,} different tags; are these the tags?")
    if len(intents) == 1:
        raise UserError(f"{path}: all sentences have the intent {min(intents)!r}; leave it out")


def notes_on(splits: Splits, tags: Counter[str], intents: Counter[str]) -> list[str]:
    """What there is to tell apart, with its numbers, and what of it is only in the held-out files."""
    notes = []
    if mark(tags):
        kinds = Counter(kind for sentence in splits.train for kind, _, _ in entities(sentence.tags))
        notes.append(f"{counted(len(tags), 'tag')} for {counted(len(kinds), 'type')} of entities: {listed(kinds)}")
    else:
        notes.append(f"{counted(len(tags), 'tag')}: {listed(tags)}")
    if intents:
        notes.append(f"{counted(len(intents), 'intent')}: {listed(intents)}")
    for split_name in ("dev", "test"):
        found = {tag for sentence in vars(splits)[split_name] for tag in sentence.tags}
        found |= {sentence.intent for sentence in vars(splits)[split_name] if intents}
        if strange := sorted(found - tags.keys() - intents.keys()):
            what = ", ".join(map(repr, strange[:5])) + (", …" if len(strange) > 5 else "")
            notes.append(f"{split_name} has {what}, which --train has not: no model can learn that")
    return notes


def listed(counts: Counter[str]) -> str:
    more = f" and {len(counts) - SHOWN:,} more" if len(counts) > SHOWN else ""
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common(SHOWN)) + more


def read(path: Path, fields: Fields, train: Sequence[Sentence]) -> tuple[list[Sentence], list[str]]:
    """The sentences of a file, their tags as they should have been written, and a note where that made a difference.
    They have intents if those of --train do, or, of that file itself, if its first one has."""
    found = records.read(path, otherwise=records.read_conll)
    has_intent = train[0].intent is not None if train else fields.has(found[0], "intent")
    known = {sentence.intent for sentence in train}
    intents = records.labels(found, fields.name("intent"), known) if has_intent else [None] * len(found)
    raw = [Sentence(*words_and_tags(record, fields), intent) for record, intent in zip(found, intents, strict=True)]
    grammar = Grammar(sorted({tag for sentence in train or raw for tag in sentence.tags}))
    faults = [(grammar.faults(sentence.tags), i) for i, sentence in enumerate(raw)]
    sentences = [replace(sentence, tags=tuple(grammar.mended(sentence.tags))) for sentence in raw]
    return sentences, note_on([(fault, found[i].place, raw[i]) for fault, i in faults if fault], len(raw), path)


def note_on(faults: Sequence[tuple[list[int], str, Sentence]], number: int, path: Path) -> list[str]:
    """What is wrong with sequences of tags, and what became of it."""
    if not faults:
        return []
    (at, *_), place, sentence = faults[0]
    before, after = (sentence.tags[i] if 0 <= i < len(sentence.tags) else "the end" for i in (at - 1, at))
    before = "the beginning" if at == 0 else before
    have = "has" if len(faults) == 1 else "have"
    return [
        f"{len(faults):,} of {counted(number, 'sentence')} of {path.name} {have} tags that cannot stand so, "
        f"such as {after} behind {before} ({place}, word {min(at + 1, len(sentence.tags))}); "
        "read as CoNLL's script counts entities"
    ]


def words_and_tags(record: Record, fields: Fields) -> tuple[tuple[str, ...], tuple[str, ...]]:
    words, tags = (record.words(fields.name(role)) for role in ("tokens", "tags"))
    if len(words) != len(tags):
        raise UserError(
            f"{record.place} has {counted(len(words), 'word')} but {counted(len(tags), 'tag')}; give every word one"
        )
    return words, tags
