"""Both scripts from end to end, as processes of their own and in this one."""

import json
import re
import time
from dataclasses import fields
from pathlib import Path

import pytest
import scripts
import torch
from safetensors.torch import load_file
from scripts import FEW, SMALL

import minillm.tasks.arithmetic as arithmetic
import train_rl
import train_sft
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.run import Run
from minillm.wording import counted

FILES = {
    "args.json",
    "config.json",
    "curves.png",
    "log.jsonl",
    "metrics.json",
    "model.safetensors",
    "report.html",
    "report.json",
    "tokenizer.json",
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return scripts.write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def sft(tmp_path_factory, words):
    """A finished run of train_sft.py: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("sft")
    code, out, err = scripts.run("train_sft.py", folder, **words, **SMALL, steps=30, lr=0.02)
    assert code == 0, err
    return folder / "runs" / "pronounce-sft", out


@pytest.fixture(scope="module")
def rl(tmp_path_factory, sft):
    """A finished run of train_rl.py that starts from it."""
    folder = tmp_path_factory.mktemp("rl")
    code, out, err = scripts.run("train_rl.py", folder, task="pronounce", init=sft[0], **FEW, steps=12)
    assert code == 0, err
    return folder / "runs" / "pronounce-rl", out


def check_metrics(folder, names):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert names <= metrics.keys()
    assert all(isinstance(value, int | float) for value in metrics.values())
    for name in names:
        if f"{name}_low" in metrics:
            assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    assert metrics["seconds"] > 0
    return metrics


# ---- supervised ----------------------------------------------------------------------------------


def test_sft_leaves_a_whole_run(sft):
    folder, _ = sft
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    metrics = check_metrics(folder, {"dev_wer", "dev_per", "test_wer", "test_per", "steps", "tokens"})
    assert metrics["steps"] == 30
    assert Run.open(folder).is_finished
    checkpoint.load(folder)
    load_tokenizer(folder)


def test_sft_logs_every_step(sft):
    folder, _ = sft
    log = scripts.read_log(folder)
    steps = [record for record in log if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 31))
    assert all({"step", "loss", "gradient_norm", "lr", "tokens", "seconds"} == record.keys() for record in steps)
    assert all(a["tokens"] < b["tokens"] and a["seconds"] <= b["seconds"] for a, b in zip(steps, steps[1:]))  # noqa: B905, RUF007
    assert steps[0]["loss"] == pytest.approx(torch.tensor(70.0).log().item(), abs=0.3)  # knows nothing: log V
    assert steps[-1]["loss"] < 0.8 * steps[0]["loss"]
    assert all(record["gradient_norm"] > 0 for record in steps)
    evaluations = [record["step"] for record in log if "dev_wer" in record]
    assert evaluations[-1] == 30
    assert len(evaluations) == SMALL["evaluations"]


def in_one_line(text):
    """Without the line breaks that a narrow terminal needs."""
    return " ".join(text.split())


def test_sft_tells_a_person_what_it_does(sft):
    _, out = sft
    for piece in (
        f"device CPU, {counted(torch.get_num_threads(), 'thread')}, because PyTorch sees no CUDA GPU",
        "precision float32 (as asked for)",
        "kernels torch (PyTorch's own kernels, because Triton ",
        "task pronounce: 64 train, 27 dev, 16 test examples",
        "model GPT, ",
        "parameters (1 layer × 16, 2 heads, 70 symbols)",
        "run runs/pronounce-sft",
        "dev: WER ",
        " on 27 examples never trained on",
        "test: WER ",
        " on 16 examples never trained on",
        "saved to runs/pronounce-sft",
    ):
        assert piece in in_one_line(out), piece
    table = out[out.index("held-out examples") :].split()
    assert sum(word in {f"{a}{b}{c}:" for a in "abc" for b in "abc" for c in "abc"} for word in table) == 10


def test_the_command_to_run_next_can_be_copied(sft):
    assert "next: python train_rl.py --task pronounce --init runs/pronounce-sft" in sft[1].splitlines()


def test_the_number_of_examples_looked_at_is_the_true_one(sft):
    glances = re.findall(r"on ([\d,]+) dev examples", in_one_line(sft[1]))
    assert glances
    assert set(glances) == {"27"}


# ---- reinforcement -------------------------------------------------------------------------------


def test_rl_leaves_a_whole_run(rl, sft):
    folder, out = rl
    assert {path.name for path in folder.iterdir()} == FILES
    assert f"next: python -m minillm compare runs/pronounce-rl {sft[0]}" in out.splitlines()
    metrics = check_metrics(folder, {"dev_wer", "dev_per", "test_wer", "start_dev_wer", "start_test_per", "steps"})
    assert metrics["steps"] == 12


def test_rl_logs_what_there_is_to_see(rl, sft):
    folder, _ = rl
    steps = [record for record in scripts.read_log(folder) if "reward" in record]
    assert [record["step"] for record in steps] == list(range(1, 13))
    for record in steps:
        assert {"reward", "entropy", "gradient_norm", "groups_without_variance", "lr", "seconds"} <= record.keys()
        assert 0 <= record["reward"] <= 1
        assert 0 <= record["groups_without_variance"] <= 1
        assert record["entropy"] > 0
    kl = [record["kl"] for record in steps if "kl" in record]
    assert abs(kl[0]) < 1e-4  # but for rounding: at first the model is the one it started from
    assert kl[-1] != 0  # then it has moved; an estimate of so few steps may have either sign
    start = json.loads((sft[0] / "metrics.json").read_text())
    end = json.loads((folder / "metrics.json").read_text())
    assert end["start_dev_wer"] == start["dev_wer"]
    assert end["start_dev_per"] == start["dev_per"]


def test_rl_tells_a_person_what_it_does(rl):
    _, out = rl
    for piece in ("device     ", "before: dev WER", "after: dev WER", "after: test WER", "saved to runs/pronounce-rl"):
        assert piece in out
    assert "answers drawn in practice" in out
    assert "held-out examples" in out


def test_rl_changes_the_weights(rl, sft):
    before, after = (load_file(folder / "model.safetensors") for folder, _ in (sft, rl))
    assert all(not torch.equal(before[name], after[name]) for name in before)


# ---- in this process -----------------------------------------------------------------------------


@pytest.fixture
def call(monkeypatch, tmp_path, capsys):
    """Run a script's main in an empty folder: → exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def call(script, **options):
        code = scripts.main(script, **options)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_same_seed_is_the_same_model(call, words, sft):
    for seed in (0, 1):
        code, *_ = call(train_sft, **words, **SMALL, steps=30, lr=0.02, out=f"seed{seed}", seed=seed)
        assert code == 0
    first, same, other = (load_file(Path(run, "model.safetensors")) for run in (sft[0], "seed0", "seed1"))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if "norm" not in name)


