"""A training that was interrupted and resumed is the training that was not interrupted."""

import json
import re
import signal
import time
from pathlib import Path

import pytest
import scripts
import torch
from safetensors.torch import load_file
from scripts import FEW, SMALL
from torch.optim.optimizer import register_optimizer_step_post_hook

import minillm.curves
import minillm.run
import train_rl
import train_sft
from kernels import backend
from minillm.files import read_state, write_tensors
from minillm.session import Session
from minillm.tasks import Pronounce

STEPS = 8


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return scripts.write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def _patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        patch.setattr(backend, "_default", "auto")
        # So little training earns no real reward; this one always differs, so that every step moves the weights.
        patch.setattr(Pronounce, "reward", lambda self, _, answers: {"made up": [len(a) % 3 / 2 for a in answers]})
        yield


@pytest.fixture
def call(capsys):
    """Run a script's main: → exit code, stdout, stderr."""

    def call(script, **options):
        code = scripts.main(script, **options)
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module", params=[train_sft, train_rl], ids=["sft", "rl"])
def training(request, tmp_path_factory, words, _patched):
    """A script, the options of a training of STEPS steps, and the run that it is without interruption."""
    folder, script = tmp_path_factory.mktemp("whole"), request.param
    # 64 words in batches of 64 tokens: several epochs; dropout, so that torch's generator matters.
    options = {**words, **SMALL, "steps": STEPS, "dropout": 0.2, "lr": 0.02}
    if script is train_rl:
        assert scripts.main(train_sft, **options, out=folder / "start") == 0
        options = {"task": "pronounce", "init": folder / "start", **FEW, "steps": STEPS}
    assert scripts.main(script, **options, out=folder / "whole") == 0
    return script, options, folder / "whole"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_equal_runs(first, second):
    assert scripts.steps_of(Path(first)) == scripts.steps_of(Path(second)) == list(range(1, STEPS + 1))
    timeless = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in scripts.read_log(Path(run))]
        for run in (first, second)
    ]
    assert timeless[0] == timeless[1]
    assert json.loads(Path(second, "metrics.json").read_text())["steps"] == STEPS
    one, two = weights(first), weights(second)
    assert all(torch.equal(one[name], two[name]) for name in one)


def interrupt_at_step(monkeypatch, number, kind=signal.SIGINT):
    """Ctrl-C, or another signal, while step `number` is at work, before the weights have moved."""
    real, calls = Session.set_lr, []

    def set_lr(*args):
        calls.append(args)
        if len(calls) == number:
            signal.raise_signal(kind)
        return real(*args)

    monkeypatch.setattr(Session, "set_lr", set_lr)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("number", [1, 6])
def test_interrupted_in_a_step(training, call, monkeypatch, number, kind):
    script, options, whole = training
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, number, kind)
        code, out, _ = call(script, **options, out="cut")
    assert code == 130
    told = re.search(r"stopped at step (\d+); go on with: python train_\w+.py --resume cut", " ".join(out.split()))
    assert told
    assert int(told[1]) in (number - 1, number)  # it may finish the step first
    assert not Path("cut/metrics.json").exists()
    code, _, err = call(script, resume="cut")
    assert code == 0, err
    assert_equal_runs(whole, "cut")


def test_the_seconds_of_a_run_are_those_of_all_its_processes(training, call, monkeypatch):
    script, options, _ = training
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 6, signal.SIGINT)
        call(script, **options, out="cut")
    begin = Session.begin
    monkeypatch.setattr(Session, "begin", lambda *args: 1000 + begin(*args))
    assert call(script, resume="cut")[0] == 0
    assert json.loads(Path("cut/metrics.json").read_text())["seconds"] > 1000


@pytest.mark.parametrize("at", [1, 6])
def test_interrupted_when_weights_have_moved(training, call, at):
    """Ctrl-C comes when it comes: here just after the `at`-th time that an optimiser has moved the weights."""
    script, options, whole = training
    moved = []

    def interrupt(*_):
        moved.append(1)
        if len(moved) == at:
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(interrupt)
    try:
        assert call(script, **options, out="cut")[0] == 130
    finally:
        hook.remove()
    code, _, err = call(script, resume="cut")
    assert code == 0, err
    assert_equal_runs(whole, "cut")


def test_stopped_twice(training, call, monkeypatch):
    script, options, whole = training
    for start in ({**options, "out": "cut"}, {"resume": "cut"}):
        with monkeypatch.context() as patch:
            interrupt_at_step(patch, 3)
            assert call(script, **start)[0] == 130
    assert call(script, resume="cut")[0] == 0
    assert_equal_runs(whole, "cut")


def test_killed_after_a_checkpoint(training, call, monkeypatch):
    """No time to save: the run goes on from the last checkpoint and forgets what the log says beyond it."""
    script, options, whole = training
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 4)
        assert call(script, **options, out="cut")[0] == 130
    old, seen = Path("cut/checkpoint.safetensors").read_bytes(), scripts.steps_of(Path("cut"))
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 4)
        assert call(script, resume="cut")[0] == 130
    assert len(scripts.steps_of(Path("cut"))) > len(seen)
    Path("cut/checkpoint.safetensors").write_bytes(old)
    assert call(script, resume="cut")[0] == 0
    assert_equal_runs(whole, "cut")


