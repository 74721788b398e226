"""A classifier from end to end: what it learns, what it leaves behind, and that transformers sees the same model."""

import io
import json
import random
import re
import signal

import numpy as np
import pytest
import scripts
import torch
from rich.console import Console
from safetensors.torch import load_file

import minillm.curves
import train_sft
from minillm import evaluate, held_out
from minillm.batching import pack
from minillm.commands import classify
from minillm.commands import evaluate as evaluate_command
from minillm.errors import UserError
from minillm.layers import OF_DROPOUT
from minillm.objective import backward
from minillm.published import checkpoint
from minillm.session import Session
from minillm.start import open_start, prepare
from minillm.tasks.classify import Classify, Options

pytest.importorskip("tokenizers")
RATES = {"optimizer": "adamw-head", "lr": 0.003, "embedding_lr": 0.003}
FAST = {"task": "classify", "precision": "fp32", "dropout": 0.1, "evaluations": 2, **RATES}


def write(path, number, seed, labels=("bad", "good")):
    """Sentences with one word that tells the label and some that don't, of many lengths."""
    rng = random.Random(seed)
    words = {labels[0]: ("awful", "poor"), labels[1]: ("great", "fine")}
    lines = []
    for _ in range(number):
        label = rng.choice(labels)
        text = [
            rng.choice(["the", "a", "film", "movie", "it", "was", "quite", "very"]) for _ in range(rng.randint(0, 9))
        ]
        text.insert(rng.randint(0, len(text)), rng.choice(words[label]))
        lines.append(json.dumps({"text": " ".join(text), "label": label}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    sizes = {"train": 240, "dev": 60, "test": 40}
    return {name: write(folder / f"{name}.jsonl", size, seed) for seed, (name, size) in enumerate(sizes.items())}


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
    task = Classify(Options(files["train"], files["dev"]), seed=0)
    model, tokenizer = open_start(run, task)
    task.adapt(model, tokenizer)
    return task, model.eval(), tokenizer


# ---- what it learns, and what it leaves behind ---------------------------------------------------


def test_it_learns(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["dev_accuracy"] > 0.9
    assert metrics["test_macro_f1"] > 0.9
    assert metrics["steps"] == 60


def test_metrics_say_what_there_is_to_say(run):
    metrics = json.loads((run / "metrics.json").read_text())
    for split, size in (("dev", 60), ("test", 40)):
        for name in ("accuracy", "macro_f1", "naive_bayes", "majority"):
            low, value, high = (metrics[f"{split}_{name}{end}"] for end in ("_low", "", "_high"))
            assert 0 <= low <= value <= high <= 1
        confusion = metrics[f"{split}_confusion"]
        assert sum(sum(row.values()) for row in confusion.values()) == size
        right = sum(row.get(name, 0) for name, row in confusion.items())
        assert right / size == metrics[f"{split}_accuracy"]
        assert len(metrics[f"{split}_worst_mistakes"]) == min(10, size - right)


def test_baselines_stand_beside_the_result_alone(run):
    """They are the same at every look, so that only the last line of the log has them."""
    *looks, last = (line for line in map(json.loads, (run / "log.jsonl").open()) if "dev_accuracy" in line)
    assert looks
    assert not any("dev_naive_bayes" in line or "dev_majority" in line for line in looks)
    assert {"dev_naive_bayes", "dev_majority"} <= last.keys()


def test_predictions_are_those_that_were_measured(run, files):
    _, model, tokenizer = opened(run, files)
    examples = [json.loads(line) for line in files["dev"].read_text().splitlines()]
    probabilities = evaluate.classify(model, tokenizer, [(example["text"],) for example in examples])
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(60))
    right = [model.classes[p.argmax()] == e["label"] for p, e in zip(probabilities, examples, strict=True)]
    assert np.mean(right) == json.loads((run / "metrics.json").read_text())["dev_accuracy"]


def test_probabilities_depend_on_nothing_but_the_text(run, files):
    _, model, tokenizer = opened(run, files)
    model.double()
    texts = [("a great film",), ("awful",), ("it was quite poor the film it was",)]
    together = evaluate.classify(model, tokenizer, texts)
    alone = np.concatenate([evaluate.classify(model, tokenizer, [text]) for text in texts])
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_a_text_that_is_too_long_is_cut(run, files):
    _, model, tokenizer = opened(run, files)
    assert evaluate.classify(model, tokenizer, [("great " * 2000,)]).shape == (1, 2)


def test_transformers_sees_the_same_model(run, files):
    transformers = pytest.importorskip("transformers")
    texts = ["a great film", "awful", "it was quite poor the film it was"]
    other = transformers.AutoModelForSequenceClassification.from_pretrained(run).eval()
    other_tokenizer = transformers.AutoTokenizer.from_pretrained(run)
    _, model, tokenizer = opened(run, files)
    ours = evaluate.classify(model, tokenizer, [(text,) for text in texts])
    for text, row in zip(texts, ours, strict=True):
        theirs = other(**other_tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert row == pytest.approx(theirs, abs=1e-5)
    assert [other.config.id2label[i] for i in range(2)] == list(model.classes) == ["bad", "good"]


# ---- the loss ------------------------------------------------------------------------------------


def test_loss_and_gradients_are_those_of_padded_transformers(files, tmp_path, run):
    transformers = pytest.importorskip("transformers")
    task, model, tokenizer = opened(run, files)  # in evaluation mode: dropout would differ
    examples = [task.splits.train[i] for i in (3, 1, 4, 15, 92)]
    batch = pack([document for example in examples for document in task.documents(example, tokenizer, None)])
    loss = backward(model, batch, 1 / batch.count)

    other = transformers.AutoModelForSequenceClassification.from_pretrained(run).eval()
    other.config.pad_token_id = 0
    rows = batch.packing.split(batch.tokens)
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < batch.packing.lengths_tensor[:, None]
    found = other(input_ids=ids, attention_mask=mask.long(), labels=batch.labels)
    found.loss.backward()
    assert loss.item() == pytest.approx(found.loss.item(), abs=1e-5)
    with torch.no_grad():  # gradients as if they were weights: saved, they get the names of transformers
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    checkpoint.save(model, tmp_path / "gradients")
    ours = load_file(tmp_path / "gradients" / "model.safetensors")
    theirs = dict(other.named_parameters())
    assert ours.keys() <= theirs.keys()
    for name, gradient in ours.items():
        if theirs[name].grad is not None:
            torch.testing.assert_close(gradient, theirs[name].grad, rtol=1e-3, atol=1e-5, msg=name)


def test_the_default_kind_begins_as_naive_bayes(files, tmp_path):
    """Its first look says so, and where no later one is better, that is what is saved."""
    options = {**FAST, **files, "steps": 4, "evaluations": 2, "keep": "best", "lr": 1e-9, "embedding_lr": 1e-9}
    folder = tmp_path / "run"
    assert main(**options, out=folder) == 0
    first, *later = (record for record in scripts.read_log(folder) if "dev_accuracy" in record)
    assert first["step"] == 0
    assert first["dev_accuracy"] > 0.9
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["dev_accuracy"] == max(look["dev_accuracy"] for look in (first, *later))
    weights = load_file(folder / "model.safetensors")
    silent = [name for name in weights if name.endswith(("attn.Wo.weight", "mlp.Wo.weight"))]
    assert silent
    assert all(weights[name].abs().max() < 1e-6 for name in silent)  # blocks that add nothing yet
    assert main(**options | {"init": folder}, out=tmp_path / "other") == 0  # which has learned already: no new noise
    torch.testing.assert_close(load_file(tmp_path / "other" / "model.safetensors"), weights, rtol=0, atol=1e-5)


# ---- starting from another model -----------------------------------------------------------------


def test_a_classifier_of_the_same_classes_goes_on(run, files):
    task, model, tokenizer = opened(run, files)
    saved = load_file(run / "model.safetensors")
    name = next(name for name in saved if name in ("classifier.weight", "score.weight"))
    torch.testing.assert_close(model.classifier.weight, saved[name], rtol=0, atol=0)
    measured = task.measure(task.splits.dev, task.answer(model, tokenizer, task.splits.dev))
    assert measured["accuracy"].value == json.loads((run / "metrics.json").read_text())["dev_accuracy"]


def test_a_classifier_of_other_classes_gets_a_new_head(run, tmp_path, caplog):
    paths = [write(tmp_path / f"{name}.jsonl", 20, seed, ("no", "yes")) for seed, name in enumerate("ab")]
    task, model, _ = opened(run, dict(zip(("train", "dev"), paths, strict=True)))
    assert model.classes == ("no", "yes")
    assert task.classes == ["no", "yes"]
    assert "new, from random numbers: classifier" in caplog.text


def test_classes_keep_the_order_of_the_model(run, files, tmp_path):
    """A published model may have them in any; what is learned has to be its class and no other's."""
    model = checkpoint.load(run, head="classify")
    other = type(model)(model.config, ("good", "bad"))
    checkpoint.save(other, tmp_path / "other")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((run / name).read_bytes())
    task, model, tokenizer = opened(tmp_path / "other", files)
    assert model.classes == ("good", "bad")
    for example in task.splits.train[:10]:
        (document,) = task.documents(example, tokenizer, None)
        assert model.classes[document.label] == example.label


def test_dropout_is_what_was_asked_for(run, files, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train_sft, "fit", lambda args, session, *_: seen.append(session.model))
    monkeypatch.setattr(held_out, "finish", lambda *_: None)
    options = Options(files["train"], files["dev"])
    train_sft.train(train_sft.Args(task="classify", init=run, out=tmp_path / "out", dropout=0.25, options=options))
    (model,) = seen
    named = [value for name, value in vars(model.config).items() if name in OF_DROPOUT]
    assert named
    assert all(value == 0.25 for value in named)
    assert all(getattr(block, "dropout", 0.25) == 0.25 for block in model.encoder.blocks)
    _, saved, _ = opened(run, files)
    before, now = saved.state_dict(), model.state_dict()
    assert all(torch.equal(before[name], now[name]) for name in before)


def test_a_training_ends_when_dev_no_longer_improves(files, tmp_path, capsys):
    folder = tmp_path / "run"
    options = {"keep": "best", "patience": 2, "evaluations": 40, "steps": 200}
    assert main(**FAST | options, **files, out=folder) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    accuracies = [record["dev_accuracy"] for record in scripts.read_log(folder) if "dev_accuracy" in record]
    assert metrics["steps"] < 200
    assert metrics["dev_accuracy"] == max(accuracies) == accuracies[-4]  # two looks that were no better, and the last
    assert "no better than the best before in the last 2 looks at the dev set" in capsys.readouterr().out


def test_a_kind_is_for_models_from_scratch(run, files, tmp_path):
    options = Options(files["train"], files["dev"], model="gpt")
    with pytest.raises(UserError, match="--model gpt is for a model from scratch, but --init"):
        train_sft.train(train_sft.Args(task="classify", init=run, out=tmp_path / "out", options=options))
    assert not (tmp_path / "out").exists()


def test_pairs_are_asked_for_as_pairs(tmp_path, files, run):
    rows = [{"text": f"text {i}", "text2": f"other {i}", "label": "ab"[i % 2]} for i in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "run"
    assert main(task="classify", train=tmp_path / "a.jsonl", out=folder, steps=1, precision="fp32") == 0
    notes = json.loads((folder / "report.json").read_text())["notes"]
    assert any("only 10 examples to learn from" in note for note in notes)
    with pytest.raises(UserError, match="learned pairs of texts: give --pairs"):
        classify.main(classify.Args(model=str(folder), text=("a text",)))
    classify.main(classify.Args(model=str(folder), text=("a text\tanother",), pairs=True))
    with pytest.raises(UserError, match="learned single texts: leave --pairs out"):
        classify.main(classify.Args(model=str(run), text=("a text\tanother",), pairs=True))


def test_a_terminal_has_room_for_the_probabilities_of_many_classes():
    likely = {f"a class with a name {i}": p for i, p in enumerate((0.7, 0.1, 0.08, 0.07, 0.04, 0.01))}
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(classify.classes_table(["a text"], [{"class": "a class with a name 0", "probabilities": likely}]))
    words = re.sub(r"[\s│]+", " ", console.export_text())
    assert "a text a class with a name 0 70.0%" in words
    assert all(f"{share}" in words for share in ("10.0%", "8.0%", "7.0%", "4.0%"))
    assert "…" not in words


def test_what_was_calibrated_is_what_others_read(files, tmp_path):
    """The run's own probabilities are those of its files; the answers are those without a temperature. Some labels of
    dev are wrong, as where no answer is there is nothing to calibrate by."""
    rows = [json.loads(line) for line in files["dev"].read_text().splitlines()]
    names = sorted({row["label"] for row in rows})
    for row in rows[:5]:
        row["label"] = names[1 - names.index(row["label"])]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {**files, "dev": tmp_path / "dev.jsonl"}
    for name, calibrate in (("plain", {}), ("calibrated", {"calibrate": True})):
        assert main(**FAST, **given, **calibrate, model="bert", out=tmp_path / name, steps=60) == 0
    plain, found = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "calibrated"))
    changed = {name for name in plain if not torch.equal(plain[name], found[name])}
    assert changed
    assert all(name.startswith("classifier.") for name in changed)
    ratio = plain["classifier.weight"] / found["classifier.weight"]
    torch.testing.assert_close(ratio, ratio.flatten()[0].expand_as(ratio))
    figures = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("plain", "calibrated")]
    assert figures[0]["dev_accuracy"] == figures[1]["dev_accuracy"]
    assert figures[0]["test_calibration_error"] != figures[1]["test_calibration_error"]
    remarks = json.loads((tmp_path / "calibrated" / "report.json").read_text())["remarks"]
    assert any(f"temperature {float(ratio.flatten()[0]):.3g}, fitted on dev" in remark for remark in remarks)


def test_a_file_is_measured_by_the_weights_that_were_learned_with(files, tmp_path, capsys):
    """Which balanced ones are of the training examples, that nobody has any more."""
    kept = [line for line in files["train"].read_text().splitlines() if "good" in line or "poor" in line]
    (tmp_path / "train.jsonl").write_text("\n".join(kept) + "\n")
    chosen = {**files, "train": tmp_path / "train.jsonl", "class_weights": "balanced"}
    assert main(**FAST, **chosen, model="bert", out=tmp_path / "run", steps=3) == 0
    measured = json.loads((tmp_path / "run" / "metrics.json").read_text())
    (tmp_path / "train.jsonl").unlink()
    capsys.readouterr()
    evaluate_command.main(
        evaluate_command.Args(model=str(tmp_path / "run"), file=files["test"], precision="fp32", json=True)
    )
    found = json.loads(capsys.readouterr().out)["metrics"]
    for name in ("weighted_accuracy", "accuracy"):
        for end, key in (("", "value"), ("_low", "low"), ("_high", "high")):
            assert found[name][key] == pytest.approx(measured[f"test_{name}{end}"])
    assert found["weighted_accuracy"] != found["accuracy"]
    # A run that began as this one has weights of its own, or none.
    assert main(**FAST, **files, init=tmp_path / "run", out=tmp_path / "next", steps=1) == 0
    evaluate_command.main(
        evaluate_command.Args(model=str(tmp_path / "next"), file=files["test"], precision="fp32", json=True)
    )
    assert "weighted_accuracy" not in json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]


