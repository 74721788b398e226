"""Files of examples: what is in them comes out, and whatever is wrong with them is named with its place."""

import csv
import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm import records
from minillm.errors import UserError
from minillm.records import Record


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


DELIMITED = {
    "commas": ("a.csv", "text,label\na;b,c\n", "a;b"),
    "semicolons": ("a.csv", "text;label\na,b;c\n", "a,b"),
    "tabs": ("a.csv", "text\tlabel\na,b;c\tc\n", "a,b;c"),
    "bars": ("a.csv", "text|label\na,b|c\n", "a,b"),
    "tsv": ("a.tsv", "text\tlabel\na,b\tc\n", "a,b"),
    "tsv with commas in its names": ("a.TSV", "text\tlabel\ta, b, c\nx\tc\t\n", "x"),
    "declared": ("a.csv", "sep=;\ntext;label\na,b;c\n", "a,b"),
    "declared comma": ("a.csv", 'sep=,\r\n"text","label"\r\n"a;b","c"\r\n', "a;b"),
    "declared, quoted, Windows": ("a.csv", '"SEP=|"\r\ntext|label\r\na,b;|c\r\n', "a,b;"),
    "a declared tab": ("a.csv", "\ufeffsep=\t\ntext\tlabel\na,b\tc\n", "a,b"),
    "most fields": ("a.csv", "text;label;name, surname\na, b;c;d, e\n", "a, b"),
    "quoted names": ("a.csv", '"text","label","of; what; it; is"\na,c,1\n', "a"),
    "blank lines first": ("a.csv", "\n \n\ntext;label\na;c\n", "a"),
    "old line ends": ("a.csv", "text;label\ra;c\r", "a"),
    "empty columns": ("a.csv", "text,label,,\na,c,,\n,,,\n", "a"),
    "empty columns of the rows": ("a.csv", "text,label\na,c,,,\n", "a"),
    "a column without a name": ("a.csv", ",text,,label\n0,a,x,c\n", "a"),
    "blanks behind commas": ("a.csv", 'id, text, label\n0, "a, b", "c"\n', "a, b"),
    "a blank behind one comma": ("a.csv", 'text,id, label\n"a, b", 0,c\n', "a, b"),
    "a blank that belongs to a cell": ("a.csv", "text,label\n a,c\n", " a"),
    "quotes in tabs": ("a.tsv", 'label\ttext\nc\t"It\'s" and "more\n', '"It\'s" and "more'),
    "a quote in tabs": ("a.csv", 'text\tlabel\n"\tc\n', '"'),
    "a cell of quotes in tabs": ("a.tsv", 'label\ttext\n"c"\t"a ""b"""\n', 'a "b"'),
    "a tab in quotes": ("a.tsv", 'label\ttext\nc\t"a\tb"\n', "a\tb"),
    "a line break among tabs": ("a.tsv", 'label\ttext\nc\t"a\nb"\n', "a\nb"),
    "invisible around the names": ("a.csv", "\ufeff\u200btext\u00a0;label\u200b\na;c\n", "a"),
}


@pytest.mark.parametrize(("name", "content", "text"), DELIMITED.values(), ids=DELIMITED)
def test_tables_of_spreadsheets(tmp_path, name, content, text):
    (record,) = records.read(write(tmp_path, name, content))
    assert (record.fields["text"], record.fields["label"]) == (text, "c")
    starts = (text, f'"{text}', "0,", " a", "c\t", '"c"\t')
    number = next(i for i, line in enumerate(content.splitlines(), 1) if line.startswith(starts))
    assert record.place.endswith(f":{number}")


