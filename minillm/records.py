"""Records from a user's file, as its extension says: JSON lines or a JSON list, CSV or TSV with a header, Parquet,
columns of words and tags (CoNLL); any of the texts also with .gz behind it. Or from a data set of the hub, by its name.

Every record knows its place, so that a mistake can be named where it is.
"""

import difflib
import gzip
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from minillm import parquet, tables
from minillm.errors import UserError
from minillm.wording import INVISIBLE

NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d+)?", re.ASCII)  # 007 is a name
CONLLU = ("ID", "FORM", "LEMMA", "UPOS", "XPOS", "FEATS", "HEAD", "DEPREL", "DEPS", "MISC")
UNIT = re.compile(r"\d+([-.]\d+)?", re.ASCII)  # an ID of it
TAG = re.compile(r"O|[BILUSEM]-\S+")
MANY = 20  # other records with a fault that a sentence names
Made = TypeVar("Made")


class Record(NamedTuple):
    place: str  # FILE:LINE, or which record of FILE, for messages
    fields: dict[str, Any]  # by name; in CSV all of them are texts
    option = "--fields"  # which says what they are for

    def value(self, name: str) -> Any:
        """Of the field of this name, or where there is none, for `a.b` what is called b in the field a. UserError where
        the record has no such field."""
        if name in self.fields:
            return self.fields[name]
        value: Any = self.fields
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise UserError(self.without(name))
            value = value[part]
        return value

    def without(self, name: str) -> str:
        """That there is no such field, and why that may be."""
        there = ", ".join(map(repr, self.fields))
        near = difflib.get_close_matches(name, self.fields, 1)
        hint = (f"did you mean {near[0]!r}? " if near else "") + f"say what is what with {self.option}"
        if not all(re.fullmatch(r"[\w.-]{1,40}", each) for each in self.fields):  # rather texts than names
            hint += "; the first line of a table must name its fields, separated by commas, semicolons or tabs"
        return f"{self.place} has no field {name!r}, only {there}; {hint}"

    def text(self, name: str) -> str:
        """The field as a text that is not empty, without what is invisible around it."""
        text = self.text_or_nothing(name)
        if not text:
            raise UserError(f"{self.place}: {name!r} is empty; fill it in or remove the line")
        return text

    def text_or_nothing(self, name: str) -> str:
        """The same, but it may be empty, or null, which is the same."""
        return self.checked(name, self.value(name))

    def text_as_it_is(self, name: str) -> str:
        """The same, with all that is around it."""
        return self.text_or_nothing(name) and self.value(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that holds one text, or a list of several, none of them empty. A number is what it is written as."""
        value = self.value(name)
        values = value if isinstance(value, list) else [value]
        texts = tuple(self.checked(name, by_value(repr(v)) if is_number(v) else v) for v in values)
        if not all(texts) or not texts:
            raise UserError(f"{self.place}: {name!r} is empty, or a text in it is; fill it in or remove the line")
        return texts

    def words(self, name: str) -> tuple[str, ...]:
        """A field that holds a list of words, or a text in which blanks stand between them."""
        value = self.value(name)
        words = [self.checked(name, each) for each in value] if isinstance(value, list) else self.text(name).split()
        if not words or not all(words) or any(map(str.isspace, "".join(words))):
            raise UserError(f"{self.place}: {name!r} must hold words, none of them empty, without blanks in them")
        return tuple(words)

    def number(self, name: str) -> float:
        """A field that holds a number, or a text that is one."""
        value = self.known(name)
        is_one = isinstance(value, int | float) or (isinstance(value, str) and "_" not in value)  # 1_000 is Python's
        try:
            number = float(value) if is_one and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"{self.place}: {name!r} is {shown(value)}, but a number was expected")
        return number

    def checked(self, name: str, value: Any) -> str:
        """What is in the field, or in a list of it, as `text_or_nothing` has it."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {name!r} is {shown(value)}, but a text was expected")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{self.place}: {name!r} holds half a surrogate pair, which is no character")
        return value.strip(INVISIBLE)

    def label(self, name: str) -> str:
        """The field as the name of a class, as `labels` says, but for texts that are numbers."""
        value = self.known(name)
        if isinstance(value, bool):
            return json.dumps(value)
        if is_number(value):
            return by_value(repr(value))
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {name!r} is {shown(value)}, but a word or a number was expected")
        return unicodedata.normalize("NFC", self.text(name))

    def known(self, name: str) -> Any:
        """A field without which there is nothing to learn, and nothing to measure by. UserError where it is empty."""
        value = self.value(name)
        if value is None or (isinstance(value, str) and not value.strip(INVISIBLE)):
            hint = "fill it in or remove the line, or name other data, as test splits of the hub often hide theirs"
            raise UserError(f"{self.place}: {name!r} is empty, so that this example has no label: {hint}")
        return value


