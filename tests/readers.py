"""What files hold, read with json, csv and numpy alone: the yardstick of mutations.py, slow and plain.

`Wrong` says that a file is to be refused, and what the sentence is to name.
"""

import csv
import io
import json
import math
import re
import unicodedata
from itertools import takewhile

import numpy as np


class Wrong(Exception):
    """Its arguments: what a message must name."""


# ---- data files ----------------------------------------------------------------------------------


def content_of(path):
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise Wrong(str(path)) from None
    if "\0" in text:
        raise Wrong(str(path))
    return text


def bare(text):
    """Without what nobody sees at its ends."""
    seen = [i for i, letter in enumerate(text) if not letter.isspace() and unicodedata.category(letter) != "Cf"]
    return text[seen[0] : seen[-1] + 1] if seen else ""


def classify_data(train, dev):
    """The texts and classes of both files; those that are held out are not trained on."""
    found = {"train": examples(train), "dev": examples(dev)}
    classes = {label for _, label in found["train"]}
    if len(classes) < 2:
        raise Wrong(str(train))
    if not {label for _, label in found["dev"]} <= classes:
        raise Wrong(str(dev))
    held_out = {text for text, _ in found["dev"]}
    found["train"] = [row for row in found["train"] if row[0] not in held_out]
    if {label for _, label in found["train"]} != classes:
        raise Wrong(str(train))
    return found


def examples(path):
    rows = list((json_rows if path.suffix == ".jsonl" else table_rows)(path))
    if not rows:
        raise Wrong(str(path))
    return [(text_of(row, path), label_of(row, path)) for row in rows]


def text_of(row, path, name="text"):
    text = row.get(name)
    if not isinstance(text, str) or not bare(text) or not text.isascii() and "\ud800" in text:
        raise Wrong(str(path))
    return bare(text)


def label_of(row, path):
    label = row.get("label")
    if isinstance(label, int) or (isinstance(label, float) and math.isfinite(label)):
        return json.dumps(label)
    return unicodedata.normalize("NFC", text_of(row, path, "label"))


def json_rows(path):
    def unique(pairs):
        if len(dict(pairs)) < len(pairs):
            raise Wrong(str(path))
        return dict(pairs)

    for line in re.split(r"\r\n?|\n", content_of(path)):
        try:
            row = json.loads(line, object_pairs_hook=unique) if line.strip() else None
        except (ValueError, RecursionError):
            raise Wrong(str(path)) from None
        if line.strip() and not isinstance(row, dict):
            raise Wrong(str(path))
        if row is not None:
            yield row


def table_rows(path):
    text = content_of(path)
    first = next((line for line in re.split(r"\r\n?|\n", text) if bare(line)), "")
    delimiter = "\t" if path.suffix == ".tsv" else max(",;\t|", key=re.sub(r'"[^"]*"', "", first).count)
    csv.field_size_limit(2**31 - 1)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if any(row)]
    except csv.Error:
        raise Wrong(str(path)) from None
    if not rows:
        return
    header = trimmed([bare(name) for name in rows[0]], 1)
    named = [name for name in header if name]
    if len(set(named)) < len(named):
        raise Wrong(str(path))
    for row in rows[1:]:
        row = trimmed(row, len(header))
        if len(row) != len(header):
            raise Wrong(str(path))
        yield {name: cell for name, cell in zip(header, row, strict=True) if name}


def trimmed(cells, least):
    """Without the empty cells behind the others."""
    while len(cells) > least and not cells[-1]:
        cells = cells[:-1]
    return cells


VOWELS = "AA AE AH AO AW AY EH ER EY IH IY OW OY UH UW".split()
CONSONANTS = "B CH D DH F G HH JH K L M N NG P R S SH T TH V W Y Z ZH".split()


def pronounce_data(train, dev):
    """Prompts with the pronunciations of both files."""
    found = {"train": words(train), "dev": words(dev)}
    left = {prompt: listed for prompt, listed in found["train"].items() if prompt not in found["dev"]}
    if not left:
        raise Wrong(str(train))
    return {**found, "train": left}


def words(path):
    found = {}
    for line in re.split(r"\r\n?|\n", unicodedata.normalize("NFC", content_of(path))):
        if line.strip().startswith(";;;"):
            continue
        fields = [bare(field) for field in takewhile(lambda field: not field.startswith("#"), line.split())]
        if fields := [field for field in fields if field]:
            word, phones = re.sub(r"\([0-9]+\)$", "", fields[0]).lower(), [plain(phone) for phone in fields[1:]]
            if not word or not phones or not set(word) <= set("abcdefghijklmnopqrstuvwxyz'-."):
                raise Wrong(str(path))
            if not set(phones) <= {*VOWELS, *CONSONANTS}:
                raise Wrong(str(path))
            listed = found.setdefault(f"{word}:", [])
            listed += [each for each in ["".join(f" {phone}" for phone in phones)] if each not in listed]
    if not found:
        raise Wrong(str(path))
    return {prompt: tuple(listed) for prompt, listed in found.items()}


def plain(phone):
    phone = phone.upper()
    return phone[:-1] if phone[-1] in "012" and phone[:-1] in VOWELS else phone
