"""Pairs of answers to a prompt, of which people chose one, from a person's files."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minillm import records
from minillm.batching import Document
from minillm.errors import UserError
from minillm.tasks import files
from minillm.tasks.base import Splits
from minillm.tasks.files import Fields
from minillm.wording import counted

ALIKE = 0.1  # answers whose lengths differ by less than this share are of equal length


@dataclass(frozen=True)
class Pair:
    prompt: str
    chosen: str
    rejected: str
    documents: tuple[Document, ...] = field(default=(), repr=False, compare=False)  # once the vocabulary is known
    start: tuple[float, ...] = field(default=(), repr=False, compare=False)  # log p of both by the model as it was

    @property
    def answers(self) -> tuple[str, str]:
        return self.chosen, self.rejected


def longer(pair: Pair) -> int:
    """1 where the chosen answer has more characters, −1 where it has fewer."""
    return int(np.sign(len(pair.chosen) - len(pair.rejected)))


def differs(pair: Pair) -> bool:
    """Whether the lengths of the answers do, by a share that is worth speaking of."""
    short, long = sorted(map(len, pair.answers))
    return long - short > ALIKE * long


def mismatched(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    """Every prompt with an answer to the next one, chosen and rejected in turn."""
    others = [*pairs[1:], *pairs[:1]]
    return [(pair.prompt, other.answers[i % 2]) for i, (pair, other) in enumerate(zip(pairs, others, strict=True))]


def load(options: files.Options) -> tuple[Splits, list[str]]:
    """Splits, and notes for a person. UserError says what is wrong with the files, and where."""
    fields = Fields(options.fields, ("prompt", "chosen", "rejected"))
    ties: list[str] = []
    splits, notes = files.load(
        options, "preference", lambda path, _: read(path, fields, ties), lambda pair: pair.prompt
    )
    if ties:
        left_out = counted(len(ties), "pair is", "pairs are")
        notes.append(f"{left_out} left out, as both answers are the same; the first is {ties[0]}")
    splits = replace(splits, unlabelled=[])  # nothing is learned from a prompt alone
    return splits, [*notes, *notes_on(splits.train)] if splits.train else notes


def read(path: Path, fields: Fields, ties: list[str]) -> list[Pair]:
    """The pairs of a file; the places of those with equal answers, of which neither can be preferred, go to `ties`."""
    pairs, found, roles = [], records.read(path), ("prompt", "chosen", "rejected")
    triples = records.each_told(lambda record: Pair(*(fields.text(record, role) for role in roles)), found)
    for record, pair in zip(found, triples, strict=True):
        if pair.chosen == pair.rejected:
            ties.append(record.place)
        else:
            pairs.append(pair)
    if not pairs:
        raise UserError(f"{path}: in every record the chosen and the rejected answer are the same")
    return pairs


def notes_on(train: Sequence[Pair]) -> list[str]:
    """What of the pairs looks like a mistake, or might be learned in place of what is meant."""
    share = sum(longer(pair) > 0 for pair in train) / len(train)
    notes = [f"the chosen answer is the longer one in {share:.0%} of the pairs"]
    known = {(pair.prompt, pair.chosen, pair.rejected) for pair in train}
    if both := sum((pair.prompt, pair.rejected, pair.chosen) in known for pair in train) // 2:
        notes.append(f"{counted(both, 'pair of answers stands', 'pairs of answers stand')} in --train both ways round")
    return notes
