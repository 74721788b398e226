"""A tagger from end to end: what it learns, what it leaves behind, and that transformers sees the same model."""

import json
import random
import signal

import numpy as np
import pytest
import scripts
import torch
from safetensors.torch import load_file

import minillm.curves
import train_sft
from minillm.batching import IGNORE, pack
from minillm.errors import UserError
from minillm.objective import backward
from minillm.published import checkpoint
from minillm.session import Session
from minillm.start import open_start
from minillm.tagging import WordReader, read_words
from minillm.tasks.tag import Options, Tag

pytest.importorskip("tokenizers")
RATES = {"optimizer": "adamw-head", "lr": 0.003, "embedding_lr": 0.003}
FAST = {"task": "tag", "precision": "fp32", "dropout": 0.1, "evaluations": 2, **RATES}


def write(path, number, seed, has_intent=True):
    """Orders to play or to book something, with some words around."""
    rng, lines = random.Random(seed), []
    for _ in range(number):
        intent = rng.choice(["play", "book"])
        value = rng.choice([["blue"], ["blue", "sky"]]) if intent == "play" else rng.choice([["paris"], ["rome"]])
        kind = {"play": "song", "book": "city"}[intent]
        around = [rng.choice(["please", "now", "the", "a", "it"]) for _ in range(rng.randint(0, 5))]
        words = [intent, *value, *around]
        tags = ["O", f"B-{kind}", *[f"I-{kind}"] * (len(value) - 1), *["O"] * len(around)]
        lines.append(json.dumps({"tokens": words, "tags": tags} | ({"intent": intent} if has_intent else {})) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: write(folder / f"{name}.jsonl", size, seed) for seed, (name, size) in enumerate(SIZES.items())}


SIZES = {"train": 400, "dev": 60, "test": 40}


def main(**options):
    """Run the script's main: → exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
        return scripts.main(train_sft, **options)


@pytest.fixture(scope="module", params=["modernbert", "bert", "gpt"])
def run(request, tmp_path_factory, files):
    """A finished run of each kind."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    assert main(**FAST, **files, model=request.param, out=folder, steps=60) == 0
    return folder


def opened(run, files):
    """The task, and the model of a run that is to learn it, with its tokenizer."""
    task = Tag(Options(files["train"], files["dev"]), seed=0)
    model, tokenizer = open_start(run, task)
    task.adapt(model, tokenizer)
    return task, model.eval(), tokenizer


def test_it_learns(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["dev_f1"] > 0.9
    assert metrics["test_accuracy"] > 0.9
    assert metrics["dev_intent_accuracy"] > 0.9
    assert metrics["dev_by_type"].keys() == {"city", "song"}


def test_what_was_measured_is_what_the_saved_model_says(run, files):
    task, model, tokenizer = opened(run, files)
    answers = task.answer(model, tokenizer, task.splits.dev)
    metrics = json.loads((run / "metrics.json").read_text())
    for name, interval in task.measure(task.splits.dev, answers).items():
        assert metrics[f"dev_{name}"] == interval.value
    assert sum(map(sum, task.reward(task.splits.dev, answers).values())) > 0.9 * len(answers)


def test_transformers_sees_the_same_tagger(run, files):
    transformers = pytest.importorskip("transformers")
    other = transformers.AutoModelForTokenClassification.from_pretrained(run).eval()
    other_tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    _, model, tokenizer = opened(run, files)
    words = ["play", "blue", "sky", "please"]
    (scores,), _ = read_words(model, tokenizer, [words])
    given = other_tokenizer(words, is_split_into_words=True, return_tensors="pt")
    (window,) = WordReader(tokenizer, model.config).windows(words)
    assert given.input_ids[0].tolist() == window.tokens
    theirs = other(**given).logits[0].log_softmax(-1).detach().numpy()
    np.testing.assert_allclose(scores, theirs[window.at], atol=1e-5)
    assert [other.config.id2label[i] for i in range(len(model.classes))] == list(model.classes)


def test_targets_are_the_tags_of_the_words(run, files):
    task, model, tokenizer = opened(run, files)
    for example in task.splits.train[:20]:
        (document,) = task.documents(example, tokenizer, None)
        assert [model.classes[k] for k in document.targets if k != IGNORE] == list(example.tags)
        assert model.sequence_classes[document.label] == example.intent


def test_loss_and_gradients_are_those_of_padded_transformers(run, files, tmp_path):
    """Of the words; the class of the whole, which theirs has not, is left out."""
    transformers = pytest.importorskip("transformers")
    task, model, tokenizer = opened(run, files)
    documents = [d for i in (3, 1, 4, 15) for d in task.documents(task.splits.train[i], tokenizer, None)]
    batch = pack(documents)
    count = int((batch.targets != IGNORE).sum())
    weights = torch.cat([torch.full((len(batch.tokens),), 1 / count), torch.zeros(len(documents))])
    loss = backward(model, batch, weights)

    other = transformers.AutoModelForTokenClassification.from_pretrained(run).eval()
    rows = (batch.packing.split(x) for x in (batch.tokens, batch.targets))
    ids, targets = (
        torch.nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=value)
        for x, value in zip(rows, (0, IGNORE), strict=True)
    )
    mask = torch.arange(ids.shape[1]) < batch.packing.lengths_tensor[:, None]
    found = other(input_ids=ids, attention_mask=mask.long(), labels=targets)
    found.loss.backward()
    assert loss.item() == pytest.approx(found.loss.item(), abs=1e-5)
    with torch.no_grad():  # gradients as if they were weights: saved, they get the names of transformers
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    checkpoint.save(model, tmp_path / "gradients")
    ours, theirs = load_file(tmp_path / "gradients" / "model.safetensors"), dict(other.named_parameters())
    assert ours.keys() - theirs.keys() == {"sequence_classifier.weight", "sequence_classifier.bias"}
    for name in ours.keys() & theirs.keys():
        if theirs[name].grad is not None:
            torch.testing.assert_close(ours[name], theirs[name].grad, rtol=1e-3, atol=1e-5, msg=name)


