"""Records from a user's file: JSON lines, or CSV with a header, as the file's extension says.

Every record knows its line, so that a mistake can be named where it is.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minillm.errors import UserError


class Record(NamedTuple):
    place: str  # FILE:LINE, for messages
    fields: dict[str, Any]  # by name; in CSV all of them are texts

    def value(self, name: str) -> Any:
        """UserError where the record has no such field."""
        if name not in self.fields:
            there = ", ".join(map(repr, self.fields))
            raise UserError(f"{self.place} has no field {name!r}, only {there}; say what is what with --fields")
        return self.fields[name]

    def text(self, name: str) -> str:
        """The field as a text that is not empty, without blanks around it."""
        value = self.value(name)
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {name!r} is {json.dumps(value)}, but a text was expected")
        if not value.strip():
            raise UserError(f"{self.place}: {name!r} is empty; fill it in or remove the line")
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise UserError(f"{self.place}: {name!r} holds half a surrogate pair, which is no character")
        return value.strip()

    def label(self, name: str) -> str:
        """The field as the name of a class: 1, 1.0 and "1" are the same one."""
        value = self.value(name)
        if isinstance(value, float) and math.isfinite(value):
            return str(int(value)) if value.is_integer() else str(value)
        if isinstance(value, bool | int):
            return json.dumps(value)
        if not isinstance(value, str):
            raise UserError(f"{self.place}: {name!r} is {json.dumps(value)}, but a word or a number was expected")
        return self.text(name)


def read(path: Path) -> list[Record]:
    """All records of a .jsonl or .csv file, in order. UserError says what is wrong with the file, and where."""
    readers = {".jsonl": read_jsonl, ".csv": read_csv}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} is neither .jsonl (one JSON object a line) nor .csv (names in the first line)")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            records = list(readers[path.suffix.lower()](path, file))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; convert it") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not records:
        raise UserError(f"{path} holds no records")
    return records


def read_jsonl(path: Path, lines: Iterator[str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place} is not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise UserError(f"{place} is no JSON object, which would start with {{")
        yield Record(place, fields)


def read_csv(path: Path, lines: Iterator[str]) -> Iterator[Record]:
    """As RFC 4180 has it: commas, texts with a comma or a line break in double quotes, a quote itself doubled."""
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        place = f"{path}:{rows.line_num + 1}"
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise UserError(f"{place}: {error}; is every text with a quote, comma or line break quoted?") from None
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = [name.strip() for name in row]
            if twice := {name for name in header if header.count(name) > 1}:
                raise UserError(f"{place} names the field {min(twice)!r} twice")
        elif len(row) != len(header):
            raise UserError(f"{place} has {len(row)} fields, but the first line names {len(header)}")
        else:
            yield Record(place, dict(zip(header, row, strict=True)))
