"""Data sets of the hub, by a hub that is a folder."""

import json
import shutil
import sys
from types import SimpleNamespace

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

    def files():
        return [path.relative_to(there).as_posix() for path in there.rglob("*.*")]

    def snapshot_download(name, repo_type, revision, allow_patterns):
        assert (name, repo_type, revision) == ("owner/films", "dataset", "refs/convert/parquet")
        for file in hub_library.utils.filter_repo_objects(files(), allow_patterns=allow_patterns):
            (cache / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there / file, cache / file)
            fetched.append(file)
        return str(cache)

    def get_cached_repo_tree(name, repo_type, revision):
        return [SimpleNamespace(path=file) for file in files()]

    monkeypatch.setattr(hub_library, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub_library, "get_cached_repo_tree", get_cached_repo_tree)
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
    assert fetched == ["default/train/0000.parquet"]  # of other configurations nothing


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hub:films", r"hub:films is no data set of the hub: write hub:OWNER/NAME"),
        ("hub:owner/films:test", r"no split 'test' of this data set, .* only plain:train, plain:validation$"),
        ("hub:owner/films/odd", r"no configuration 'odd' with a split 'train'"),
        ("hub:owner/../films", r"is no data set of the hub"),
    ],
)
def test_what_is_not_there_is_said(hub, name, said):
    with pytest.raises(UserError, match=said):
        records.read(name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The real library's cache without a network, and of the data set the first of two files."""
    commit, repository = "a" * 40, tmp_path / "hub/datasets--owner--films"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write(repository / "snapshots" / commit / "plain/train/0000.parquet", rows(0, 20), NAMES)
    write_text(repository, "refs/refs/convert/parquet", commit)
    names = [".gitattributes", "plain/train/0000.parquet", "plain/train/0001.parquet"]
    tree = {"format_version": 1, "files": {name: {"size": 1, "blob_id": "0"} for name in names}}
    return repository / "snapshots" / commit, lambda: write_text(repository, f"trees/{commit}.json", json.dumps(tree))


def write_text(folder, name, text):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def test_a_part_of_a_split_is_not_taken_for_the_whole(cache):
    """Whether or not the library has seen which files there are."""
    snapshot, write_tree = cache
    with pytest.raises(UserError, match=r"whether all its files are here can only be told with a network"):
        records.read("hub:owner/films")
    write_tree()
    with pytest.raises(UserError, match=r"downloading hub:owner/films from the hub failed: .*0001\.parquet"):
        records.read("hub:owner/films")
    write(snapshot / "plain/train/0001.parquet", rows(20, 30), NAMES)
    assert len(records.read("hub:owner/films")) == 30


def test_without_a_network_or_the_extra(cache, monkeypatch):
    shutil.rmtree(cache[0].parents[2])
    with pytest.raises(UserError, match=r"downloading hub:owner/films from the hub failed: Cannot find .*[^.]\.?$"):
        records.read("hub:owner/films")
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace())
    with pytest.raises(UserError, match=r"hub:owner/films needs a newer huggingface_hub: pip install --upgrade"):
        records.read("hub:owner/films")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"reading hub:owner/films needs .*: pip install -e '\.\[hub\]'"):
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


def test_tags_have_names_and_a_number_that_has_none_is_refused(tmp_path):
    features = {"tags": {"feature": {"_type": "ClassLabel", "names": ["O", "B-x"]}, "_type": "Sequence"}, **NAMES}
    write(tmp_path / "a.parquet", [{"tags": [0, 1, 0], "label": 1, "n": -1}], features)
    assert records.read(tmp_path / "a.parquet")[0].fields == {"tags": ["O", "B-x", "O"], "label": "good", "n": -1}
    write(tmp_path / "a.parquet", [{"tags": [0], "label": 1}, {"tags": [0], "label": 2}], features)
    with pytest.raises(UserError, match=r"a.parquet, row 2 has a label 2, but the file names those from 0 to 1$"):
        records.read(tmp_path / "a.parquet")


def test_a_split_whose_labels_are_hidden_is_no_class_of_its_own(hub, tmp_path):
    """As in most test splits of benchmarks: neither learned from nor measured by."""
    write(hub[0] / "plain/test/0000.parquet", [{"text": "it was so", "label": -1}], NAMES)
    said = (
        r"hub:owner/films:test, row 1: 'label' is empty, so that this example has no label: .* test splits of the hub"
    )
    for options in (
        Options(train="hub:owner/films:test"),
        Options(train="hub:owner/films", test="hub:owner/films:test"),
    ):
        with pytest.raises(UserError, match=said):
            train_sft.train(train_sft.Args(task="classify", out=tmp_path / "run", options=options), Console(quiet=True))


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
