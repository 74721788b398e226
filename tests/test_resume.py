"""A training that was interrupted and resumed is the training that was not interrupted."""

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import scripts
import torch
from safetensors.torch import load_file
from scripts import FEW, SMALL
from torch.optim.optimizer import register_optimizer_step_post_hook

import minillm.curves
import minillm.files
import minillm.run
import minillm.session
import train_rl
import train_sft
from minillm import held_out
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
        code, out, err = call(script, **options, out="cut")
    assert code == 130
    assert re.search(r"interrupted; go on with: python train_\w+.py --resume cut", err)
    told = re.search(r"stopped at step (\d+)", out)
    assert told
    assert int(told[1]) in (number - 1, number)  # it may finish the step first
    assert not Path("cut/metrics.json").exists()
    code, _, err = call(script, resume="cut")
    assert code == 0, err
    assert_equal_runs(whole, "cut")


def test_interrupted_before_the_first_step(training, call, monkeypatch):
    script, options, whole = training
    with monkeypatch.context() as patch:
        patch.setattr(Session, "__iter__", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
        code, _, err = call(script, **options, out="cut")
    assert code == 130
    assert re.search(r"interrupted; go on with: python train_\w+.py --resume cut", err)
    code, _, err = call(script, resume="cut")
    assert code == 0, err
    assert_equal_runs(whole, "cut")


def test_the_seconds_of_a_run_are_those_of_all_its_processes(training, call, monkeypatch):
    script, options, _ = training
    own = Session.process_seconds
    with monkeypatch.context() as patch:
        patch.setattr(Session, "process_seconds", lambda session: own(session) + 1000)  # it worked for hours
        interrupt_at_step(patch, 6, signal.SIGINT)
        call(script, **options, out="cut")
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
    number, steps = 6, 200
    process = scripts.start("train_sft.py", tmp_path, **words, **SMALL, steps=steps, out="cut")
    log, deadline = tmp_path / "cut" / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > number):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "py --resume cut" in err
    seen = scripts.steps_of(tmp_path / "cut")
    assert number <= len(seen) < steps
    code, _, err = scripts.run("train_sft.py", tmp_path, resume="cut")
    assert code == 0, err
    assert scripts.steps_of(tmp_path / "cut") == list(range(1, steps + 1))
    assert json.loads((tmp_path / "cut" / "metrics.json").read_text())["steps"] == steps


# ---- from the first moment on --------------------------------------------------------------------


@pytest.mark.parametrize("when", ["fit", "finish"])
def test_a_process_that_dies_leaves_a_run_that_goes_on(training, call, monkeypatch, when):
    """Not by a signal, which it could wait for: there is a checkpoint before the first step."""
    script, options, whole = training
    where = held_out if (script, when) == (train_sft, "finish") else script
    with monkeypatch.context() as patch:
        patch.setattr(where, when, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
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
    assert err.startswith(
        f"error: --resume goes on under the options that the run was started with: leave out --{name}"
    )
    assert err.endswith("train its model further in a new one with --init cut\n")
    assert call(script, resume="cut")[0] == 0
    assert_equal_runs(whole, "cut")


# ---- what may have changed meanwhile -------------------------------------------------------------


def cut(script, options, call, monkeypatch, number=4):
    """An interrupted run in the folder `cut`."""
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, number)
        code, _, err = call(script, **options, out="cut")
    assert code == 130, err


@pytest.fixture(scope="module")
def interrupted(training, words, tmp_path_factory):
    """A script, a folder of data of its own, and a run on it that was interrupted."""
    script, options, _ = training
    folder = tmp_path_factory.mktemp("interrupted")
    data = {split: Path(shutil.copy(path, folder)) for split, path in words.items()}
    with pytest.MonkeyPatch.context() as patch:
        interrupt_at_step(patch, 4)
        assert scripts.main(script, **{**options, **data}, out=folder / "cut") == 130
    return script, folder, folder / "cut"


