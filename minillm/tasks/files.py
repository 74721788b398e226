"""Tasks that learn from a person's files: which field is what, what is held out, and what to say of the data."""

import hashlib
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from minillm import cli
from minillm.errors import UserError
from minillm.records import Record
from minillm.tasks.base import Files, Splits
from minillm.wording import counted

FEW = 20  # training examples; of fewer a person should hear
HELD_OUT = 0.1  # share of --train that is taken for want of --dev
MAY_HELP = "a longer training (--minutes or --epochs), more examples, or a published model (--init) may help"
Key = Callable[[Any], Hashable]


@dataclass(frozen=True)
class Options(Files):
    fields: str | None = cli.option(
        None, "which field of the files is what, e.g. text=review,label=stars; a.b is b within a, a+b joins two texts"
    )


class Fields:
    """What the fields of a file are for. Each role of a task is a field of the same name, unless --fields says which.

    A role may be several fields of texts, `prompt=instruction+input`: joined by line breaks, empty ones left out.
    """

    def __init__(self, option: str | None, roles: Sequence[str], flag: str = "--fields"):
        """From `text=review,label=stars`, the value of such a flag. UserError."""
        self.flag = flag
        self.names = {role: [role] for role in roles}
        self.given = set()
        for part in option.split(",") if option else ():
            role, _, name = (piece.strip() for piece in part.partition("="))
            fields = [field.strip() for field in name.split("+")]
            if role not in roles or not all(fields) or role in self.given:
                expected = ", ".join(f"{role}=NAME" for role in roles)
                order = f"; the other way round: {name}={role}" if name in roles and role not in roles else ""
                raise UserError(f"{flag} {option}: expected {expected}, separated by commas, each at most once{order}")
            self.names[role] = fields
            self.given.add(role)
        taken = [field for role, fields in self.names.items() if role in self.given for field in fields]
        if len(set(taken)) < len(taken):
            raise UserError(f"{flag} {option}: different roles must be different fields of the file")

    def has(self, record: Record, role: str) -> bool:
        """Whether --fields names the role, or the record has a field of that name."""
        return role in self.given or self.names[role][0] in record.fields

    def name(self, role: str) -> str:
        """Of a role that is one field. UserError."""
        if len(self.names[role]) > 1:
            raise UserError(f"{self.flag}: {role} must be one field, not {'+'.join(self.names[role])}")
        return self.names[role][0]

    def text(self, record: Record, role: str) -> str:
        """A text that is not empty. UserError."""
        first, *others = self.names[role]
        if not others:
            return record.text(first)
        if not (parts := [text for name in (first, *others) if (text := record.text_or_nothing(name))]):
            raise UserError(f"{record.place}: {' and '.join(map(repr, self.names[role]))} are empty; remove the line")
        return "\n".join(parts)


def load(
    options: Files,
    name: str,
    read: Callable[[Path, Sequence[Any]], list[Any]],
    key: Key,
    stratum: Key | None = None,
    is_answered: Callable[[Any], bool] = lambda example: True,
) -> tuple[Splits, list[str]]:
    """The splits of the task called so, and notes for a person. UserError.

    `read(path, train)` gives the examples of a file, those of --train before any other; `key` is what makes two
    examples the same one, which is never trained on where it is held out; `stratum`, such as the label, is what each
    share of the data should hold its part of. Without --train the files are only to be answered, not learned from.
    Training examples that are not answered can only be judged, and are none to hold out.
    """
    if options.train is None:
        return only_to_answer(options, name, read), []
    everything = read(options.train, [])
    examples = [example for example in everything if is_answered(example)]
    bare = [example for example in everything if not is_answered(example)]
    if not examples and not options.dev:
        raise UserError(
            f"no example of {options.train} has an answer: say what is what with --fields, or give --dev FILE"
        )
    test = read(options.test, examples) if options.test else []
    train, notes = without(examples, test, key), []
    if options.dev:
        if same_file(options.train, options.dev):
            raise UserError(f"--dev is the file of --train, {options.train}: leave it out, so that a part is held out")
        dev = read(options.dev, examples)
        train = without(train, dev, key)
        notes += note_on_leaks({"dev": dev, "test": test}, everything, key)
    else:
        train, dev = divide(train, HELD_OUT, key, stratum)
        held_out = counted(len(dev), "example of --train is", "examples of --train are")
        notes.append(f"--dev is not given: {held_out} held out instead")
        notes += note_on_leaks({"test": test}, everything, key)
    notes += note_on_copies({"dev": dev, "test": test}, key)
    if bare:
        have = counted(len(bare), "training example has", "training examples have")
        notes.append(f"{have} no answer, and can only be learned from by reward")
    if examples and not train:
        raise UserError(f"all examples of {options.train} are held out, too; there is nothing to learn from")
    train, unlabelled = by_labels(train, options.labels, key, stratum) if train else ([], [])
    if len(train) < FEW and not bare:
        notes.append(f"only {counted(len(train), 'example')} to learn from: what comes of that is mostly chance")
    return Splits(train, dev, test, [*unlabelled, *without(bare, [*dev, *test], key)]), notes