def test_an_open_quote_among_tabs_swallows_no_rows(tmp_path):
    """As data sets have it that know no quotes: a text that begins with one, and another that ends with one."""
    lines = ['"Well, it was dull\tbad', "It was fine\tgood", 'he said."\tgood']
    found = records.read(write(tmp_path, "a.tsv", "text\tlabel\n" + "\n".join(lines)))
    assert [f"{each.fields['text']}\t{each.fields['label']}" for each in found] == lines
    assert [each.place[-2:] for each in found] == [":2", ":3", ":4"]


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
    "json": ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl:2 is not JSON: Expecting value: line 1 col"),
    "json list": ("a.jsonl", "[1, 2]\n", r"a\.jsonl:1 is no JSON object"),
    "empty": ("a.jsonl", "\n \n", r"a\.jsonl holds no records"),
    "header only": ("a.csv", "text,label\n", r"a\.csv holds no records"),
    "no text": ("a.jsonl", b"\xff\xfe\x00", r"a\.jsonl is not UTF-8"),
    "extension": ("a.txt", "text,label\n", r"a\.txt is none of \.jsonl .*, \.csv or \.tsv"),
    "open quote": (
        "a.csv",
        'text,label\nfine,1\n"never closed,1\nmore,2\n',
        r"a\.csv:3: unexpected end of data.*quoted",
    ),
    "quote within": ("a.csv", 'text,label\n"a"b,1\n', r"a\.csv:2: .*quoted\?"),
    "too many fields": ("a.csv", "text,label\nwell, well,1\n", r"a\.csv:2 has 3 fields, but the first line names 2"),
    "too few fields": ("a.csv", "text,label\nwell\n", r"a\.csv:2 has 1 field, but the first line names 2"),
    "same name": ("a.csv", "text,text\na,b\n", r"a\.csv:1 names the field 'text' twice"),
    "same name but for blanks": ("a.csv", "text,text\u200b\na,b\n", r"a\.csv:1 names the field 'text' twice"),
    "same name in json": ("a.jsonl", '{"a": 1}\n{"a": 1, "b": 2, "b": 3}\n', r"a\.jsonl:2 .* names 'b' twice"),
    "other delimiter": ("a.csv", "text;label\na,b\n", r"a\.csv:2 has 1 field, but .* names 2; they end at ';'"),
    "behind sep": ("a.csv", "sep=;\ntext;label\na;b;c\n", r"a\.csv:3 has 3 fields"),
    "sep only": ("a.csv", "sep=;\n", r"a\.csv holds no records"),
    "NUL": ("a.csv", "text,label\na,b\n\0\0\0,b\n", r"a\.csv:3 holds NUL bytes: .* damaged, or not UTF-8"),
    "NUL in json": ("a.jsonl", '{"text": "a"}\n\0\0\n', r"a\.jsonl:2 holds NUL bytes"),
    "UTF-16": ("a.csv", "text,label\n".encode("utf-16-le"), r"a\.csv:1 holds NUL bytes"),
    "UTF-16 with its mark": ("a.csv", "text,label\n".encode("utf-16"), r"a\.csv is not UTF-8"),
}


WRONG |= {
    "json of numbers": ("a.json", "[1]", r"a\.json is no JSON list of objects"),
    "json of two lists": ("a.json", '{"a": [], "b": []}', r"a\.json is no JSON list of objects"),
    "lines in json": ("a.json", '{"a": 1}\n{"a": 2}\n', r"a\.json is not JSON: .*one object a line is called \.jsonl"),
    "empty json": ("a.json", "[]", r"a\.json holds no records"),
    "not packed": ("a.csv.gz", "text,label\na,b\n", r"a\.csv\.gz cannot be unpacked: Not a gzipped file"),
    "cut": ("a.csv.gz", gzip.compress(b"text,label\na,b\n" * 99)[:-9], r"a\.csv\.gz cannot be unpacked"),
    "no tag": ("a.conll", "a O\nb\n", r"a\.conll:2 has one column, but a word and its tag"),
    "no table": ("a.parquet", "x", r"cannot read .*a\.parquet|needs the library pyarrow"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), WRONG.values(), ids=WRONG)
def test_wrong_files(tmp_path, name, content, sentence):
    with pytest.raises(UserError, match=sentence):
        records.read(write(tmp_path, name, content))


def test_a_folder(tmp_path):
    with pytest.raises(UserError, match=r"is a folder: name a file in it, \.jsonl"):
        records.read(tmp_path)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*a\.csv: No such file"):
        records.read(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*b\.csv: Is a directory"):
        records.read(tmp_path / "b.csv")


# ---- other kinds of files ------------------------------------------------------------------------


ROWS = [{"text": "one", "label": 1}, {"text": "zwei", "label": "gut"}]


@pytest.mark.parametrize("content", [ROWS, {"data": ROWS}, {"version": 2, "data": ROWS, "note": "x"}])
def test_a_json_list(tmp_path, content):
    path = write(tmp_path, "a.json", json.dumps(content, indent=1))
    assert [record.fields for record in records.read(path)] == ROWS
    assert records.read(path)[1].place == f"{path}, record 2"


def test_packed_texts_are_as_they_were(tmp_path):
    for name, content in (("a.csv", "text,label\nä,b\n"), ("a.jsonl", '{"text": "ä", "label": "b"}\n')):
        path = write(tmp_path, f"{name}.gz", gzip.compress(content.encode()))
        assert [record.fields for record in records.read(path)] == [{"text": "ä", "label": "b"}]


@pytest.mark.parametrize("gap", ["\n", "\n\n\n", " \t\n", "-DOCSTART- -X- O O\n\n"])
def test_sentences_in_columns(tmp_path, gap):
    content = "# sent_id = 1\nEU NNP B-ORG\nrejects VBZ O\n" + gap + "# O\n#tag\tB-X\nNew York\tI-X\n"
    content = content.replace("-DOCSTART-", "\n-DOCSTART-")
    found = records.read(write(tmp_path, "a.conll", content))
    assert [record.fields for record in found] == [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#", "#tag", "New York"], "tags": ["O", "B-X", "I-X"]},
    ]
    assert found[0].place.endswith(":1")
    same = records.read(write(tmp_path, "a.txt", content), otherwise=records.read_conll)
    assert [record.fields for record in same] == [record.fields for record in found]


def test_columns_of_universal_dependencies(tmp_path):
    """CoNLL-U: numbers first, contractions and what was left out beside the words."""
    rest = "\t_" * 5
    lines = ["# text = vámonos al mar", f"1-2\tvámonos\t_\t_\t_{rest}", f"1\tvamos\tir\tVERB\t_{rest}"]
    lines += [f"2\tnos\tyo\tPRON\t_{rest}", f"2.1\tya\tya\tADV\t_{rest}", f"3\t10\t10\tNUM\t_{rest}", ""]
    for name in ("a.conllu", "a.conll"):
        (found,) = records.read(write(tmp_path, name, "\n".join(lines)))
        assert found.fields == {"tokens": ["vamos", "nos", "10"], "tags": ["VERB", "PRON", "NUM"]}
    (found,) = records.read(write(tmp_path, "a.conll", "10 CD B-NP\n"))
    assert found.fields == {"tokens": ["10"], "tags": ["B-NP"]}


def test_a_table(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:1] * 3), tmp_path / "a.parquet")
    found = records.read(tmp_path / "a.parquet")
    assert [record.fields for record in found] == ROWS[:1] * 3
    assert found[2].place.endswith("a.parquet, row 3")


