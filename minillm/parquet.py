"""Rows of Parquet files, from a disk or of a data set of the hub.

Data sets there number their classes, and write beside the table what each number is called: a row has the names.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minillm.errors import UserError, need
from minillm.published.hub import OF_DATA, data_files

NO_LABEL = -1  # what data sets of the hub have in place of a class


def is_of_hub(path: Path) -> bool:
    """Whether it is no path, but the name of a data set."""
    return str(path).startswith(OF_DATA)


def rows(path: Path) -> Iterator[dict[str, Any]]:
    """Fields by their names. UserError where they cannot be read, or fetched."""
    pyarrow, parquet = (need(name, "parquet", f"reading {path}") for name in ("pyarrow", "pyarrow.parquet"))
    number = 0
    for file in data_files(str(path)) if is_of_hub(path) else [path]:
        try:
            table = parquet.read_table(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"cannot read {path}: {error}") from None
        classes = classes_of(table.schema.metadata or {})
        for row in table.to_pylist():
            number += 1
            place = f"{path}, row {number}"
            yield {
                name: named(value, classes[name], place) if name in classes else value for name, value in row.items()
            }


def classes_of(metadata: Mapping[bytes, bytes]) -> dict[str, list[str]]:
    """What the numbers in a field are called, one number or a list of them in each row, as the library `datasets`
    writes it; nothing where nobody did."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        described = {name: feature.get("feature", feature) for name, feature in features.items()}
        return {name: list(each["names"]) for name, each in described.items() if each.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def named(value: Any, names: list[str], place: str) -> Any:
    """What a number is called; None where it says that there is no label, as in test splits whose answers are kept
    secret."""
    if isinstance(value, list):
        return [named(each, names, place) for each in value]
    if value is None or value == NO_LABEL:
        return None
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise UserError(f"{place} has a label {value!r}, but the file names those from 0 to {len(names) - 1}")
    return names[value]
