"""What a user is told is one line, whatever is quoted in it."""

import pytest

from minillm import records
from minillm.cli import with_paths
from minillm.errors import LONGEST, UserError
from minillm.published.checkpoint import resolve
from minillm.tasks.pronounce import Options


@pytest.mark.parametrize("given", ["short", "x" * LONGEST, "é" * LONGEST])
def test_a_short_sentence_stays_as_it_is(given):
    assert str(UserError(given)) == given


@pytest.mark.parametrize("quoted", ["x" * (LONGEST + 1), "word " * 10**5, "line\n" * 300, "\r\n" * 10**4])
def test_a_long_one_keeps_its_place_and_its_advice(quoted):
    sentence = str(UserError(f"file.csv:3: found {quoted}; mend it"))
    assert sentence.startswith("file.csv:3: found ")
    assert sentence.endswith("; mend it")
    assert len(sentence) <= LONGEST + 3
    assert len(sentence.splitlines()) == 1


def test_a_table_of_many_columns(tmp_path):
    (tmp_path / "a.csv").write_text(",".join(f"column {i}" for i in range(10**4)) + "\n" + ",".join("x" * 10**4))
    with pytest.raises(UserError, match=r"a\.csv:2 has no field 'text', only 'column 0'.*--fields") as refusal:
        records.read(tmp_path / "a.csv")[0].value("text")
    assert len(str(refusal.value)) <= LONGEST + 3


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "x" * 300 + "/y", "/".join(["x" * 200] * 30)])
def test_what_can_be_no_path(name):
    with pytest.raises(UserError, match=r"^--train .* is no path"):
        with_paths(Options(train=name))
    with pytest.raises(UserError, match="is no "):
        resolve(name)


def test_a_path_where_nothing_is_may_be_one(tmp_path):
    assert with_paths(Options(train=str(tmp_path / "new" / "file"))).train == tmp_path / "new" / "file"