def refused(call, script, run):
    """What is said when the run is to go on; nothing of it changes."""
    before = {path: path.read_bytes() for path in run.iterdir()}
    code, _, err = call(script, resume=run)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in run.iterdir()} == before
    return err


def test_resumed_from_another_folder(training, words, call, monkeypatch, tmp_path):
    """Its files were named as seen from here."""
    script, options, whole = training
    for split, path in words.items():
        shutil.copy(path, f"{split}.txt")
    if script is train_rl:
        shutil.copytree(options["init"], "start")
        near = {"init": "start"}
    else:
        near = {split: f"{split}.txt" for split in words}
    cut(script, {**options, **near}, call, monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = call(script, resume="../cut")
    assert code == 0, err
    assert_equal_runs(whole, "../cut")


def test_a_run_needs_the_one_that_it_began_from_no_more(training, call, monkeypatch):
    script, options, whole = training
    if script is train_sft:
        options = {name: value for name, value in options.items() if name not in ("layers", "width", "heads")}
    shutil.copytree(options.get("init", whole), "start")
    options = {**options, "init": "start"}
    assert call(script, **options, out="whole")[0] == 0
    cut(script, options, call, monkeypatch)
    shutil.rmtree("start")
    code, _, err = call(script, resume="cut")
    assert code == 0, err
    assert_equal_runs("whole", "cut")
    assert not Path("cut/start.safetensors").exists()


CHANGES = {
    "a letter": ("train", lambda lines: [lines[0].replace("AA", "EH"), *lines[1:]], "train examples"),
    "a word more": ("train", lambda lines: [*lines, "CAFE  K AA\n"], "train examples"),
    "a word less": ("train", lambda lines: lines[1:], "train examples"),
    "another order": ("train", lambda lines: lines[::-1], "train examples"),
    "a dev word": ("dev", lambda lines: lines[1:], "dev examples"),
    "a test word": ("test", lambda lines: [*lines, "HEAD  HH EH D\n"], "test examples"),
    "a dev word that was trained on": ("dev", lambda lines: [*lines, "AB  AA B\n"], "train examples, dev examples"),
}


@pytest.mark.parametrize(("split", "change", "said"), CHANGES.values(), ids=CHANGES)
def test_other_data_is_refused(interrupted, call, split, change, said):
    script, folder, run = interrupted
    path = folder / f"{split}.txt"
    text = path.read_text()
    path.write_text("".join(change(text.splitlines(keepends=True))))
    assert f"cut cannot go on, as this has changed since it began: {said}; put it back" in refused(call, script, run)
    path.write_text(text)


@pytest.mark.usefixtures("_patched")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace(",bad", ",x").replace(",good", ",bad").replace(",x", ",good"), "train examples"),
        (lambda text: text.replace(",bad", ",worse"), "train examples, dev examples, classes"),
        (lambda text: text.replace(",bad", ",zad"), "train examples, dev examples, classes"),
        (lambda text: text.replace("film", "movie"), "train examples, dev examples"),
    ],
    ids=["swapped", "renamed", "renamed, in another order", "a word"],
)
def test_other_classes_are_refused(call, monkeypatch, change, said):
    pytest.importorskip("tokenizers")
    texts = [f"{a} {b} {c},{a}\n" for c in "abcdefgh" for a in ("good", "bad") for b in ("film", "book")]
    Path("train.csv").write_text("text,label\n" + "".join(texts[:24]))
    Path("dev.csv").write_text("text,label\n" + "".join(texts[24:]))
    options = {"task": "classify", "train": "train.csv", "dev": "dev.csv", **SMALL, "steps": STEPS}
    cut(train_sft, options, call, monkeypatch)
    for name in ("train.csv", "dev.csv"):
        header, _, rest = Path(name).read_text().partition("\n")
        Path(name).write_text(f"{header}\n{change(rest)}")
    code, _, err = call(train_sft, resume="cut")
    assert code == 2
    assert re.fullmatch(f"error: cut cannot go on, .*: {said}(, dev examples)?; put it back, or .*\n", err)


