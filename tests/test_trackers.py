"""The log in other programs."""

import sys
from types import SimpleNamespace

import pytest
import scripts
from rich.console import Console
from scripts import SMALL

import minillm.curves
import train_sft
from minillm import trackers
from minillm.errors import UserError
from minillm.tasks.pronounce import Options


@pytest.fixture
def train(tmp_path, monkeypatch):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    words = scripts.write_words(tmp_path)

    def train(**options):
        args = train_sft.Args(out=tmp_path / "run", options=Options(**words), steps=6, **SMALL, **options)
        return train_sft.train(args, Console(quiet=True))

    return train


def logged(run):
    """Of every value its steps."""
    found = {}
    for record in run.read_log():
        for name, value in record.items():
            if name != "step":
                found.setdefault(name, []).append((record["step"], value))
    return found


def test_tensorboard_has_the_log(train):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(log_to="tensorboard")
    events = event_accumulator.EventAccumulator(str(run.path("tensorboard"))).Reload()
    truth = logged(run)
    assert set(events.Tags()["scalars"]) == truth.keys()
    for name, values in truth.items():
        assert [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(name)] == values


def test_tensorboard_forgets_what_is_done_again(train, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = SimpleNamespace(path=tmp_path.joinpath)
    for first, last, sign in ((1, 5, 1), (4, 6, -1)):  # interrupted after step 5; its last checkpoint was of step 3
        tracker = trackers.TensorBoard(run, first - 1)
        for step in range(first, last + 1):
            tracker.write({"step": step, "loss": float(sign * step), "samples": ["x"]})
        tracker.flush()
        tracker.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, -4), (5, -5), (6, -6)]


class FakeWandB(SimpleNamespace):
    """What wandb is told."""

    def init(self, **options):
        self.options = options
        self.records, self.is_finished = [], False
        return self

    def log(self, values, step):
        self.records.append({"step": step, **values})

    def finish(self):
        self.is_finished = True


def test_wandb_has_the_log(train, monkeypatch):
    wandb = FakeWandB(__spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run = train(log_to="wandb")
    assert wandb.records == run.read_log()
    assert wandb.is_finished
    assert wandb.options["name"] == "run"
    assert wandb.options["config"] == run.options()
    assert wandb.options["id"] == trackers.identity(run) == run.path("wandb.txt").read_text()


def test_a_package_that_is_missing_is_said_before_anything_is_done(train, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--log-to wandb needs its package: pip install -e '\.\[wandb\]'"):
        train(log_to="wandb")
    assert not (tmp_path / "run").exists()


def test_a_name_that_is_none(train):
    with pytest.raises(UserError, match="--log-to papyrus is not one of tensorboard, wandb"):
        train(log_to="papyrus")
