"""Every mistake of a user ends in one sentence that names the thing, exit code 2, and nothing overwritten."""

import json
import re
from pathlib import Path

import pytest
import scripts
import torch
from scripts import FEW, SMALL

import minillm.curves
import minillm.tasks.arithmetic as arithmetic
import train_rl
import train_sft


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)  # as for a user
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        patch.setattr(arithmetic, "HELD_OUT", 30)
        yield


@pytest.fixture(scope="module")
def there(tmp_path_factory, patched):
    """What the wrong options name: word files, finished and unfinished runs."""
    folder = tmp_path_factory.mktemp("there")
    files = scripts.write_words(folder)
    assert scripts.main(train_sft, **files, **SMALL, steps=1, out=folder / "done") == 0
    arithmetic_run = {"task": "arithmetic", "examples": 20, "out": folder / "sums"}
    assert scripts.main(train_sft, **arithmetic_run, **SMALL, steps=1) == 0
    for name in ("cut", "other-shape", "old"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_sft, "fit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            assert scripts.main(train_sft, **files, **SMALL, steps=1, out=folder / name) == 130
    old = json.loads((folder / "old" / "args.json").read_text())
    of_all_tasks = dict.fromkeys(("fields", "model", "examples", "symbols"))
    (folder / "old" / "args.json").write_text(
        json.dumps({k: v for k, v in old.items() if k != "script"} | of_all_tasks)
    )
    shape = json.loads((folder / "other-shape" / "config.json").read_text())
    (folder / "other-shape" / "config.json").write_text(json.dumps(shape | {"mlp_width": 80}))
    (folder / "empty.txt").write_text("\n")
    (folder / "one.txt").write_text("CAT  K AE T\n")
    (folder / "line.txt").write_text("CAT  K AE T\nOWL\n")
    (folder / "symbol.txt").write_text("CAT  K XX T\n")
    (folder / "letter.txt").write_text("CÄT  K AE T\n")
    (folder / "good.jsonl").write_text('{"text": "good", "label": 1}\n{"text": "bad", "label": 0}\n')
    (folder / "new.jsonl").write_text('{"text": "new", "label": 1}\n')
    (folder / "strange.jsonl").write_text('{"text": "new", "label": 1}\n{"text": "odd", "label": 7}\n')
    (folder / "broken.jsonl").write_text('{"text": "good", "label": 1}\n{"text": \n')
    (folder / "quote.csv").write_text('text,label\nfine,1\n"never closed,0\n')
    (folder / "notes").mkdir()
    (folder / "notes" / "note.txt").write_text("mine")
    return folder


@pytest.fixture
def refused(there, tmp_path, monkeypatch, capsys):
    """Run a script with options in which HERE stands for the folder above; what it says must match."""
    monkeypatch.chdir(tmp_path)

    def refused(script, sentence, options):
        capsys.readouterr()
        before = contents(there)
        options = {k: str(v).replace("HERE", str(there)) for k, v in options.items() if v is not None}
        code = scripts.main(script, **options)
        err = capsys.readouterr().err
        assert code == 2, err
        assert "Traceback" not in err
        assert re.search(sentence.replace("HERE", re.escape(str(there))), err), err
        assert len(err.splitlines()) == 1, err
        assert contents(there) == before
        assert not list(Path("runs").glob("*")), "a run folder was left behind"

    return refused


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WORDS = {"train": "HERE/train.txt", "dev": "HERE/dev.txt"}
FEW_STEPS = {**SMALL, "steps": 1}

SFT = {
    "missing file": ({"train": "HERE/no.txt"}, r"cannot read HERE/no\.txt: No such file"),
    "a folder as file": ({"train": "HERE/notes"}, "cannot read HERE/notes: Is a directory"),
    "empty file": ({"train": "HERE/empty.txt"}, r"HERE/empty\.txt holds no words"),
    "wrong line": ({"train": "HERE/line.txt"}, r"HERE/line\.txt:2: expected"),
    "unknown phoneme": ({"train": "HERE/symbol.txt"}, r"HERE/symbol\.txt:1: the phoneme 'XX' of 'cat'"),
    "unknown letter": ({"dev": "HERE/letter.txt"}, r"HERE/letter\.txt:1: the letter 'ä' of 'cät'"),
    "empty dev file": ({"dev": "HERE/empty.txt"}, r"HERE/empty\.txt holds no words"),
    "dev without train": ({"train": None}, "learns from your own examples: give --train FILE"),
    "no word left for dev": ({"train": "HERE/one.txt", "dev": None}, "--dev"),
    "files for arithmetic": (
        {"task": "arithmetic"},
        "--train is for --task pronounce, lm, .* or preference, not for arithmetic",
    ),
    "unknown task": ({"task": "spelling"}, "--task.*'spelling'"),
    "negative minutes": ({"steps": None, "minutes": -1}, r"--minutes -1\.0 must be positive"),
    "no minutes": ({"steps": None, "minutes": 0}, r"--minutes 0\.0 must be positive"),
    "minutes that are no number": ({"steps": None, "minutes": "nan"}, "--minutes nan must be positive"),
    "minutes in words": ({"steps": None, "minutes": "two"}, "--minutes.*'two'"),
    "negative steps": ({"steps": -3}, "--steps -3 must be positive"),
    "two budgets": ({"minutes": 1}, "--minutes and --steps exclude each other"),
    "three budgets": ({"minutes": 1, "epochs": 2}, "--minutes and --steps and --epochs exclude each other"),
    "negative epochs": ({"steps": None, "epochs": -1}, r"--epochs -1\.0 must be positive"),
    "two sizes of a step": ({"batch_examples": 4}, "--batch-tokens and --batch-examples exclude each other"),
    "no examples in a step": ({"batch_tokens": None, "batch_examples": 0}, "--batch-examples 0 must be positive"),
    "no pieces": ({"micro_tokens": 0}, "--micro-tokens 0 must be positive"),
    "unknown optimizer": ({"optimizer": "sgd"}, "--optimizer.*'sgd'"),
    "unknown model to keep": ({"keep": "first"}, "--keep.*'first'"),
    "good enough at nothing": ({"until": 0}, r"--until 0\.0 must be positive"),
    "no evaluations": ({"evaluations": 0}, "--evaluations 0 must be positive"),
    "no batch": ({"batch_tokens": 0}, "--batch-tokens 0 must be positive"),
    "negative rate": ({"lr": -0.1}, r"--lr -0\.1 must be positive"),
    "negative width": ({"width": -16}, "--width -16 must be positive"),
    "heads that do not divide": ({"heads": 3}, "width=16 .*num_heads=3"),
    "odd head": ({"width": 18, "heads": 6}, "even head_dim"),
    "too much dropout": ({"dropout": 1.5}, r"--dropout 1\.5"),
    "negative dropout": ({"dropout": -0.5}, r"--dropout -0\.5"),
    "negative seed": ({"seed": -1}, "--seed -1"),
    "no examples": (
        {"task": "arithmetic", "train": None, "dev": None, "examples": 0},
        "--examples 0 must be at least 1",
    ),
    "unknown precision": ({"precision": "fp8"}, "--precision.*'fp8'"),
    "triton without a GPU": ({"kernels": "triton"}, "--kernels triton.*Triton"),
    "out is finished": ({"out": "HERE/done"}, "--out HERE/done already holds a finished run"),
    "out is unfinished": ({"out": "HERE/cut"}, "--out HERE/cut holds an unfinished run"),
    "out is a file": ({"out": "HERE/train.txt"}, r"--out HERE/train\.txt is a file"),
    "out is below a file": ({"out": "HERE/train.txt/run"}, "cannot make the folder --out"),
    "out is somebody's folder": ({"out": "HERE/notes"}, "--out HERE/notes is not empty and not a run"),
    "init is nothing": ({"init": "HERE/nothing"}, r"there is no folder or \.gguf file HERE/nothing"),
    "init is no run": ({"init": "HERE/notes"}, r"HERE/notes holds no model: it has no config\.json"),
    "init has no model": ({"init": "HERE/cut"}, "HERE/cut is not finished; go on with --resume HERE/cut first"),
    "init of another task": ({"init": "HERE/sums"}, "--init HERE/sums: this model does not know what --task pronounce"),
    "shape with init": (
        {"init": "HERE/done", "width": 16},
        "--width is for a model from scratch, but --init HERE/done",
    ),
    "too much dropout with init": ({"init": "HERE/done", "dropout": 1.5}, r"--dropout 1\.5"),
    "kind of another task": ({"model": "gpt"}, "--model is for --task classify, .* or preference, not for pronounce"),
    "fields of another task": ({"fields": "text=a"}, "--fields is for --task lm, .* or preference, not for pronounce"),
    "examples of another task": (
        {"examples": 5},
        "--examples is for --task arithmetic, .* or guess, not for pronounce",
    ),
    "warmup without end": ({"warmup": 1}, r"--warmup 1\.0 must be a share of the training, from 0 to below 1"),
    "resume nothing": ({"resume": "HERE/nothing"}, "there is no run folder HERE/nothing"),
    "resume no run": ({"resume": "HERE/notes"}, "HERE/notes is not a run"),
    "resume what is finished": ({"resume": "HERE/done"}, "HERE/done is finished"),
    "resume another shape": ({"resume": "HERE/other-shape"}, r"other-shape cannot go on, .* changed .*: config\.json;"),
    "resume a run of old": ({"resume": "HERE/old"}, r"HERE/old: args\.json is of another version of this program"),
    "init is a run of old": ({"init": "HERE/old"}, "HERE/old is not finished; go on with --resume HERE/old first"),
}

LABELS = {"task": "classify", "train": "HERE/good.jsonl", "dev": "HERE/new.jsonl"}

CLASSIFY = {
    "no files": ({"train": None, "dev": None}, "--task classify .* give --train FILE"),
    "missing file": ({"train": "HERE/no.jsonl"}, r"cannot read HERE/no\.jsonl: No such file"),
    "other format": ({"train": "HERE/train.txt"}, r"HERE/train\.txt is none of \.jsonl .*, \.csv or \.tsv"),
    "broken line": ({"train": "HERE/broken.jsonl"}, r"HERE/broken\.jsonl:2 is not JSON"),
    "open quote": ({"train": "HERE/quote.csv"}, r"HERE/quote\.csv:3: .*quoted"),
    "missing field": ({"fields": "label=stars"}, r"good\.jsonl:1 has no field 'stars', only 'text', 'label'"),
    "wrong fields": ({"fields": "review"}, "--fields review: expected text=NAME"),
    "fields the wrong way": ({"fields": "review=text"}, "expected text=NAME.*; the other way round: text=review"),
    "unseen label": ({"dev": "HERE/strange.jsonl"}, r"strange\.jsonl:2: no training example has the label '7'"),
    "one class": ({"train": "HERE/new.jsonl", "dev": "HERE/good.jsonl"}, r"new\.jsonl holds one class only, '1'"),
    "init is nothing": ({"init": "HERE/nothing"}, "there is no folder or .gguf file HERE/nothing"),
    "init holds no model": ({"init": "HERE/notes"}, r"HERE/notes holds no model: it has no config\.json"),
    "init reads no texts": (
        {"init": "HERE/sums"},
        "--init HERE/sums: this model .* not read such a text: the symbol 'g'",
    ),
    "shape with init": ({"init": "HERE/sums", "heads": 2}, "--heads is for a model from scratch, but --init HERE/sums"),
    "heads that do not divide": ({"heads": 3}, "width=16 .*num_heads=3"),
    "too much dropout": ({"dropout": 1.5}, r"--dropout 1\.5"),
    "symbols of another task": ({"symbols": "data"}, "--symbols is for --task pronounce, not for classify"),
    "kind with init": ({"init": "HERE/sums", "model": "gpt"}, "--model gpt is for a model from scratch, but --init"),
    "wrong kind": ({"model": "cnn"}, "--model.*'cnn'"),
    "negative warmup": ({"warmup": -1}, r"--warmup -1\.0 must be a share"),
    "out is finished": ({"out": "HERE/done"}, "--out HERE/done already holds a finished run"),
}

RL = {
    "symbols of another task": ({"task": "arithmetic", "symbols": "data"}, "--symbols is for --task pronounce, not"),
    "a task without rewards": ({"task": "regress"}, "--task.*'regress'"),
    "no start": ({"init": None}, "--task pronounce needs a model to start from"),
    "init is nothing": ({"init": "HERE/nothing"}, r"there is no folder or \.gguf file HERE/nothing"),
    "init is no run": ({"init": "HERE/notes"}, r"HERE/notes holds no model: it has no config\.json"),
    "init has no model": ({"init": "HERE/cut"}, "HERE/cut is not finished; go on with --resume HERE/cut first"),
    "init of another task": ({"init": "HERE/sums"}, "HERE/sums was trained on --task arithmetic"),
    "one sample": ({"samples": 1}, "--samples 1: .* at least 2"),
    "too many answers": ({"prompts": 2**17, "samples": 9}, "--prompts 131072 with --samples 9 are too many answers"),
    "no prompts": ({"prompts": 0}, "--prompts 0 must be positive"),
    "negative minutes": ({"minutes": -2}, r"--minutes -2\.0 must be positive"),
    "negative steps": ({"steps": -2}, "--steps -2 must be positive"),
    "negative rate": ({"lr": -1}, r"--lr -1\.0 must be positive"),
    "negative seed": ({"seed": -1}, "--seed -1"),
    "missing file": ({"dev": "HERE/no.txt"}, r"cannot read HERE/no\.txt: No such file"),
    "wrong line": ({"train": "HERE/line.txt"}, r"HERE/line\.txt:2: expected"),
    "triton without a GPU": ({"kernels": "triton"}, "--kernels triton.*Triton"),
    "out is finished": ({"out": "HERE/done"}, "--out HERE/done already holds a finished run"),
    "resume nothing": ({"resume": "HERE/nothing"}, "there is no run folder HERE/nothing"),
    "resume what is finished": ({"resume": "HERE/done"}, "HERE/done is finished"),
    "resume another script": ({"resume": "HERE/cut"}, "HERE/cut is a run of another script"),
}


def shaped(options):
    """A model that --init brings has a shape already, and a run that goes on has all options."""
    if "resume" in options:
        return dict.fromkeys((*FEW_STEPS, *WORDS))
    return FEW_STEPS | (dict.fromkeys(("layers", "width", "heads")) if "init" in options else {})


@pytest.mark.parametrize(("options", "sentence"), SFT.values(), ids=SFT)
def test_sft(refused, options, sentence):
    refused(train_sft, sentence, {**WORDS, **shaped(options), **options})


@pytest.mark.parametrize(("options", "sentence"), CLASSIFY.values(), ids=CLASSIFY)
def test_classify(refused, options, sentence):
    pytest.importorskip("tokenizers")
    refused(train_sft, sentence, {**LABELS, **shaped(options), **options})


@pytest.mark.parametrize(("options", "sentence"), RL.values(), ids=RL)
def test_rl(refused, options, sentence):
    usual = {"task": "pronounce", "init": "HERE/done", **FEW, "steps": 1}
    refused(train_rl, sentence, {**({} if "resume" in options else usual), **options})


def test_a_taken_folder_is_noticed_before_any_training(refused, monkeypatch):
    """Without a start train_rl.py makes one, which takes a minute: not before it knows where to save."""
    monkeypatch.setattr(train_sft, "train", lambda *_: pytest.fail("supervised training began"))
    refused(train_rl, "--out HERE/done already holds a finished run", {**FEW, "out": "HERE/done", "steps": 1})


def test_a_loss_that_is_no_number(refused):
    refused(train_sft, "the loss became .* try a lower --lr", {**WORDS, **SMALL, "steps": 50, "lr": 1e30, "out": "x"})


@pytest.mark.parametrize("data", [WORDS, LABELS], ids=["words", "labels"])
def test_a_model_that_is_spoiled_by_its_last_step(refused, data):
    """Its weights and its last loss are numbers, but what it computes is none: that is not saved as a model."""
    options = {**data, **SMALL, "steps": 1, "lr": 1e30, "embedding_lr": 1e30, "out": "x"}
    refused(train_sft, "NaN or infinite .* needs a lower --lr", options)


def test_a_policy_that_is_no_number(refused, monkeypatch):
    def spoil(agent, *_):
        agent.model.tokens.weight.data.fill_(torch.nan)
        return real(agent, *_)

    real = train_rl.update
    monkeypatch.setattr(train_rl, "update", spoil)
    options = {"task": "pronounce", "init": "HERE/done", **FEW, "steps": 3, "out": "x"}
    refused(train_rl, "at step .* try a lower --lr", options)


@pytest.mark.parametrize("script", ["train_sft.py", "train_rl.py"])
def test_a_process_of_its_own(there, tmp_path, script):
    code, _, err = scripts.run(script, tmp_path, init=there / "nothing", task="pronounce")
    assert code == 2
    assert err.startswith(f"error: there is no folder or .gguf file {there / 'nothing'}")
    assert err.count("\n") == 1