def test_interrupted_while_the_end_is_measured(training, call, monkeypatch):
    script, options, whole = training
    with monkeypatch.context() as patch:
        patch.setattr(minillm.run.Run, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert call(script, **options, out="cut")[0] == 130
    assert call(script, resume="cut")[0] == 0
    assert weights(whole).keys() == weights("cut").keys()
    assert all(torch.equal(weights(whole)[name], w) for name, w in weights("cut").items())
    assert json.loads(Path("cut/metrics.json").read_text())["steps"] == STEPS


def test_an_error_in_training_does_not_replace_a_good_checkpoint(training, call, monkeypatch):
    """A loss that is no number has spoiled the weights; a checkpoint with them would be worth nothing."""
    script, options, _ = training
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 4)
        assert call(script, **options, out="cut")[0] == 130
    good = Path("cut/checkpoint.safetensors").read_bytes()

    def spoil(optimizer, *_):
        optimizer.param_groups[0]["params"][0].data.fill_(torch.nan)

    hook = register_optimizer_step_post_hook(spoil)
    try:
        code, _, err = call(script, resume="cut")
    finally:
        hook.remove()
    assert code == 2
    assert "--lr" in err
    assert Path("cut/checkpoint.safetensors").read_bytes() == good


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_real_signal_to_a_real_process(tmp_path, words, kind):
    """It comes once a few steps are in the log; the resumed process ends with exactly the steps asked for."""
    number, steps = 6, 3000
    process = scripts.start("train_sft.py", tmp_path, **words, **SMALL, steps=steps, out="cut")
    log, deadline = tmp_path / "cut" / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > number):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "py --resume cut" in " ".join(out.split())
    seen = scripts.steps_of(tmp_path / "cut")
    assert number <= len(seen) < steps
    args = json.loads((tmp_path / "cut" / "args.json").read_text())
    (tmp_path / "cut" / "args.json").write_text(json.dumps(args | {"steps": len(seen) + 20}))
    code, _, err = scripts.run("train_sft.py", tmp_path, resume="cut")
    assert code == 0, err
    assert scripts.steps_of(tmp_path / "cut") == list(range(1, len(seen) + 21))
    assert json.loads((tmp_path / "cut" / "metrics.json").read_text())["steps"] == len(seen) + 20


# ---- from the first moment on --------------------------------------------------------------------


@pytest.mark.parametrize("when", ["fit", "finish"])
def test_a_process_that_dies_leaves_a_run_that_goes_on(training, call, monkeypatch, when):
    """Not by a signal, which it could wait for: there is a checkpoint before the first step."""
    script, options, whole = training
    with monkeypatch.context() as patch:
        patch.setattr(script, when, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert call(script, **options, out="cut")[0] == 130
    assert Path("cut/checkpoint.safetensors").exists()
    assert call(script, resume="cut")[0] == 0
    assert_equal_runs(whole, "cut")
    assert not Path("cut/checkpoint.safetensors").exists()


def test_runs_of_the_old_format_are_refused(training, call, monkeypatch):
    script, options, _ = training
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 4)
        assert call(script, **options, out="cut")[0] == 130
    path = Path("cut/checkpoint.safetensors")
    tensors, state = load_file(path), read_state(path)
    del state["format"]
    write_tensors(path, tensors, state)
    before = {path: path.read_bytes() for path in Path("cut").iterdir()}
    code, _, err = call(script, resume="cut")
    assert code == 2
    assert "cut/checkpoint.safetensors was written by another version of this program" in err
    assert {path: path.read_bytes() for path in Path("cut").iterdir()} == before


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"lr": 0.5}, "lr"),
        ({"steps": 99}, "steps"),
        ({"seed": 1}, "seed"),
        ({"out": "other"}, "out"),
        ({"dev": "x"}, "dev"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_options_beside_resume_are_refused_by_name(training, call, monkeypatch, given, name):
    script, options, whole = training
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 4)
        assert call(script, **options, out="cut")[0] == 130
    task = {"task": "pronounce"} if script is train_rl and name == "dev" else {}
    code, _, err = call(script, resume="cut", **task, **given)
    assert code == 2
    assert err == (f"error: --resume goes on under the options that the run was started with; leave out --{name}\n")
    assert call(script, resume="cut")[0] == 0
    assert_equal_runs(whole, "cut")


@pytest.mark.usefixtures("_patched")
def test_the_best_model_is_the_same_after_an_interruption(words, call, monkeypatch):
    """Of four looks the second is made to be the best one; the interruption comes after it."""
    options = {**words, **SMALL, "steps": STEPS, "lr": 0.02, "keep": "best", "evaluations": 4, "micro_tokens": 20}
    real, seen = Session.keep_if_best, []

    def keep(session, _):
        seen.append(session.progress.step)
        return real(session, (0.1, 0.9, 0.3, 0.5)[len(seen) - 1])

    monkeypatch.setattr(Session, "keep_if_best", keep)
    assert call(train_sft, **options, out="whole")[0] == 0
    first, _ = list(seen), seen.clear()
    assert len(first) == 4
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 7)
        assert call(train_sft, **options, out="cut")[0] == 130
    assert call(train_sft, resume="cut")[0] == 0
    assert seen == first
    assert_equal_runs("whole", "cut")
    assert not Path("cut/best.safetensors").exists()