def note_on_leaks(held_out: Mapping[str, Collection[Any]], train: Iterable[Any], key: Key) -> list[str]:
    """How many examples of each held-out file stand in --train, too."""
    known = set(map(key, train))
    leaks = shares({name: sum(key(each) in known for each in split) for name, split in held_out.items()}, held_out)
    return [f"left out of --train, where they stand, too: {leaks}"] if leaks else []


def note_on_copies(held_out: Mapping[str, Sequence[Any]], key: Key) -> list[str]:
    """How many held-out examples are copies of others there. Intervals take each of them for one that was met by
    itself. That is right where texts recur in what the model is for, such as short commands, and too narrow where
    somebody copied lines; nobody can tell from the file, so intervals stay as they are."""
    copies = shares({name: len(split) - len(set(map(key, split))) for name, split in held_out.items()}, held_out)
    unless = "unless texts recur like that where the model will be used, the intervals are too narrow"
    return [f"copies of one another: {copies}; {unless}"] if copies else []


def shares(found: Mapping[str, int], of: Mapping[str, Collection[Any]]) -> str:
    """Of each split in which some were found, how many."""
    return " and ".join(f"{n:,} of {counted(len(of[name]), f'{name} example')}" for name, n in found.items() if n)


def by_labels(
    train: Sequence[Any], share: float | None, key: Key, stratum: Key | None = None
) -> tuple[list[Any], list[Any]]:
    """The examples that --labels leaves to learn from, and the others; None: all and none. UserError.

    Which they are is decided for each by the place that a hash gives its key, such as its prompt: by no order and no
    seed, so that those of a smaller share are among those of a larger one. So is the first of each stratum, such as a
    class, which is always there.
    """
    if share is None:
        return list(train), []
    if not 0 < share <= 1:
        raise UserError(f"--labels {share} must be a share of the training examples, above 0 and at most 1")
    places = [place_of(key(example)) for example in train]
    firsts: dict[Hashable, float] = {}
    for example, place in zip(train, places, strict=True) if stratum else ():
        if (group := stratum(example)) is not None:
            firsts[group] = min(place, firsts.get(group, place))
    kept = set(firsts.values())
    is_seen = [place < share or place in kept for place in places]
    if not any(is_seen):
        of_all = counted(len(train), "training example")
        raise UserError(f"--labels {share} leaves none of the {of_all}; give a larger share")
    return list(compress(train, is_seen)), [each for each, seen in zip(train, is_seen, strict=True) if not seen]


def place_of(key: Hashable) -> float:
    """From 0 to below 1, uniform over keys."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=6).digest(), "big") / 2**48


def only_to_answer(options: Files, name: str, read: Callable[[Path, Sequence[Any]], list[Any]]) -> Splits:
    if not (options.dev or options.test):
        raise UserError(f"--task {name} learns from your own examples: give --train FILE")
    dev, test = (read(path, []) if path else [] for path in (options.dev, options.test))
    return Splits([], dev, test)


def same_file(first: Path, second: Path) -> bool:
    return first == second or (first.exists() and second.exists() and first.samefile(second))


def without(examples: Sequence[Any], held_out: Sequence[Any], key: Key) -> list[Any]:
    """Those that are not held out."""
    seen = set(map(key, held_out))
    return [example for example in examples if key(example) not in seen]


def divide(examples: Sequence[Any], share: float, key: Key, stratum: Key | None = None) -> tuple[list[Any], list[Any]]:
    """Most examples, and a share of each stratum, one at least where it has several. Those of one key stay together.
    The same division for every seed. UserError where nothing can be held out."""
    of_stratum: dict[Hashable, list[Hashable]] = {}
    for each, group in {key(example): stratum and stratum(example) for example in examples}.items():
        of_stratum.setdefault(group, []).append(each)
    rng = np.random.default_rng(0)
    held_out: set[Hashable] = set()
    for keys in of_stratum.values():
        count = max(len(keys) > 1, round(share * len(keys)))
        held_out.update(keys[i] for i in rng.permutation(len(keys))[:count])
    train = [example for example in examples if key(example) not in held_out]
    dev = [example for example in examples if key(example) in held_out]
    if not dev or not train:
        raise UserError("--train has too few examples to hold any out; give --dev FILE")
    return train, dev