# ---- starting from another model -----------------------------------------------------------------


def test_a_tagger_of_the_same_classes_goes_on_and_one_of_others_begins_anew(run, files, tmp_path, caplog):
    _, model, _ = opened(run, files)
    saved = load_file(run / "model.safetensors")
    assert torch.equal(model.sequence_classifier.weight, saved["sequence_classifier.weight"])
    assert "new, from random numbers" not in caplog.text
    plain = {name: write(tmp_path / f"{name}.jsonl", 30, 7, has_intent=False) for name in ("train", "dev")}
    plain["dev"].write_text('{"tokens": "play blue", "tags": "O B-song"}')
    task, model, tokenizer = opened(run, plain)
    assert (task.sequence_classes, model.sequence_classes) == ([], ())
    assert "new, from random numbers" not in caplog.text  # the tags are the same
    checkpoint.save(model, tmp_path / "without")
    tokenizer.save(tmp_path / "without")
    _, model, _ = opened(tmp_path / "without", files)
    assert model.sequence_classes == ("book", "play")
    assert "new, from random numbers: sequence_classifier.bias, sequence_classifier.weight" in caplog.text


def test_classes_keep_the_order_of_the_model(run, files, tmp_path):
    model = checkpoint.load(run)
    other = type(model)(model.config, model.classes[::-1], model.sequence_classes[::-1])
    checkpoint.save(other, tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((run / name).read_bytes())
    task, model, tokenizer = opened(tmp_path / "other", files)
    assert model.classes == tuple(checkpoint.load(run).classes[::-1])
    for example in task.splits.train[:10]:
        (document,) = task.documents(example, tokenizer, None)
        assert [model.classes[k] for k in document.targets if k != IGNORE] == list(example.tags)
        assert model.sequence_classes[document.label] == example.intent


def test_sentences_longer_than_the_window_are_learned_whole(files, tmp_path):
    """From Python; every word has one target, in one of the windows."""
    rows = [json.loads(line) for line in files["train"].read_text().splitlines()]
    nines = [rows[i : i + 9] for i in range(0, 90, 9)]
    long = [{name: [x for row in nine for x in row[name]] for name in ("tokens", "tags")} for nine in nines]
    for name, some in (("a", long[:8]), ("b", long[8:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    options = Options(tmp_path / "a.jsonl", tmp_path / "b.jsonl", model="bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minillm.tasks.encoders.LONGEST", 16)
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        trained = train_sft.train(train_sft.Args(task="tag", out=tmp_path / "run", steps=2, options=options))
    task, model, tokenizer = opened(trained.folder, {"train": tmp_path / "a.jsonl", "dev": tmp_path / "b.jsonl"})
    assert "8 sentences have more than the 14 tokens that the model reads at once" in " ".join(task.notes)
    for example in task.splits.train:
        documents = task.documents(example, tokenizer, None)
        assert len(documents) > 2
        targets = [k for document in documents for k in document.targets if k != IGNORE]
        assert [model.classes[k] for k in targets] == list(example.tags)
    answers = task.answer(model, tokenizer, task.splits.dev)
    assert [len(answer.tags) for answer in answers] == [len(example.tags) for example in task.splits.dev]


def test_a_kind_is_for_models_from_scratch(run, files, tmp_path):
    options = Options(files["train"], files["dev"], model="gpt")
    with pytest.raises(UserError, match="--model gpt is for a model from scratch, but --init"):
        train_sft.train(train_sft.Args(task="tag", init=run, out=tmp_path / "out", options=options))


# ---- interruption --------------------------------------------------------------------------------


@pytest.mark.parametrize("choices", [{}, {"micro_tokens": 100, "keep": "best"}], ids=["plain", "pieces, best"])
def test_a_resumed_training_is_the_one_that_was_not_interrupted(choices, files, tmp_path, monkeypatch):
    options = {**FAST, **files, "steps": 8, "batch_tokens": 400, **choices}
    assert main(**options, out=tmp_path / "whole") == 0
    real, calls = Session.set_lr, []

    def set_lr(*args):
        calls.append(args)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "set_lr", set_lr)
        assert main(**options, out=tmp_path / "cut") == 130
    assert main(resume=tmp_path / "cut") == 0
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert scripts.steps_of(tmp_path / "cut") == list(range(1, 9))