def other_symbols(content):
    fields = json.loads(content)
    fields["symbols"][0], fields["symbols"][1] = fields["symbols"][1], fields["symbols"][0]
    return json.dumps(fields).encode()


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "args.json"])
@pytest.mark.parametrize("spoil", ["lost", "cut", "zeros", "other"])
def test_other_files_are_refused(interrupted, call, name, spoil):
    script, _, run = interrupted
    path = run / name
    content = path.read_bytes()
    other = {"tokenizer.json": other_symbols, "config.json": lambda x: x.replace(b"gelu-erf", b"gelu")}
    change = other.get(name, lambda x: x.replace(b'"seed": 0', b'"seed": 1'))
    spoiled = {"cut": content[: len(content) // 2], "zeros": bytes(len(content)), "other": change(content)}
    path.unlink() if spoil == "lost" else path.write_bytes(spoiled[spoil])
    assert name in refused(call, script, run)
    path.write_bytes(content)


def test_with_its_data_and_files_back_it_goes_on(interrupted, training, call):
    script, folder, run = interrupted
    lines = (folder / "train.txt").read_text()
    (folder / "train.txt").write_text(";;; the same words\n" + lines)
    code, _, err = call(script, resume=run)
    assert code == 0, err
    assert_equal_runs(training[2], run)


@pytest.mark.usefixtures("_patched")
def test_what_is_good_enough_stays_so(words, call, monkeypatch):
    """--until was reached and the end was being scored: no step is taken any more."""
    monkeypatch.setattr(train_sft, "UNTIL_EVERY", 3)
    monkeypatch.setattr(Pronounce, "reward", lambda self, examples, _: {"made up": [0.75] * len(examples)})
    options = {**words, **SMALL, "steps": STEPS, "until": 0.75}
    assert call(train_sft, **options, out="whole")[0] == 0
    assert scripts.steps_of(Path("whole")) == [1, 2, 3]
    with monkeypatch.context() as patch:
        patch.setattr(held_out, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert call(train_sft, **options, out="cut")[0] == 130
    assert call(train_sft, resume="cut")[0] == 0
    assert weights("whole").keys() == weights("cut").keys()
    assert all(torch.equal(weights("whole")[name], w) for name, w in weights("cut").items())
    assert scripts.steps_of(Path("cut")) == [1, 2, 3]


# ---- a disk that is full, a terminal that is gone --------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_a_disk_that_is_full_when_a_checkpoint_is_written(training, call, monkeypatch, number):
    """The run goes on from the one before; without one, the same command begins anew."""
    script, options, whole = training
    real, saves = minillm.files.save_file, []

    def save_file(tensors, path, *rest):
        saves.append("checkpoint" in path.name)
        real(tensors, path, *rest)
        if sum(saves) == number and saves[-1]:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(minillm.files, "save_file", save_file)
        patch.setattr(minillm.session, "SAVE_SECONDS", 0.0)
        code, _, err = call(script, **options, out="cut")
    assert (code, err) == (2, "error: cannot write cut/checkpoint.safetensors: No space left on device\n")
    assert Path("cut").exists() == (number > 1)
    code, _, err = call(script, **({**options, "out": "cut"} if number == 1 else {"resume": "cut"}))
    assert code == 0, err
    assert_equal_runs(whole, "cut")


def test_a_terminal_that_closes(tmp_path, words):
    """It says so by SIGHUP, and nothing can be written to it any more: the run is saved."""
    pty = pytest.importorskip("pty")
    options = scripts.command_line(**words, **SMALL, steps=500, out="cut")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, str(scripts.ROOT / "train_sft.py"), *options], scripts.environment())
    log, deadline = tmp_path / "cut" / "log.jsonl", time.monotonic() + 60
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    saved = read_state(tmp_path / "cut" / "checkpoint.safetensors")["progress"]["step"]
    assert saved == len(scripts.steps_of(tmp_path / "cut")) > 0
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == [
        "args.json",
        "checkpoint.safetensors",
        "config.json",
        "log.jsonl",
        "tokenizer.json",
    ]


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