def test_runs_are_numbered(call, words):
    for name in ("pronounce-sft", "pronounce-sft-2"):
        code, out, err = call(train_sft, **words, **SMALL, steps=1)
        assert code == 0, err
        assert f"saved to runs/{name}" in out
        assert Path("runs", name, "metrics.json").exists()


def test_sft_goes_on_from_another_run(call, words, sft):
    code, _, err = call(train_sft, **words, init=sft[0], out="more", steps=2, lr=1e-9, embedding_lr=1e-9, evaluations=1)
    assert code == 0, err
    before, after = (load_file(Path(folder, "model.safetensors")) for folder in (sft[0], "more"))
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)


def test_rl_goes_on_from_a_run_of_its_own(call, rl):
    code, _, err = call(train_rl, task="pronounce", init=rl[0], out="more", **FEW, steps=2)
    assert code == 0, err


@pytest.fixture
def quick_arithmetic(monkeypatch):
    monkeypatch.setattr(arithmetic, "HELD_OUT", 30)
    recipe = {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0, "optimizer": "muon", "warmup": 0.02, "steps": 5}
    recipe |= {"batch_tokens": 512, "lr": 0.01, "embedding_lr": 0.005}
    monkeypatch.setattr(arithmetic.Arithmetic, "recipe", lambda *_: recipe)


@pytest.mark.usefixtures("quick_arithmetic")
def test_rl_makes_its_own_start_once(call):
    code, out, err = call(train_rl, **FEW, steps=2)
    assert code == 0, err
    assert "there is no runs/arithmetic-sft to start from, so supervised training comes first" in in_one_line(out)
    assert json.loads(Path("runs/arithmetic-sft/metrics.json").read_text())["steps"] == 5
    assert {"start_test_accuracy", "test_accuracy", "dev_accuracy"} <= check_metrics(
        Path("runs/arithmetic-rl"), set()
    ).keys()
    code, out, err = call(train_rl, **FEW, steps=2)
    assert code == 0, err
    assert "supervised training comes first" not in in_one_line(out)
    assert Path("runs/arithmetic-rl-2/metrics.json").exists()


@pytest.mark.usefixtures("quick_arithmetic")
def test_a_training_stops_when_it_is_good_enough(call):
    code, _, err = call(train_sft, task="arithmetic", **SMALL, steps=100, until=1e-9, lr=0.02)
    assert code == 0, err
    assert json.loads(Path("runs/arithmetic-sft/metrics.json").read_text())["steps"] % 10 == 0


def test_a_budget_of_minutes_is_kept(call, words):
    began = time.monotonic()
    code, _, err = call(train_sft, **words, **SMALL, minutes=0.02)
    assert code == 0, err
    assert time.monotonic() - began < 15
    log = scripts.read_log(Path("runs/pronounce-sft"))
    assert 1.0 < log[-1]["seconds"] < 3
    assert scripts.steps_of(Path("runs/pronounce-sft"))[-1] == log[-1]["step"] > 5


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_precisions(call, words, precision):
    code, out, err = call(train_sft, **words, **SMALL | {"precision": precision}, steps=2)
    assert code == 0, err
    assert "precision  " in out
    weights = load_file("runs/pronounce-sft/model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.float32}


@pytest.mark.parametrize("script", [train_sft, train_rl])
def test_help_teaches(call, script):
    code, out, _ = call(script, help="")
    assert code == 0
    assert "Objective: " in out
    assert f"python {script.__name__}.py" in out
    assert all(f"--{field.name.replace('_', '-')} " in out for field in fields(script.Args) if field.name != "options")
    assert "--task NAME --help shows the options of a task" in in_one_line(out)
    for name, task in (script.TASKS if script is train_sft else script.JUDGED).items():
        code, out, _ = call(script, task=name, help="")
        assert code == 0
        assert f"options of --task {name}" in out
        assert all(f"--{field.name.replace('_', '-')} " in out for field in fields(task.Options))