@pytest.mark.parametrize(("width", "counts"), [(8, False), (16, True), (None, True)])
def test_what_cannot_begin_as_naive_bayes_learns_as_from_nothing(width, counts, files):
    task = Classify(Options(files["train"], files["dev"]), seed=0)
    args, model, _, corpus = prepare(train_sft.Args(task="classify", width=width, heads=2), task)
    assert task.counts_first is counts
    task.begin(model, corpus, None)
    assert any("begins as naive Bayes" in note for note in task.notes) is counts
    assert (args.optimizer == "adamw-head") is counts


# ---- interruption --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "gpt"])
@pytest.mark.parametrize(
    "choices",
    [{}, {"micro_tokens": 100, "keep": "best"}, {"class_weights": "bad=2", "calibrate": True, "augment": "drop"}],
    ids=["plain", "pieces, best", "weighted, calibrated, augmented"],
)
def test_a_resumed_training_is_the_one_that_was_not_interrupted(kind, choices, files, tmp_path, monkeypatch):
    options = {**FAST, **files, "model": kind, "steps": 8, "batch_tokens": 400, **choices}
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
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert main(resume=tmp_path / "cut") == 0
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert scripts.steps_of(tmp_path / "cut") == list(range(1, 9))
    with pytest.raises(UserError, match="is finished"):
        train_sft.train(train_sft.Args(resume=tmp_path / "cut"))
