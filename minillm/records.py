"""Records from a user's file: JSON lines, or CSV or TSV with a header, as the file's extension says.

Every record knows its line, so that a mistake can be named where it is.
"""

import csv
import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import UserError

# What no reader sees at the ends of a text: blanks, of zero width too, and marks of direction, which come with copies.
INVISIBLE = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\xad\u180e\u200b\u200c\u200d\u2060\ufeff"
INVISIBLE += "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
NUMBER = re.compile(r"[-+]?(0|[1-9]\d*)(\.\d+)?", re.ASCII)  # 007 is a name
DELIMITERS = ",;\t|"


class Record(NamedTuple):
    place: str  # FILE:LINE, for messages
    fields: dict[str, Any]  # by name; in CSV all of them are texts

    def value(self, name: str) -> Any:
        """UserError where the record has no such field."""
        if name not in self.fields:
            there = ", ".join(map(repr, self.fields))
            hint = "say what is what with --fields"
            if len(self.fields) == 1:
                hint += ", and separate the fields of a table by commas, semicolons or tabs"
            raise UserError(f"{self.place} has no field {name!r}, only {there}; {hint}")
        return self.fields[name]

    def text(self, name: str) -> str:
        """The field as a text that is not empty, without what is invisible around it."""
        value = self.value(name)
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {name!r} is {json.dumps(value)}, but a text was expected")
        text = value.strip(INVISIBLE)
        if not text:
            raise UserError(f"{self.place}: {name!r} is empty; fill it in or remove the line")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{self.place}: {name!r} holds half a surrogate pair, which is no character")
        return text

    def label(self, name: str) -> str:
        """The field as the name of a class, as `labels` says, but for texts that are numbers."""
        value = self.value(name)
        if isinstance(value, bool):
            return json.dumps(value)
        if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
            return by_value(repr(value))
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {name!r} is {json.dumps(value)}, but a word or a number was expected")
        return unicodedata.normalize("NFC", self.text(name))


def labels(records: Sequence[Record], name: str, known: Collection[str] = ()) -> list[str]:
    """A field of all records as names of classes, where given of `known` ones. One class are

    - equal numbers, however written: 1, 1.0 and 1.00, and also the texts "1" and "1.0" if the field holds nothing but
      numbers (in CSV all are texts), or if the number is known and the text is not. Among words, "1.0" is a name like
      any other; so is 007 everywhere;
    - true and "true", false and "false"; but not 1, and not "True";
    - names that differ only in what is invisible at their ends, or in how Unicode composes them (NFC, NFD).

    All else makes two classes, such as case and misspellings: minillm.labels.suspicious finds those.
    """
    names = [record.label(name) for record in records]
    values = [by_value(name) if NUMBER.fullmatch(name) else name for name in names]
    if known:
        return [
            value if value in known and name not in known else name for name, value in zip(names, values, strict=True)
        ]
    return values if all(map(NUMBER.fullmatch, names)) else names


def by_value(number: str) -> str:
    """A number's one name: 1 for 1.0, 0.5 for +0.50, 0 for -0."""
    digits = format(Decimal(number), "f").removeprefix("+")
    shortest = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if shortest == "-0" else shortest


def read(path: Path) -> list[Record]:
    """All records of a .jsonl, .csv or .tsv file, in order. UserError says what is wrong with the file, and where."""
    readers = {".jsonl": read_jsonl, ".csv": read_csv, ".tsv": read_csv}
    if path.suffix.lower() not in readers:
        kinds = ".jsonl (one JSON object a line) nor .csv or .tsv (names in the first line)"
        raise UserError(f"{path} is neither {kinds}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = list(readers[path.suffix.lower()](path, without_nul(path, file)))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; convert it") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not records:
        raise UserError(f"{path} holds no records")
    return records


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
            fields = json.loads(line, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{place} is no JSON object, which would start with {{")
        yield Record(place, fields)


def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {max(names, key=names.count)!r} twice")
    return fields


def read_csv(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    """As RFC 4180 has it: texts with a delimiter or a line break in double quotes, a quote itself doubled.

    Spreadsheets leave empty cells behind the last column, rows of empty cells and columns without a name: left out.
    """
    csv.field_size_limit(2**31 - 1)
    lines = list(lines)
    start, delimiter = dialect(path, lines)
    rows = csv.reader(lines[start:], delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{path}:{start + rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{place}: {error}; is every text with a quote, comma or line break quoted?") from None
        if row is None:
            return
        if not any(row):
            continue
        if header is None:
            header = header_of(place, row)
            continue
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) != len(header):
            wanted = f"but the first line names {len(header)}"
            raise UserError(f"{place} has {len(row)} fields, {wanted}; they end at {delimiter!r} outside of quotes")
        yield Record(place, {name: cell for name, cell in zip(header, row, strict=True) if name})


def header_of(place: str, row: list[str]) -> list[str]:
    header = [name.strip(INVISIBLE) for name in row]
    while not header[-1]:
        header.pop()
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise UserError(f"{place} names the field {min(twice)!r} twice")
    return header


def dialect(path: Path, lines: Sequence[str]) -> tuple[int, str]:
    """How many lines come before the header, and the delimiter: that of a line `sep=;` if there is one, a tab in .tsv,
    and otherwise what splits the header into most fields; of several the first of DELIMITERS."""
    start = next((i for i, line in enumerate(lines) if line.strip(INVISIBLE)), 0)
    header = lines[start] if lines else ""
    if declared := re.fullmatch(r'"?sep=([^\w\s"]|\t)"?\s*', header, re.IGNORECASE):
        return start + 1, declared[1]
    if path.suffix.lower() == ".tsv":
        return start, "\t"
    outside = re.sub(r'"[^"]*"', "", header)
    return start, max(DELIMITERS, key=outside.count)