def test_lists_words_and_numbers_in_fields():
    each = record(a=["x ", "y"], b="x  y", c=[" "], d=[], e=["x", True], f="1.5", g=True, h="nan", i=7, j=["a b"])
    assert each.texts("a") == each.words("a") == each.words("b") == ("x", "y")
    assert each.texts("b") == ("x  y",)
    assert (each.number("f"), each.number("i")) == (1.5, 7.0)
    assert each.texts("i") == ("7",)  # as an answer may be
    assert record(a=[35.0, 0.5, "x"]).texts("a") == ("35", "0.5", "x")
    for read, names in ((each.texts, "cde"), (each.words, "cdeij"), (each.number, "abgh")):
        for name in names:
            with pytest.raises(UserError, match=f"a.jsonl:7: '{name}' "):
                read(name)


def record(**fields):
    return records.Record("a.jsonl:7", fields)


def test_texts():
    for blanks in (" ", "\n", "\u00a0", "\u200b", "\ufeff", "\u2060 \u200e", "\u3000"):
        assert record(a=f"{blanks}x y{blanks}").text("a") == "x y"
        with pytest.raises(UserError, match=r"a\.jsonl:7: 'a' is empty"):
            record(a=blanks).text("a")
    assert (
        record(a="cafe\u0301 \U0001f469\u200d\U0001f4bb").text("a") == "cafe\u0301 \U0001f469\u200d\U0001f4bb"
    )  # as it is
    for value, sentence in (
        ("  ", "a.jsonl:7: 'a' is empty"),
        (None, "a.jsonl:7: 'a' is empty"),
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


def labels(*values):
    return records.labels([record(a=value) for value in values], "a")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (("0", "1.0", "0.0", "1"), ("0", "1", "0", "1")),
        ((0, 1.0, 0.0, 1, "1.00", "+1"), ("0", "1", "0", "1", "1", "1")),
        (("-0.0", -0.0, "2.50", 2.5, "-3", -3), ("0", "0", "2.5", "2.5", "-3", "-3")),
        (("10", "100", 100.0, "1000.0"), ("10", "100", "100", "1000")),
        (("1", "1.0", "beta"), ("1", "1.0", "beta")),  # versions, not numbers
        (("007", "7", "7.0"), ("007", "7", "7.0")),  # codes
        ((1.0, "1", "1.0", "a"), ("1", "1", "1.0", "a")),
        ((True, "true", 1, False, "True"), ("true", "true", "1", "false", "True")),
        (("caf\u00e9", "cafe\u0301", " caf\u00e9\u200b"), ("caf\u00e9",) * 3),
        (("pos\u200b", "\ufeffpos", "pos\u00a0", "pos"), ("pos",) * 4),
        (("pos", "Pos", "nan"), ("pos", "Pos", "nan")),
        (("12345678901234567890123456789012345.0", "12345678901234567890123456789012346"), None),
        ((1e22, 10**22, "1" + "0" * 22), ("1" + "0" * 22,) * 3),
        ((10**400, "1" + "0" * 400 + ".0"), ("1" + "0" * 400,) * 2),  # no float holds it
        ((1e-7, "0.0000001"), ("0.0000001",) * 2),
        (("1e3", "1000"), ("1e3", "1000")),
        (("\u0661", "1"), ("\u0661", "1")),  # digits of another script
    ],
)
def test_what_counts_as_one_class(values, names):
    assert labels(*values) == [
        *(names or ("12345678901234567890123456789012345", "12345678901234567890123456789012346"))
    ]


