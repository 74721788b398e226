"""Files of examples: what is in them comes out, and whatever is wrong with them is named with its place."""

import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import records
from minillm.errors import UserError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl(tmp_path):
    path = write(tmp_path, "a.jsonl", '{"text": "one", "label": 1}\n\n{"text": "zwei", "label": "gut"}')
    assert records.read(path) == [
        (f"{path}:1", {"text": "one", "label": 1}),
        (f"{path}:3", {"text": "zwei", "label": "gut"}),
    ]


def test_csv(tmp_path):
    path = write(tmp_path, "a.CSV", 'text,label\r\n"one, ""two""\nthree",1\r\n\r\nfour,2\r\n')
    assert records.read(path) == [
        (f"{path}:2", {"text": 'one, "two"\nthree', "label": "1"}),
        (f"{path}:5", {"text": "four", "label": "2"}),
    ]


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, content in (("a.csv", "text,label\na,b\n"), ("a.jsonl", '{"text": "a", "label": "b"}\n')):
        path = write(tmp_path, name, b"\xef\xbb\xbf" + content.encode())
        assert records.read(path)[0].fields == {"text": "a", "label": "b"}


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@given(rows=st.lists(st.tuples(texts, texts), min_size=1))
def test_what_is_written_is_read(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("x", "y"), *rows])
    with (folder / "a.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"x": x, "y": y}, ensure_ascii=len(x) % 2 == 0) + "\n" for x, y in rows)
    for name in ("a.csv", "a.jsonl"):
        assert [tuple(record.fields.values()) for record in records.read(folder / name)] == rows


WRONG = {
    "json": ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl:2 is not JSON: "),
    "json list": ("a.jsonl", "[1, 2]\n", r"a\.jsonl:1 is no JSON object"),
    "empty": ("a.jsonl", "\n \n", r"a\.jsonl holds no records"),
    "header only": ("a.csv", "text,label\n", r"a\.csv holds no records"),
    "no text": ("a.jsonl", b"\xff\xfe\x00", r"a\.jsonl is not UTF-8"),
    "extension": ("a.txt", "text,label\n", r"a\.txt is neither \.jsonl .* nor \.csv"),
    "open quote": (
        "a.csv",
        'text,label\nfine,1\n"never closed,1\nmore,2\n',
        r"a\.csv:3: unexpected end of data.*quoted",
    ),
    "quote within": ("a.csv", 'text,label\n"a"b,1\n', r"a\.csv:2: .*quoted\?"),
    "too many fields": ("a.csv", "text,label\nwell, well,1\n", r"a\.csv:2 has 3 fields, but the first line names 2"),
    "too few fields": ("a.csv", "text,label\nwell\n", r"a\.csv:2 has 1 fields, but the first line names 2"),
    "same name": ("a.csv", "text,text\na,b\n", r"a\.csv:1 names the field 'text' twice"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_files(tmp_path, name, content, sentence):
    with pytest.raises(UserError, match=sentence):
        records.read(write(tmp_path, name, content))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*a\.csv: No such file"):
        records.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*b\.csv: Is a directory"):
        records.read(tmp_path / "b.csv")


def record(**fields):
    return records.Record("a.jsonl:7", fields)


def test_texts():
    assert record(a=" x\n").text("a") == "x"
    for value, sentence in (
        ("  ", "a.jsonl:7: 'a' is empty"),
        (None, "a.jsonl:7: 'a' is null, but a text"),
        (3, "a.jsonl:7: 'a' is 3, but a text"),
        ("\ud800", "a.jsonl:7: 'a' holds half a surrogate pair"),
    ):
        with pytest.raises(UserError, match=sentence):
            record(a=value).text("a")


def test_labels():
    values = (1, 1.0, "1", " 1 ", 2.5, True, "good", -3)
    assert [record(a=value).label("a") for value in values] == ["1", "1", "1", "1", "2.5", "true", "good", "-3"]
    for value in (None, [1], {"a": 1}, float("nan"), "", " "):
        with pytest.raises(UserError, match=r"a\.jsonl:7: 'a' is "):
            record(a=value).label("a")


def test_a_missing_field_tells_what_there_is():
    with pytest.raises(UserError, match=r"a\.jsonl:7 has no field 'text', only 'review', 'stars'; .*--fields"):
        record(review="x", stars=1).text("text")
