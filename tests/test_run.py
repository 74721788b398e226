"""Run folders: what is saved comes back, bit for bit, and nothing is lost or mistaken."""

import json
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import bert_config, gpt, gpt_config, packed, sequences

from minillm import cli, optim
from minillm.errors import UserError
from minillm.files import write_json
from minillm.gpt import GPT
from minillm.heads import SequenceClassifier
from minillm.run import Run, resumed, weights_of
from minillm.tasks import Arithmetic
from minillm.tokenizer import SymbolTokenizer

TOKENIZER = SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789+=")


@dataclass(frozen=True)
class Args:
    out: Path | None = cli.option(None, "")
    resume: Path | None = cli.option(None, "")
    init: Path | None = cli.option(None, "")
    train: Path | None = cli.option(None, "")
    dev: Path | None = cli.option(None, "")
    test: Path | None = cli.option(None, "")
    lr: float = cli.option(0.1, "")


@pytest.fixture
def run(tmp_path):
    """An unfinished run with a model in it."""
    run = Run.create(tmp_path / "run", "unused")
    model = gpt().float()
    run.describe(model, TOKENIZER, Args(out=run.folder, train=Path("words.txt"), lr=0.25))
    run.save_model(model)
    return run


# ---- folders -------------------------------------------------------------------------------------


