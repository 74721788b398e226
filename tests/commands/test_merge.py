"""python -m minillm merge: an adapter into the model that it began as."""

import sys

import pytest
import torch
from model_folders import write_bert, write_gpt
from safetensors.torch import load_file

import minillm.__main__
from minillm import cli, lora
from minillm.heads import SequenceClassifier
from minillm.published import adapters, checkpoint


@pytest.fixture
def run(capsys, monkeypatch):
    def call(*argv):
        """→ exit code, output, notes"""
        monkeypatch.setattr(sys, "argv", ["minillm", *map(str, argv)])
        code = 0
        try:
            cli.run(minillm.__main__.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def here(tmp_path):
    """A GPT and a classifier, each with an adapter."""
    write_gpt(tmp_path / "gpt")
    write_bert(tmp_path / "bert", SequenceClassifier, ("bad", "good"))
    for name in ("gpt", "bert"):
        model = lora.adapted(checkpoint.load(tmp_path / name), 2)
        for layer in lora.adapters(model).values():
            layer.lora_b.data.normal_()
        adapters.save(model, tmp_path / f"{name}-adapter", None)
        checkpoint.save(lora.merged(model), tmp_path / f"{name}-expected")
    return tmp_path


@pytest.mark.parametrize("name", ["gpt", "bert"])
def test_merged_is_a_model_like_any_other(name, here, run):
    code, out, err = run("merge", here / f"{name}-adapter", "--base", here / name, "--out", here / "merged")
    assert (code, out) == (0, "")
    assert f"saved to {here / 'merged'}" in err
    found, expected = (load_file(here / folder / "model.safetensors") for folder in ("merged", f"{name}-expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)
    command = (
        ["generate", here / "merged", "--prompt", "the"] if name == "gpt" else ["classify", here / "merged", "the"]
    )
    code, out, _ = run(*command, "--precision", "fp32")
    assert code == 0
    assert out


def test_classes_of_the_base_or_of_ones_own(here, run):
    for given, expected in (((), ("bad", "good")), (("--classes", "no, yes"), ("no", "yes"))):
        out = here / f"merged-{len(given)}"
        assert run("merge", here / "bert-adapter", "--base", here / "bert", "--out", out, *given)[0] == 0
        assert checkpoint.open_checkpoint(out).classes == expected


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["HERE/gpt-adapter", "--out", "HERE/new"], "--base MODEL is missing"),
        (["HERE/gpt-adapter", "--base", "HERE/gpt"], "--out FOLDER is missing"),
        (["HERE/gpt-adapter", "--base", "HERE/gpt", "--out", "HERE/bert"], "is there already; name a new folder"),
        (["HERE/gpt", "--base", "HERE/gpt", "--out", "HERE/new"], "cannot read HERE/gpt/adapter_config.json"),
        (["HERE/gpt-adapter", "--base", "HERE/bert", "--out", "HERE/new"], "is for 'lm', which is nothing that"),
        (["HERE/bert-adapter", "--base", "HERE/bert", "--out", "HERE/new", "--classes", "a,a"], "a name of its own"),
    ],
)
def test_what_cannot_be_merged_is_named(argv, sentence, here, run):
    code, _, err = run("merge", *(word.replace("HERE", str(here)) for word in argv))
    assert code == 2
    assert sentence in err.replace(str(here), "HERE")
    assert not (here / "new").exists()


def test_help_shows_examples(run):
    code, out, _ = run("merge", "--help")
    assert code == 0
    assert out.count("python -m minillm merge ") >= 2
