"""Data sets of the hub, by a hub that is a folder."""

import json
import shutil
import sys

import pytest
from rich.console import Console

import train_sft
from minillm import records
from minillm.commands import evaluate
from minillm.errors import UserError
from minillm.parquet import classes_of
from minillm.tasks.classify import Options

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
hub_library = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")

NAMES = {"text": {"_type": "Value"}, "label": {"_type": "ClassLabel", "names": ["bad", "good"]}}


def write(path, rows, features=None):
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path)


def rows(start, stop):
    return [{"text": f"it was {'fine' if i % 2 else 'poor'} {i}", "label": i % 2} for i in range(start, stop)]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder with a data set of two splits, one of two files, and what was fetched of it."""
    there, cache = tmp_path / "there", tmp_path / "cache"
    write(there / "plain/train/0000.parquet", rows(0, 20), NAMES)
    write(there / "plain/train/0001.parquet", rows(20, 30), NAMES)
    write(there / "plain/validation/0000.parquet", rows(30, 40), NAMES)
    fetched = []

    def snapshot_download(name, repo_type, revision, allow_patterns):
        assert (name, repo_type, revision) == ("owner/films", "dataset", "refs/convert/parquet")
        files = [path.relative_to(there).as_posix() for path in there.rglob("*.*")]
        for file in hub_library.utils.filter_repo_objects(files, allow_patterns=allow_patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there / file, cache / file)
            fetched.append(file)
        return str(cache)

    monkeypatch.setattr(hub_library, "snapshot_download", snapshot_download)
    return there, fetched


def test_a_split_of_several_files_is_read_in_order(hub):
    found = records.read("hub:owner/films")
    assert [record.fields["text"] for record in found] == [row["text"] for row in rows(0, 30)]
    assert [record.fields["label"] for record in found[:3]] == ["bad", "good", "bad"]
    assert found[25].place == "hub:owner/films, row 26"
    assert not any("validation" in file for file in hub[1])  # what nobody asked for is not fetched
    assert len(records.read("hub:owner/films/plain:validation")) == 10


def test_configurations(hub):
    there, fetched = hub
    write(there / "other/train/0000.parquet", rows(0, 4))
    with pytest.raises(UserError, match=r"has the configurations other, plain: name one, as in hub:owner/films/other$"):
        records.read("hub:owner/films")
    assert len(records.read("hub:owner/films/other")) == 4
    write(there / "default/train/0000.parquet", rows(0, 7))
    fetched.clear()
    assert len(records.read("hub:owner/films")) == 7
    assert "plain/train/0001.parquet" not in fetched


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:films", r"hub:films is no data set of the hub: write hub:OWNER/NAME"),
        ("hub:owner/films:test", r"no split 'test' of this data set"),
        ("hub:owner/films/odd", r"no configuration 'odd' with a split 'train'"),
        ("hub:owner/../films", r"is no data set of the hub"),
    ],
)
def test_what_is_not_there_is_said(hub, name, said):
    with pytest.raises(UserError, match=said):
        records.read(name)


def test_without_a_network_or_the_extra(hub, monkeypatch):
    def unreachable(*_, **__):
        raise hub_library.errors.LocalEntryNotFoundError("not found\nand not online")

    monkeypatch.setattr(hub_library, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"downloading hub:owner/films from the hub failed: not found$"):
        records.read("hub:owner/films")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"downloading hub:owner/films .* needs .*: pip install -e '\.\[hub\]'"):
        records.read("hub:owner/films")


@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        ({}, {}),
        ({b"huggingface": b"no json"}, {}),
        ({b"huggingface": b'{"info": 3}'}, {}),
        ({b"huggingface": json.dumps({"info": {"features": NAMES}}).encode()}, {"label": ["bad", "good"]}),
    ],
)
def test_names_of_classes(metadata, classes):
    assert classes_of(metadata) == classes


def test_tags_have_names_and_unknown_numbers_stay(tmp_path):
    features = {"tags": {"feature": {"_type": "ClassLabel", "names": ["O", "B-x"]}, "_type": "Sequence"}, **NAMES}
    write(tmp_path / "a.parquet", [{"tags": [0, 1, 0], "label": -1, "n": 1}], features)
    assert records.read(tmp_path / "a.parquet")[0].fields == {"tags": ["O", "B-x", "O"], "label": -1, "n": 1}


def test_a_classifier_learns_from_the_hub_goes_on_and_is_measured(hub, tmp_path, capsys):
    small = {"layers": 1, "width": 16, "heads": 2, "batch_tokens": 100, "precision": "fp32", "evaluations": 1}
    chosen = Options(train="hub:owner/films", dev="hub:owner/films:validation")
    args = train_sft.Args(task="classify", steps=2, out=tmp_path / "run", options=chosen, **small)
    run = train_sft.train(args, Console(quiet=True))
    assert run.options()["train"] == "hub:owner/films"
    evaluate.main(evaluate.Args(model=str(run.folder), file="hub:owner/films:validation", json=True))
    assert json.loads(capsys.readouterr().out)["examples"] == 10
    same = Options(train="hub:owner/films", dev="hub:owner/films")
    with pytest.raises(UserError, match="--dev is the file of --train"):
        train_sft.train(train_sft.Args(task="classify", out=tmp_path / "other", options=same), Console(quiet=True))