def each_told(function: Callable[[Record], Made], records: Sequence[Record]) -> list[Made]:
    """What the function makes of each record. UserError is that of the first fault, and says which other records have
    one, so that a file with twenty blank cells is mended once. Where all have, it is no fault of the lines."""
    made, faulty, first = [], [], None
    for record in records:
        try:
            made.append(function(record))
        except UserError as error:
            first = first or error
            faulty.append(record.place)
    if first is None:
        return made
    others = [re.split(r"\D+", place)[-1] for place in faulty[1:]]  # the number of the line, the row or the record
    if not others or not made:
        raise first
    more = f" and {len(others) - MANY:,} more" if len(others) > MANY else ""
    raise UserError(f"{first}; also faulty: {', '.join(others[:MANY])}{more}") from None


def labels(records: Sequence[Record], name: str, known: Collection[str] = ()) -> list[str]:
    """A field of all records as names of classes, where given of `known` ones. One class are

    - equal numbers, however written: 1, 1.0 and 1.00, and also the texts "1" and "1.0" if the field holds nothing but
      numbers (in CSV all are texts), or if the number is known and the text is not. Among words, "1.0" is a name like
      any other; so is 007 everywhere;
    - true and "true", false and "false"; but not 1, and not "True";
    - names that differ only in what is invisible at their ends, or in how Unicode composes them (NFC, NFD).

    All else makes two classes, such as case and misspellings: minillm.labels.suspicious finds those.
    """
    names = each_told(lambda record: record.label(name), records)
    values = [by_value(name) if NUMBER.fullmatch(name) else name for name in names]
    if known:
        return [v if v in known and name not in known else name for name, v in zip(names, values, strict=True)]
    return values if all(map(NUMBER.fullmatch, names)) else names


def is_number(value: Any) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)  # however large: no float may hold it
    return is_whole or (isinstance(value, float) and math.isfinite(value))


def by_value(number: str) -> str:
    """A number's one name: 1 for 1.0, 0.5 for +0.50, 0 for -0."""
    digits = format(Decimal(number), "f").removeprefix("+")
    shortest = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if shortest == "-0" else shortest


def shown(value: Any) -> str:
    """As JSON has it, as far as that is short enough for a sentence."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:60] + "…"


def read(path: Path, otherwise: "Reader | None" = None) -> list[Record]:
    """All records of a file, in order. `otherwise` reads files of an extension that says nothing, such as .txt.

    UserError says what is wrong with the file, and where.
    """
    reader = READERS.get(extension(path), otherwise)
    if reader is None:
        kinds = ", ".join(f"{name} ({what})" for name, what in KINDS.items())
        what = "a folder: name a file in it," if path.is_dir() else "none of"
        raise UserError(f"{path} is {what} {kinds}; a spreadsheet can be saved as .csv")
    records = list(reader(path, lines_of(path)))
    if not records:
        raise UserError(f"{path} holds no records")
    return records


def extension(path: Path) -> str:
    """In lower case, what stands before .gz where that is the last one; of a data set of the hub that of its files."""
    if parquet.is_of_hub(path):
        return ".parquet"
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix != ".gz"), "")


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a text in UTF-8, unpacked where its name ends in .gz, with their ends. UserError."""
    try:
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from without_nul(path, file)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as that (of a spreadsheet, as CSV UTF-8)") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} cannot be unpacked: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def without_nul(path: Path, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            raise UserError(f"{path}:{number} holds NUL bytes: the file is damaged, or not UTF-8; mend or convert it")
        yield line