@pytest.mark.parametrize(
    ("known", "values", "names"),
    [
        (("0", "1"), ("1.0", "0", "0.0"), ("1", "0", "0")),
        (("0", "1"), ("1.0", "beta"), ("1", "beta")),  # only the word is new
        (("1", "1.0", "beta"), ("1.0", "1"), ("1.0", "1")),  # numbers, but training told them apart
        (("a", "b"), ("1.0", "a"), ("1.0", "a")),
    ],
)
def test_other_files_follow_the_classes_of_training(known, values, names):
    assert records.labels([record(a=value) for value in values], "a", known) == [*names]


def test_numbers_in_csv_are_the_same_classes_as_in_jsonl(tmp_path):
    values = ["0", "1.0", "0.0", "1", "2.50"]
    table = write(tmp_path, "a.csv", "text;label\n" + "".join(f"x;{value}\n" for value in values))
    lines = write(tmp_path, "a.jsonl", "".join(f'{{"label": {value}}}\n' for value in values))
    assert records.labels(records.read(table), "label") == records.labels(records.read(lines), "label")


def test_a_table_of_one_column_asks_for_its_delimiter(tmp_path):
    (first,) = records.read(write(tmp_path, "a.csv", "text/label\na/b\n"))
    with pytest.raises(UserError, match=r"a\.csv:2 has no field 'label', only 'text/label'; .*by commas, semicolons"):
        first.label("label")
    (first,) = records.read(write(tmp_path, "a.jsonl", '{"text": "a"}'))
    with pytest.raises(UserError, match=r"only 'text'; say what is what with --fields$"):
        first.label("label")


def test_a_table_without_names_asks_for_them(tmp_path):
    (first,) = records.read(write(tmp_path, "a.tsv", "it was dull\tbad\nit was fine\tgood\n"))
    with pytest.raises(UserError, match=r"a\.tsv:2 has no field 'text', .* first line of a table must name its fields"):
        first.text("text")


def test_a_field_within_a_field():
    found = record(review={"body": "x", "stars": [1]}, **{"review.body": "y", "a.b": {"c": "z"}, "n": None})
    assert found.text("review.body") == "y"  # a name as it stands comes first
    assert found.value("review.stars") == [1]
    for name in ("review.title", "review.body.x", "n.x", "review.", ".review"):
        with pytest.raises(UserError, match=rf"has no field '{re.escape(name)}', only 'review', 'review.body'"):
            found.value(name)


def test_null_is_empty(tmp_path):
    """As tables have it, of which some cells hold nothing."""
    assert record(a=None).text_or_nothing("a") == ""
    for read in (Record.text, Record.texts, Record.words):
        with pytest.raises(UserError, match=r"'a' is empty|'a' must hold words"):
            read(record(a=None), "a")
    for read, value in ((Record.label, None), (Record.label, " "), (Record.number, None), (Record.number, "")):
        with pytest.raises(UserError, match=r"'a' is empty, so that this example has no label: fill it in or remove"):
            read(record(a=value), "a")


def test_a_missing_field_tells_what_there_is():
    with pytest.raises(UserError, match=r"a\.jsonl:7 has no field 'text', only 'review', 'stars'; .*--fields"):
        record(review="x", stars=1).text("text")
    with pytest.raises(UserError, match=r"has no field 'reveiw', only 'review', 'stars'; did you mean 'review'\? say"):
        record(review="x", stars=1).text("reveiw")


def test_all_faults_of_a_file_are_told_at_once(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\n" + "x,1\n" * 3 + ",1\n" + "x,1\n" + ",1\n" * (records.MANY + 2))
    read = records.read(tmp_path / "a.csv")
    others = ", ".join(str(line) for line in range(7, 7 + records.MANY))
    with pytest.raises(UserError, match=rf"a\.csv:5: 'text' is empty; .*; also faulty: {others} and 2 more$"):
        records.each_told(lambda record: record.text("text"), read)
    assert records.each_told(lambda record: record.text("text"), read[:3]) == ["x"] * 3
    with pytest.raises(UserError, match=r"a\.csv:5: 'text' is empty; fill it in or remove the line$"):
        records.each_told(lambda record: record.text("text"), read[:5])
    with pytest.raises(
        UserError, match=r"a\.csv:2 has no field 'texts'.*mean 'text'\? say what is what with --fields$"
    ):  # no fault of the lines
        records.each_told(lambda record: record.text("texts"), read)
