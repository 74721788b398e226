"""Files: whole or not at all, also where the machine goes down, and damage to tensors is noticed."""

import os
import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from minillm import files
from minillm.errors import UserError
from minillm.files import fields_from, read_state, read_tensors, replacing, write_tensors, write_text

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "none": torch.zeros(0, 4),
    "one": torch.tensor(7),
    "yes": torch.tensor([True, False]),
}


def assert_equal(found, truth):
    assert found.keys() == truth.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in truth.items())
    assert all(found[name].dtype == tensor.dtype for name, tensor in truth.items())


def test_the_disk_has_a_file_before_its_name_and_then_the_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *x: (done.append("fsync"), fsync(*x)))
    monkeypatch.setattr(os, "replace", lambda *x: (done.append("replace"), replace(*x)))
    write_text(tmp_path / "file", "text")
    assert done == ["fsync", "replace", "fsync"]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_no_two_writers_share_a_file(tmp_path):
    with replacing(tmp_path / "config.json") as one, replacing(tmp_path / "config.json") as other:
        assert one != other
        assert one.parent.name.endswith(".partial")
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "config.json").read_text() == "one"  # which came last
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_text(tmp_path / "file", str(i) * 9999), range(64)))
    text = (tmp_path / "file").read_text()
    assert text == text[0] * len(text) or text == text[:2] * (len(text) // 2)


def test_what_is_left_of_a_writer_that_died_hinders_nobody(tmp_path):
    for name in ("file.partial", "file.0123abcd.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("half")
    write_text(tmp_path / "file", "whole")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_library_that_writes_beside_its_file_leaves_nothing_in_the_folder(tmp_path):
    """safetensors first writes `.tmp…`, and a process may die then."""
    with replacing(tmp_path / "file") as temporary:
        (temporary.parent / ".tmpABCDEF").write_text("half")
        assert [path.name.endswith(".partial") for path in tmp_path.iterdir()] == [True]
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def write_and_look(path):
    """What lies in the folder of `path` while safetensors writes there, at its many moments."""
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            seen.update(os.listdir(path.parent))

    thread = threading.Thread(target=look)
    thread.start()
    write_tensors(path, {"x": torch.zeros(2_000_000)}, {})
    stop.set()
    thread.join()
    return seen


def test_no_other_names_than_known_ones_lie_beside_tensors_while_they_are_written(tmp_path):
    path = tmp_path / "run" / "x"
    path.parent.mkdir()
    assert {name for name in write_and_look(path) if not name.endswith(".partial")} <= {"x"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["disk", "Ctrl-C"])
def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path, error):
    (tmp_path / "file").write_text("old")

    def fail():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises((UserError, KeyboardInterrupt)):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_the_same_tensors_are_the_same_bytes(tmp_path):
    for name in "abcdefgh":
        write_tensors(tmp_path / name, TENSORS)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_tensors_and_what_stands_beside_them_come_back(tmp_path):
    write_tensors(tmp_path / "x", TENSORS, {"step": 3})
    assert_equal(read_tensors(tmp_path / "x"), TENSORS)
    assert read_state(tmp_path / "x") == {"step": 3}


def test_any_damage_is_noticed(tmp_path):
    """Whichever bit it is, unless nothing is read from it, as from the blanks behind the header."""
    path, rng, noticed = tmp_path / "x", random.Random(0), 0
    write_tensors(path, TENSORS, {"step": 3})
    whole = path.read_bytes()
    for _ in range(300):
        spoiled = bytearray(whole)
        spoiled[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(spoiled)
        try:
            found, state = read_tensors(path), read_state(path)
        except UserError:
            noticed += 1
        else:
            assert state == {"step": 3}
            assert_equal(found, TENSORS)
    assert noticed > 250


def test_a_checksum_covers_names_types_and_shapes():
    one = torch.arange(4.0)
    sums = [
        files.checksum({"a": one}, ""),
        files.checksum({"b": one}, ""),
        files.checksum({"a": one.view(2, 2)}, ""),
        files.checksum({"a": one.view(torch.int32)}, ""),
        files.checksum({"a": one}, "x"),
        files.checksum({"a": one.flip(0)}, ""),
    ]
    assert len(set(sums)) == len(sums)


@dataclass
class Fields:
    lr: float | None = None
    steps: int = 0
    out: Path | None = None
    is_over: bool = False
    rewards: tuple[str, ...] = ()
    totals: dict[str, float] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("saved", "values"),
    [
        ({"lr": 0.5, "steps": 3, "out": "x"}, {"lr": 0.5, "steps": 3, "out": Path("x")}),
        ({"lr": None, "out": None, "is_over": True}, {"lr": None, "out": None, "is_over": True}),
        ({"lr": 1, "totals": {"tokens": 3, "words": 0.5}}, {"lr": 1, "totals": {"tokens": 3, "words": 0.5}}),
        ({"rewards": ["x", "y"]}, {"rewards": ("x", "y")}),
        ({"rewards": ["x", 3]}, "'rewards' cannot be ('x', 3)"),
        ({"rewards": "x"}, "'rewards' cannot be 'x'"),
        ({"lr": "0.5"}, "'lr' cannot be '0.5'"),
        ({"lr": True}, "'lr' cannot be True"),
        ({"steps": None}, "'steps' cannot be None"),
        ({"steps": 0.5}, "'steps' cannot be 0.5"),
        ({"steps": [3]}, "'steps' cannot be [3]"),
        ({"out": 3}, "'out' cannot be 3"),
        ({"out": ["x"]}, "'out' cannot be ['x']"),
        ({"is_over": 1}, "'is_over' cannot be 1"),
        ({"totals": [1]}, "'totals' cannot be [1]"),
        ({"totals": {"tokens": "3"}}, "'totals' cannot be {'tokens': '3'}"),
        ({"colour": 1}, "'colour' cannot be 1"),
    ],
)
def test_what_json_holds_of_a_dataclass(saved, values):
    if isinstance(values, dict):
        assert fields_from(Fields, saved, Path("args.json")) == values
    else:
        with pytest.raises(UserError, match=re.escape(f"args.json is spoiled: {values}")):
            fields_from(Fields, saved, Path("args.json"))
