"""Run folders: what is saved comes back, bit for bit, and nothing is lost or mistaken."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_state import full_disk
from tiny import gpt, packed, sequences

import train_sft
from minillm import state
from minillm.errors import UserError
from minillm.files import write_json, write_tensors
from minillm.published import checkpoint
from minillm.published.subwords import learn_wordpiece, letters_of_bytes
from minillm.published.vocabularies import load_tokenizer
from minillm.run import BEST, CHECKPOINT, LOCK, START, Run, options_of
from minillm.start import open_start
from minillm.state import weights_of
from minillm.tasks.arithmetic import Arithmetic, Options
from minillm.tokenizer import SymbolTokenizer

TOKENIZER = SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789+=")
OPTIONS = {"script": "sft", "task": "arithmetic", "out": Path("somewhere"), "lr": 0.25, "examples": 5, "init": None}


@pytest.fixture
def run(tmp_path):
    """An unfinished run with a model in it."""
    with Run.create(tmp_path / "run", "unused") as run:
        model = gpt().float()
        run.describe(model, TOKENIZER, OPTIONS)
        run.save_model(model)
        state.save(run.path(CHECKPOINT), model, [], {})
    return run


# ---- folders -------------------------------------------------------------------------------------


def test_default_names_are_counted_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [Run.create(None, "task-sft") for _ in range(3)]
    folders = [run.folder for run in runs]
    assert folders == [Path("runs/task-sft"), Path("runs/task-sft-2"), Path("runs/task-sft-3")]
    assert all(folder.is_dir() for folder in folders)


def test_a_name_may_be_new_or_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "b", tmp_path / "empty"):
        with Run.create(folder, "") as run:
            assert run.folder.is_dir()


def at_once(work, count=8):
    """What each of some threads, which begin together, returned or raised."""
    barrier = threading.Barrier(count)

    def one(_):
        barrier.wait()
        try:
            return work()
        except UserError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_of_starts_at_one_instant_each_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = at_once(lambda: Run.create(None, "task-sft"))
    assert len({run.folder for run in runs}) == 8
    assert {run.folder for run in runs} == {Path("runs/task-sft"), *(Path(f"runs/task-sft-{n}") for n in range(2, 9))}


def test_of_starts_with_one_name_at_one_instant_one_wins(tmp_path):
    found = at_once(lambda: Run.create(tmp_path / "a" / "run", ""))
    assert sum(isinstance(each, Run) for each in found) == 1
    errors = [str(each) for each in found if not isinstance(each, Run)]
    assert set(errors) == {
        f"--out {tmp_path}/a/run is where another process begins a run; name another folder",
    }


def test_of_two_that_go_on_with_a_run_one_does(run):
    found = at_once(lambda: Run.open(run.folder).__enter__())
    assert sum(isinstance(each, Run) for each in found) == 1
    errors = {str(each) for each in found if not isinstance(each, Run)}
    assert errors == {f"another process is at work in {run.folder}; wait for it or stop it"}


def test_one_goes_on_when_the_other_has_left(run):
    with Run.open(run.folder):
        assert run.path(LOCK).exists()
        with pytest.raises(UserError, match="another process is at work"), Run.open(run.folder):
            pass
    assert not run.path(LOCK).exists()
    with pytest.raises(ZeroDivisionError), Run.open(run.folder):
        raise ZeroDivisionError
    with Run.open(run.folder):
        pass


# ---- beginnings ----------------------------------------------------------------------------------


@pytest.fixture
def beginning(tmp_path):
    """What a process has left that was killed before its first checkpoint."""
    folder = tmp_path / "begun"
    folder.mkdir()
    for name in (LOCK, "config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "checkpoint.safetensors.0123abcd.partial").mkdir()
    (folder / "checkpoint.safetensors.0123abcd.partial" / ".tmpABCDEF").write_text("half")
    return folder


def test_what_came_to_nothing_is_begun_anew(beginning):
    with pytest.raises(UserError, match="was interrupted before its first checkpoint; start it with the same command"):
        Run.open(beginning).__enter__()
    with Run.create(beginning, "") as run:
        assert [path.name for path in beginning.iterdir()] == [LOCK]  # nothing of it gets mixed with the new one
        state.save(run.path(CHECKPOINT), gpt(), [], {})
    assert [path.name for path in beginning.iterdir()] == [CHECKPOINT]


def test_a_beginning_is_begun_anew_under_its_default_name(tmp_path, beginning, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    beginning.rename(tmp_path / "runs" / "x")
    assert Run.create(None, "x").folder == Path("runs/x")


@pytest.mark.parametrize("name", ["log.jsonl", "model.safetensors", "notes.txt", "my config.json", "folder", BEST])
def test_a_folder_with_anything_else_in_it_is_no_beginning(beginning, name):
    (beginning / name).mkdir() if name == "folder" else (beginning / name).write_text("mine")
    before = sorted(beginning.iterdir())
    with pytest.raises(UserError, match="is not empty and not a run"):
        Run.create(beginning, "")
    assert sorted(beginning.iterdir()) == before


@pytest.mark.parametrize("names", [["config.json", "tokenizer.json"], ["args.json"], ["notes.txt"], [".hidden"]])
def test_somebody_elses_files_are_no_beginning(tmp_path, names):
    """A vocabulary that was downloaded, for one: there is no lock of ours beside it."""
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="is not empty and not a run"):
        Run.create(tmp_path, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_every_file_of_a_beginning_is_known(tmp_path):
    """Whatever its tokenizer is made of."""
    pytest.importorskip("tokenizers")
    byte_pairs = tmp_path / "gpt2"
    byte_pairs.mkdir()
    ids = {token: i for i, token in enumerate([*letters_of_bytes(), "<|endoftext|>"])}
    (byte_pairs / "vocab.json").write_text(json.dumps(ids))
    (byte_pairs / "merges.txt").write_text("#version: 0.2\n")
    tokenizers = [TOKENIZER, learn_wordpiece(["a film", "a book"], 100), load_tokenizer(byte_pairs)]
    for number, tokenizer in enumerate(tokenizers):
        with Run.create(tmp_path / f"run-{number}", "") as run:
            run.describe(gpt().float(), tokenizer, OPTIONS)
            write_tensors(run.path(START), {}, {})
            assert run.is_beginning, sorted(run.folder.iterdir())
    assert not list(tmp_path.glob("run-*"))


def test_of_a_run_that_came_to_nothing_nothing_is_left(tmp_path):
    with Run.create(tmp_path / "a" / "b" / "c", "") as run:
        run.describe(gpt().float(), TOKENIZER, OPTIONS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ZeroDivisionError), Run.create(tmp_path / "a", ""):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with Run.create(tmp_path / "mine", ""):
        pass
    assert not list((tmp_path / "mine").iterdir())  # the folder was there before
    with Run.create(tmp_path / "a", "") as run:
        run.path("notes.txt").write_text("mine")
    assert {path.name for path in run.folder.iterdir()} == {"notes.txt"}


def test_what_processes_that_died_have_left_goes(run):
    run.path("checkpoint.safetensors.89abcdef.partial").mkdir()
    run.path("checkpoint.safetensors.89abcdef.partial/checkpoint.safetensors").write_text("half")
    with Run.open(run.folder):
        assert not list(run.folder.glob("*.partial"))
    write_json(run.path("metrics.json"), {})  # and then it died
    with Run.open(run.folder):
        assert not run.path(CHECKPOINT).exists()


def test_nothing_is_overwritten(tmp_path, run):
    def refused(folder, sentence):
        with pytest.raises(UserError, match=sentence):
            Run.create(folder, "")

    refused(run.folder, "holds an unfinished run; go on with --resume")
    run.finish({"dev_wer": 0.5})
    assert not run.path(CHECKPOINT).exists()
    refused(run.folder, "already holds a finished run")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file")
    refused(tmp_path / "file" / "below", "cannot make the folder .*Not a directory")
    folder = tmp_path / "with blanks"
    run.folder.rename(folder)
    refused(folder, "already holds a finished run")
    folder.joinpath("metrics.json").unlink()
    folder.joinpath(CHECKPOINT).write_text("")
    refused(folder, f"go on with --resume '{folder}'")
    refused(tmp_path, "is not empty and not a run")


def test_only_runs_are_opened(tmp_path, run):
    assert Run.open(run.folder).folder == run.folder
    with pytest.raises(UserError, match=r"there is no run folder .*nowhere"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not a run: it has no config\.json"):
        Run.open(tmp_path)
    with pytest.raises(UserError, match="there is no run folder"):
        Run.open(run.path("config.json"))
    run.path("tokenizer.json").unlink()  # other tokenizers are other files
    assert Run.open(run.folder).folder == run.folder
    run.path("args.json").unlink()
    with pytest.raises(UserError, match=r"is not a run: it has no args\.json"):
        Run.open(run.folder)


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "choices", [{}, {"tie_embeddings": False}, {"bias": True, "positions": "learned", "mlp": "swiglu"}], ids=str
)
def test_a_model_comes_back_bit_for_bit(tmp_path, choices):
    with Run.create(tmp_path / "run", "") as run:
        model = gpt(**choices).float()
        run.describe(model, TOKENIZER, OPTIONS)
        run.save_model(model)
    loaded = checkpoint.load(run.folder)
    assert loaded.config == model.config
    assert load_tokenizer(run.folder).symbols == TOKENIZER.symbols
    ours, theirs = weights_of(model), weights_of(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (loaded.output.weight is loaded.tokens.weight) == model.config.tie_embeddings
    batch = packed(sequences((5, 3)))
    assert torch.equal(model(*batch), loaded.eval()(*batch))


def test_weights_are_plain_safetensors(run):
    assert load_file(run.path("model.safetensors")).keys() == weights_of(gpt()).keys()


def change(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


def test_tensors_that_do_not_fit_are_named(run):
    path = run.path("model.safetensors")
    for edit, sentence in (
        (lambda t: t.update({"extra.weight": torch.ones(2)}), "holds 'extra.weight', which this architecture does not"),
        (lambda t: t.pop("extra.weight") is None or t.pop("final_norm.weight"), "lacks 'final_norm.weight'"),
        (lambda t: t.update({"final_norm.weight": torch.ones(3)}), r"'final_norm.weight' has shape \(3,\).*\(16,\)"),
    ):
        change(path, edit)
        with pytest.raises(UserError, match=sentence) as caught:
            checkpoint.load(run.folder)
        assert str(run.folder) in str(caught.value)


def overwrite(name, content):
    def spoil(run):
        if content is None:
            run.path(name).unlink()
        else:
            run.path(name).write_bytes(content)

    return spoil


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", None),
        ("model.safetensors", b""),
        ("model.safetensors", b"not safe tensors at all"),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"architecture": "BERT", "vocab_size": 11}'),
        ("config.json", b'{"architecture": "GPT", "vocab_size": 11}'),
        ("config.json", b'{"architecture": "GPT", "vocab_size": 11, "max_seq_len": 8, "colour": 1}'),
        ("config.json", b'{"architecture": "GPT", "vocab_size": -1, "max_seq_len": 8}'),
        ("config.json", b'{"architecture": "GPT", "vocab_size": "11", "max_seq_len": 8}'),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"name": "x"}'),
        ("tokenizer.json", b"\xff\xfe"),
    ],
)
def test_spoiled_files_are_named(run, name, content):
    overwrite(name, content)(run)
    with pytest.raises(UserError) as caught:
        open_start(run.folder, Arithmetic(Options(1), 0))
    assert (name if content is not None else f"{run.folder} is not finished") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_other_symbols_is_refused(run):
    SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789-=").save(run.folder)
    task = Arithmetic(Options(1), 0)
    model, tokenizer = open_start(run.folder, task)
    with pytest.raises(UserError, match=r"does not know what --task arithmetic is written in: .*'\+'"):
        task.adapt(model, tokenizer)


# ---- what cannot be written ------------------------------------------------------------------------


def test_what_cannot_be_written_leaves_nothing_behind(run):
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*metrics\.json: File too large"):
        run.finish({"long": "x" * 2000})
    assert not run.is_finished
    assert not list(run.folder.glob("*.partial"))


def test_a_log_that_cannot_be_cut_stays_whole(run):
    write_log(run, [{"step": step, "loss": 1.0} for step in range(100)])
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*log\.jsonl: File too large"):
        run.cut_log(90)
    assert len(run.read_log()) == 100


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*config\.json: Not a directory"):
        write_json(tmp_path / "file" / "config.json", {})


def test_nothing_but_the_named_files_is_left(run):
    write_log(run, [{"step": 1, "loss": 2.0}])
    run.finish({})
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "args.json",
        "config.json",
        "log.jsonl",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
    ]


# ---- log and metrics -----------------------------------------------------------------------------


def write_log(run, records):
    with run.open_log() as file:
        file.writelines(json.dumps({"seconds": 0.5, **record}) + "\n" for record in records)


def read_log(run):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in run.read_log()]


def test_the_log_is_cut_at_a_checkpoint(run):
    write_log(run, [{"step": step, "loss": step / 3} for step in (1, 2, 3)] + [{"step": 3, "dev_wer": 0.5}])
    assert run.cut_log(3) == 3  # also between two records of one step
    assert read_log(run) == [{"step": step, "loss": step / 3} for step in (1, 2, 3)]
    write_log(run, [{"step": 4, "loss": 9.0}])
    assert [record["step"] for record in run.read_log()] == [1, 2, 3, 4]


def test_a_line_of_the_log_is_there_as_soon_as_it_is_written(run):
    file = run.open_log()
    file.write('{"step": 1, "seconds": 0.5, "loss": 1.0}\n')
    assert read_log(run) == [{"step": 1, "loss": 1.0}]
    file.close()


def test_a_run_without_a_log_can_be_cut(run):
    """It was interrupted before its first step."""
    assert run.read_log() == []
    assert run.cut_log(0) == 0
    assert run.read_log() == []


def test_a_torn_last_line_of_the_log_is_cut(run):
    """A machine that went down while writing."""
    write_log(run, [{"step": 1, "loss": 1.0}])
    with run.path("log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert read_log(run) == [{"step": 1, "loss": 1.0}]
    assert run.cut_log(1) == 1
    write_log(run, [{"step": 2, "loss": 3.0}])
    assert read_log(run) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 3.0}]


@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 300,
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
        b"null",
        b"[1, 2]",
        b'"step"',
        b'{"step": 2, "sec',
        b'{"loss": 1.0, "seconds": 1.0}',
        b'{"step": 2}',
        b'{"step": "2", "seconds": 1.0}',
        b'{"step": 2, "seconds": null}',
        b"\r",
    ],
    ids=lambda line: repr(line[:12]),
)
def test_a_spoiled_line_of_the_log_is_left_out_and_counted(run, line):
    records = [{"step": step, "loss": 1.0} for step in (1, 2, 3)]
    write_log(run, records)
    lines = run.path("log.jsonl").read_bytes().splitlines(keepends=True)
    run.path("log.jsonl").write_bytes(lines[0] + line + b"\n" + lines[2] + lines[2])
    assert run.cut_log(3) == 2
    assert read_log(run) == [records[0], records[2]]


def test_metrics_are_one_flat_object(run):
    assert not run.is_finished
    run.finish({"dev_wer": 0.5, "steps": 3})
    assert run.is_finished
    assert json.loads(run.path("metrics.json").read_text()) == {"dev_wer": 0.5, "steps": 3}


def test_options_are_those_of_the_script_and_of_its_task(run):
    """Paths as texts, all in one object."""
    assert run.options() == {**OPTIONS, "out": "somewhere"}  # which there is not, as there is no id of the hub
    options = options_of(train_sft.Args(task="arithmetic", steps=3, options=Options(7)))
    assert (options["task"], options["steps"], options["examples"]) == ("arithmetic", 3, 7)
    assert "options" not in options


def test_paths_lead_there_from_any_folder(tmp_path, monkeypatch, run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("")
    options = {"train": Path("words.txt"), "init": Path("owner/name"), "dev": None, "lr": 0.5}
    run.describe(gpt().float(), TOKENIZER, options)
    assert run.options() == {"train": str(tmp_path / "words.txt"), "init": "owner/name", "dev": None, "lr": 0.5}