def read_jsonl(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            fields = json.loads(line.rstrip(), object_pairs_hook=each_once)  # or what lacks its end ends on "line 2"
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{place} is no JSON object, which would start with {{")
        yield Record(place, fields)


def read_json(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    """A list of objects, or an object in which one field holds it, such as "data"."""
    try:
        content = json.loads("".join(lines), object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; one object a line is called .jsonl") from None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else None
    if not isinstance(content, list) or not all(isinstance(each, dict) for each in content):
        raise UserError(f"{path} is no JSON list of objects")
    yield from (Record(f"{path}, record {number}", fields) for number, fields in enumerate(content, 1))


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {max(names, key=names.count)!r} twice")
    return fields


def read_csv(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    """As tables.py reads them, tabs between the cells of a .tsv whatever its first line looks like."""
    is_tsv = extension(path) == ".tsv"
    yield from (Record(place, fields) for place, fields in tables.rows(path, list(lines), "\t" if is_tsv else None))


def read_conll(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    """Sentences with a blank line between them, a word a line: the word first, its tag last, columns separated by
    blanks or tabs. Of the ten columns of CoNLL-U, which begin with a number, the second is the word and the fourth its
    part of speech. The fields are called `tokens` and `tags`."""
    words: list[list[str]] = []
    start = 1
    for number, line in enumerate([*lines, ""], 1):
        columns = line.strip(INVISIBLE).split("\t" if "\t" in line else None)
        if not columns or not columns[0] or columns[0] == "-DOCSTART-":
            if words:
                yield sentence(f"{path}:{start}", words)
            words, start = [], number + 1
        elif columns[0] != "#" or TAG.fullmatch(columns[-1]):  # else a comment, as CoNLL-U has them
            if len(columns) < 2:
                raise UserError(f"{path}:{number} has one column, but a word and its tag were expected")
            if len(columns) != len(CONLLU) or not UNIT.fullmatch(columns[0]):
                words.append([columns[0].strip(), columns[-1].strip()])
            elif columns[0].isdecimal():  # else what stands for several words, or was left out
                words.append([columns[CONLLU.index(name)].strip() for name in ("FORM", "UPOS")])


def sentence(place: str, words: Sequence[Sequence[str]]) -> Record:
    return Record(place, {"tokens": [word for word, _ in words], "tags": [tag for _, tag in words]})


def read_lines(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    """A text a line, called `text`; blank lines are none."""
    for number, line in enumerate(lines, 1):
        if text := line.strip(INVISIBLE):
            yield Record(f"{path}:{number}", {"text": text})


def read_parquet(path: Path, _: Iterable[str]) -> Iterator[Record]:
    """Rows of a table, as data sets are shared on the hub, or of one that is there; it has no lines. Needs pyarrow."""
    yield from (Record(f"{path}, row {number}", fields) for number, fields in enumerate(parquet.rows(path), 1))


Reader = Callable[[Path, Iterable[str]], Iterable[Record]]
READERS: dict[str, Any] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
    ".conll": read_conll,
    ".conllu": read_conll,
    ".bio": read_conll,
    ".iob": read_conll,
}
KINDS = {
    ".jsonl": "one JSON object a line",
    ".json": "a list of them",
    ".csv or .tsv": "names in the first line",
    ".parquet": "a table",
    ".conll": "a word and its tag a line",
}
