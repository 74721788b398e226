"""Tables as text: rows of cells with commas, semicolons, tabs or bars between them, the first naming the columns.

As RFC 4180 has it: cells with a delimiter or a line break in double quotes, a quote itself doubled. Many data sets with
tabs know no such quotes: where all lines have the tabs of the first, each is a row, however many quotes it holds.

Spreadsheets leave empty cells behind the last column, rows of empty cells and columns without a name: left out.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from minillm.errors import UserError
from minillm.wording import INVISIBLE, counted

DELIMITERS = ",;\t|"
Numbered = Iterator[tuple[int, list[str]]]  # rows, each with the number of the line that it begins on


def rows(path: Path, lines: Sequence[str], delimiter: str | None = None) -> Iterator[tuple[str, dict[str, str]]]:
    """The place of each row, FILE:LINE, and its cells by the names of their columns. UserError. `lines` keep their
    ends; the delimiter is that of a line `sep=;` if there is one, else as given, else what fits the first line."""
    start, delimiter = dialect(lines, delimiter)
    header: list[str] | None = None
    read = rows_of_lines if is_plain(lines[start:], delimiter) else rows_of_quoted
    for number, row in read(path, lines, start, delimiter):
        place = f"{path}:{number}"
        if not any(row):
            continue
        if header is None:
            header = header_of(place, row)
            continue
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if len(row) != len(header):
            wanted = f"but the first line names {len(header)}; they end at {delimiter!r} outside of quotes"
            raise UserError(f"{place} has {counted(len(row), 'field')}, {wanted}")
        yield place, {name: cell for name, cell in zip(header, row, strict=True) if name}


def dialect(lines: Sequence[str], delimiter: str | None) -> tuple[int, str]:
    """How many lines come before the header, and the delimiter; if nothing says which, it is the one that splits the
    header into most fields, of several the first of DELIMITERS."""
    start = next((i for i, line in enumerate(lines) if line.strip(INVISIBLE)), 0)
    header = lines[start] if lines else ""
    if declared := re.fullmatch(r'"?sep=([^\w\s"]|\t)"?\s*', header, re.IGNORECASE):
        return start + 1, declared[1]
    return start, delimiter or max(DELIMITERS, key=without_quoted(header).count)


def without_quoted(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)


def header_of(place: str, row: list[str]) -> list[str]:
    header = [name.strip(INVISIBLE) for name in row]
    while not header[-1]:
        header.pop()
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise UserError(f"{place} names the field {min(twice)!r} twice")
    return header


def is_plain(lines: Sequence[str], delimiter: str) -> bool:
    return delimiter == "\t" and len({line.count("\t") for line in lines if line.strip("\r\n")}) == 1


def rows_of_lines(path: Path, lines: Sequence[str], start: int, delimiter: str) -> Numbered:
    for number, line in enumerate(lines[start:], start + 1):
        yield number, [unquoted(cell) for cell in line.rstrip("\r\n").split(delimiter)]


def unquoted(cell: str) -> str:
    """What stands in quotes, if they are around the whole cell and those within it are doubled."""
    inside = cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if re.fullmatch('".*"', cell, re.DOTALL) and '"' not in inside else cell


def rows_of_quoted(path: Path, lines: Sequence[str], start: int, delimiter: str) -> Numbered:
    """Blanks before a cell belong to it, unless they stand behind every delimiter of the header, too."""
    names = without_quoted(next(filter(str.strip, lines[start:]), "")).split(delimiter)[1:]
    is_spaced = bool(names) and all(name.startswith(" ") for name in names)
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(lines[start:], delimiter=delimiter, strict=True, skipinitialspace=is_spaced)
    while True:
        number = start + reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            hint = "is every text with a quote, comma or line break quoted?"
            raise UserError(f"{path}:{number}: {error}; {hint}") from None
        if row is None:
            return
        yield number, row