def test_default_names_are_counted_up(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [Run.create(None, "task-sft").folder for _ in range(3)]
    assert folders == [Path("runs/task-sft"), Path("runs/task-sft-2"), Path("runs/task-sft-3")]
    assert all(folder.is_dir() for folder in folders)


def test_a_name_may_be_new_or_an_empty_folder(tmp_path):
    assert Run.create(tmp_path / "a" / "b", "").folder.is_dir()
    assert Run.create(tmp_path / "a" / "b", "").folder.is_dir()


def test_nothing_is_overwritten(tmp_path, run):
    def refused(folder, sentence):
        with pytest.raises(UserError, match=sentence):
            Run.create(folder, "")

    run.save_checkpoint(gpt(), [], {})
    refused(run.folder, "holds an unfinished run; go on with --resume")
    run.finish({"dev_wer": 0.5})
    refused(run.folder, "already holds a finished run")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file")
    refused(tmp_path / "file" / "below", "cannot make the folder .*Not a directory")
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
    run, model = Run.create(tmp_path / "run", ""), gpt(**choices).float()
    run.describe(model, TOKENIZER, Args())
    run.save_model(model)
    loaded = Run.open(run.folder).load_model()
    assert loaded.config == model.config
    assert run.tokenizer().symbols == TOKENIZER.symbols
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
            run.load_model()
        assert str(run.folder) in str(caught.value)


def test_a_checkpoint_of_another_shape_is_named(run):
    run.save_checkpoint(GPT(gpt_config(positions="learned")), [], {})
    with pytest.raises(UserError, match=r"checkpoint\.safetensors: 'positions\.weight' has shape \(16, 16\)"):
        run.load_checkpoint(GPT(gpt_config(positions="learned", max_seq_len=32)), [])


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
        run.load_model(Arithmetic(1, 0))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_other_symbols_is_refused(run):
    SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789-=").save(run.folder)
    with pytest.raises(UserError, match="other symbols than those of --task arithmetic"):
        run.load_model(Arithmetic(1, 0))


# ---- checkpoints ---------------------------------------------------------------------------------


def start(make):
    torch.manual_seed(1)
    model = gpt(dropout=0.3).float().train()
    return model, make(model)


def steps(model, optimizers, numbers):
    for i in numbers:
        optim.set_lr(optimizers, 1 / (1 + i))
        tokens, packing = packed(sequences((5, 3), seed=i))
        model.loss(model(tokens, packing), tokens).mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def muon(model):
    return optim.muon(model, lr=0.01, embedding_lr=0.005)


def adamw(model):
    return optim.adamw(model, lr=0.01)


@pytest.mark.parametrize("make", [muon, adamw])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(run, make):
    model, optimizers = start(make)
    steps(model, optimizers, range(3))
    progress = {"step": 3, "seconds": 1.25, "name": "x", "nothing": None}
    run.save_checkpoint(model, optimizers, progress)
    steps(model, optimizers, range(3, 6))
    end, dice = weights_of(model), torch.rand(3)

    other, others = start(make)
    steps(other, others, range(1))  # a state of its own, which must vanish
    torch.manual_seed(99)
    assert run.load_checkpoint(other, others) == progress
    steps(other, others, range(3, 6))
    assert all(torch.equal(end[name], w) for name, w in weights_of(other).items())
    assert torch.equal(torch.rand(3), dice)


@pytest.mark.parametrize("make", [muon, adamw])
def test_optimiser_state_comes_back_exactly(run, make):
    model, optimizers = start(make)
    steps(model, optimizers, range(2))
    run.save_checkpoint(model, optimizers, {})
    other, others = start(make)
    run.load_checkpoint(other, others)
    for one, two in zip(optimizers, others, strict=True):
        first, second = one.state_dict(), two.state_dict()
        assert first["state"].keys() == second["state"].keys()
        for i, state in first["state"].items():
            assert state.keys() == second["state"][i].keys()
            for name, value in state.items():
                torch.testing.assert_close(second["state"][i][name], value, rtol=0, atol=0)  # the dtype as well
        for a, b in zip(first["param_groups"], second["param_groups"], strict=True):
            assert a.keys() == b.keys()
            assert all(list(v) == list(b[k]) if isinstance(v, tuple) else v == b[k] for k, v in a.items())


@pytest.mark.parametrize("config", [gpt_config(tie_embeddings=False), bert_config()], ids=["gpt", "bert"])
def test_classifiers_go_on_too(run, config):
    first, second = (SequenceClassifier(config, ("no", "yes")) for _ in range(2))
    run.save_checkpoint(first, [], {})
    run.load_checkpoint(second, [])
    ours, theirs = weights_of(first), weights_of(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_is_its_own_memory(run):
    model, optimizers = start(adamw)
    steps(model, optimizers, range(1))
    run.save_checkpoint(model, optimizers, {})
    run.load_checkpoint(model, optimizers)
    first = weights_of(model)["tokens.weight"].clone()
    steps(model, optimizers, range(2))
    run.load_checkpoint(model, optimizers)
    assert torch.equal(weights_of(model)["tokens.weight"], first)


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_a_spoiled_checkpoint_is_named(run, content):
    run.save_checkpoint(gpt(), [], {})
    overwrite("checkpoint.safetensors", content)(run)
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        run.load_checkpoint(gpt(), [])


def test_weights_alone_are_no_checkpoint(run):
    save_file({f"model.{name}": w.clone() for name, w in weights_of(gpt()).items()}, run.path("checkpoint.safetensors"))
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        run.load_checkpoint(gpt(), [])


def test_a_checkpoint_of_other_optimisers_is_refused(run):
    model, optimizers = start(adamw)
    run.save_checkpoint(model, optimizers, {})
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        run.load_checkpoint(model, muon(model))


@contextmanager
def full_disk():
    """No file may grow beyond 1,000 bytes: writing fails as on a full disk. Not for long: pytest writes, too."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_leaves_the_old_file(run):
    model = gpt().float()
    run.save_checkpoint(model, [], {"step": 1})
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*checkpoint\.safetensors: .*File too large"):
        run.save_checkpoint(model, [], {"step": 2})
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*metrics\.json: File too large"):
        run.finish({"long": "x" * 2000})
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*log\.jsonl: File too large"):
        run.log(step=1, long="x" * 2000)
    assert run.load_checkpoint(model, []) == {"step": 1}
    assert not list(run.folder.glob("*.partial"))


def test_a_log_that_cannot_be_cut_stays_whole(run):
    for step in range(100):
        run.log(step=step, loss=1.0)
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*log\.jsonl: File too large"):
        run.cut_log(50)
    assert len(run.read_log()) == 100


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*config\.json: Not a directory"):
        write_json(tmp_path / "file" / "config.json", {})


def test_nothing_but_the_named_files_is_left(run):
    run.save_checkpoint(gpt(), [], {})
    run.log(step=1, loss=2.0)
    run.finish({})
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "args.json",
        "checkpoint.safetensors",
        "config.json",
        "log.jsonl",
        "metrics.json",
        "model.safetensors",
        "tokenizer.json",
    ]


# ---- log and metrics -----------------------------------------------------------------------------


def test_the_log_is_cut_at_a_checkpoint(run):
    for step in range(1, 6):
        run.log(step=step, loss=step / 3)
    run.log(step=4, dev_wer=0.5)
    run.cut_log(3)
    assert run.read_log() == [{"step": step, "loss": step / 3} for step in (1, 2, 3)]


def test_a_run_without_a_log_can_be_cut(run):
    """It was interrupted before its first step."""
    run.cut_log(0)
    assert not run.path("log.jsonl").exists() or run.read_log() == []


def test_a_torn_last_line_of_the_log_is_cut(run):
    """A machine that went down while writing."""
    run.log(step=1, loss=1.0)
    with run.path("log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run.cut_log(1)
    assert run.read_log() == [{"step": 1, "loss": 1.0}]


def test_metrics_are_one_flat_object(run):
    assert not run.is_finished
    run.finish({"dev_wer": 0.5, "steps": 3})
    assert run.is_finished
    assert json.loads(run.path("metrics.json").read_text()) == {"dev_wer": 0.5, "steps": 3}


# ---- options of an interrupted run ---------------------------------------------------------------


def test_options_come_back(run):
    args = resumed(Args(resume=run.folder, lr=9.0))
    assert args == Args(out=run.folder, train=Path("words.txt"), lr=0.25, resume=run.folder)


def test_a_finished_run_is_not_resumed(run):
    run.finish({})
    with pytest.raises(UserError, match="is finished; to train its model further use --init"):
        resumed(Args(resume=run.folder))


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}"])
def test_spoiled_options_are_named(run, content):
    overwrite("args.json", content)(run)
    with pytest.raises(UserError, match=r"args\.json|another script"):
        resumed(Args(resume=run.folder))


def test_a_run_of_another_script_is_refused(run):
    saved = json.loads(run.path("args.json").read_text())
    run.path("args.json").write_text(json.dumps(saved | {"samples": 4}))
    with pytest.raises(UserError, match="another script"):
        resumed(Args(resume=run.folder))
