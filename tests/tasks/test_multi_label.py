"""Several labels at once: what files say, what is measured, and a training from end to end."""

import json
import random

import numpy as np
import pytest
import scripts
import torch
import torch.nn.functional as F
from tiny import batch_of, bert_config, gpt_config, packed, sequences, shake

import minillm.__main__
import minillm.curves
import train_sft
from minillm import evaluate
from minillm.errors import UserError
from minillm.heads import MultiLabelClassifier
from minillm.naive_bayes import OneAgainstRest
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.tasks.classify import Classify, Options
from minillm.tasks.multi_label import Labels, MultiLabel, labels_over, without_reading, worst_mistakes
from minillm.tokenizer import SymbolTokenizer


def load(train, dev=None, test=None, fields=None):
    return Classify(Options(train, dev, test, fields, problem="multi"), seed=0)


def labels_of(path, content):
    path.write_text(content)
    return [example.labels for example in load(None, path).splits.dev]


# ---- what files say --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["a|b", "b", ""], [("a", "b"), ("b",), ()]),
        (["a;b,c", "b;", "a ; a"], [("a", "b,c"), ("b",), ("a",)]),  # the first separator that there is
        (["a,b", "  "], [("a", "b"), ()]),
        (["New York", "b"], [("New York",), ("b",)]),
        (["1,02.0", "3"], [("1", "02.0"), ("3",)]),  # 02.0 is no number, so that all are names
        (["1,2.0", "2"], [("1", "2"), ("2",)]),
        (['["a", "b"]', "[]"], [("a", "b"), ()]),
    ],
)
def test_labels_in_tables(tmp_path, labels, expected):
    cells = (label.replace('"', '""') for label in labels)
    content = "text,label\n" + "".join(f'text {i},"{cell}"\n' for i, cell in enumerate(cells))
    assert labels_of(tmp_path / "a.csv", content) == expected


def test_lists_without_the_option(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": ["x", "y"]}\n')
    with pytest.raises(UserError, match=r"'label' is a list: .* add --problem multi"):
        Classify(Options(tmp_path / "a.jsonl"), seed=0)


def test_labels_in_lists(tmp_path):
    lists = [["b", "a|c"], [], ["b", "b"], "b", [2, 2.0, "x"]]
    content = "".join(json.dumps({"text": f"text {i}", "label": each}) + "\n" for i, each in enumerate(lists))
    assert labels_of(tmp_path / "a.jsonl", content) == [("b", "a|c"), (), ("b",), ("b",), ("2", "x")]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "'label' is empty, so that this example has no label"),
        ([["a"]], r"'label' is \[\"a\"\], but a word"),
        ([""], "'label' is empty"),
        ("['a', 'b']", "begins as a list, but is no list of JSON"),
        ({"a": 1}, "but a word or a number was expected"),
    ],
)
def test_labels_that_are_none(tmp_path, label, message):
    with pytest.raises(UserError, match=f"a.jsonl:1.*{message}"):
        labels_of(tmp_path / "a.jsonl", json.dumps({"text": "x", "label": label}) + "\n")


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text, "label": labels}) + "\n" for text, labels in rows))
        return path

    return write


def test_a_label_that_training_does_not_have(write):
    train = write("a.jsonl", [("x", ["a"]), ("y", ["b"])])
    with pytest.raises(UserError, match=r"b.jsonl:2: no training example has the label 'c', only 'a', 'b'"):
        load(train, write("b.jsonl", [("z", []), ("w", ["a", "c"])]))


def test_nothing_to_tell_apart(write):
    for labels in ([], ["a", "b"]):
        with pytest.raises(UserError, match="all texts have the same labels"):
            load(write("a.jsonl", [(f"text {i}", labels) for i in range(9)]))
    one = load(write("a.jsonl", [(f"text {i}", ["a"] * (i % 2)) for i in range(9)]))
    assert one.classes == ["a"]  # or not


def test_each_label_has_its_share_of_what_is_held_out(write):
    rng = random.Random(0)
    rates = {"common": 0.6, "usual": 0.2, "rare": 0.03}
    rows = [(f"text {i}", [name for name, p in rates.items() if rng.random() < p]) for i in range(1000)]
    task = load(write("a.jsonl", rows))
    assert 90 <= len(task.splits.dev) <= 110
    for name, p in rates.items():
        held_out = sum(name in example.labels for example in task.splits.dev)
        assert 0.7 * 100 * p <= held_out <= 1.4 * 100 * p + 1
    assert any("training texts have no label" in note for note in task.notes)


# ---- what is measured ------------------------------------------------------------------------------


def answers(*sets):
    return [Labels(tuple(names), dict.fromkeys(names, 0.9)) for names in sets]


def test_measures_are_those_of_scikit_learn(write):
    scores = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")
    rng = np.random.default_rng(0)
    names = np.array(["a", "b", "c", "d"])
    truth, found = rng.random((2, 60, 4)) < np.array([0.5, 0.3, 0.1, 0.05])
    rows = [(f"text {i}", names[row].tolist()) for i, row in enumerate(truth)]
    task = load(write("a.jsonl", rows), write("b.jsonl", [(f"new {i}", labels) for i, (_, labels) in enumerate(rows)]))
    measured = task.measure(task.splits.dev, answers(*(names[row] for row in found)))
    for ours, average in (("micro_f1", "micro"), ("macro_f1", "macro")):
        assert measured[ours].value == pytest.approx(scores.f1_score(truth, found, average=average))
        assert measured[ours].low <= measured[ours].value <= measured[ours].high
    assert measured["all_labels"].value == pytest.approx(scores.accuracy_score(truth, found))
    report = scores.classification_report(truth, found, target_names=names, output_dict=True, zero_division=0)
    for name, row in task.details(task.splits.dev, answers(*(names[row] for row in found)))["by_class"].items():
        expected = {key.replace("f1-score", "f1"): value for key, value in report[name].items()}
        assert row == pytest.approx(expected)


def test_changes_are_those_of_leaving_each_example_out(write):
    rng = np.random.default_rng(1)
    names = np.array(["a", "b", "c"])
    truth, found = rng.random((2, 12, 3)) < 0.4
    truth[0], found[0] = True, True
    rows = [(f"text {i}", names[row].tolist()) for i, row in enumerate(truth)]
    task = load(None, write("b.jsonl", rows))
    said = answers(*(names[row] for row in found))
    examples = task.splits.dev
    whole = task.measure(examples, said)["macro_f1"]
    for i, change in enumerate(whole.changes):
        rest = task.measure(examples[:i] + examples[i + 1 :], said[:i] + said[i + 1 :])["macro_f1"]
        assert change == pytest.approx(rest.value - whole.value)


def test_the_calibration_is_that_of_all_yes_and_no(write):
    """Of 40 texts and 2 classes: 0.3 is said of "a", which a half have; of "b" 0.9, which 36 have."""
    rows = [(f"text {i}", ["a"] * (i % 2) + ["b"] * (i % 10 > 0)) for i in range(40)]
    task = load(None, write("b.jsonl", rows))
    said = [Labels(("b",), {"b": 0.9, "a": 0.3})] * 40
    found = task.measure(task.splits.dev, said)["calibration_error"]
    assert found.value == pytest.approx((0.2 + 0.0) / 2)
    assert len(found.changes) == 40


def test_no_labels_at_all(write):
    task = load(None, write("a.jsonl", [("x", []), ("y", ["a"])]))
    measured = task.measure(task.splits.dev[:1], answers(()))
    assert measured["micro_f1"] == (0, 0, 1)
    assert measured["all_labels"].value == 1
    assert task.reward(task.splits.dev, answers((), ())) == {"f1": [1.0, 0.0]}


def test_the_guess_without_reading_is_the_best_one():
    """Of all sets of labels, by enumeration."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.random((15, 4)) < rng.random(4)
        guess = without_reading([[str(k) for k in np.flatnonzero(row)] for row in truth])
        sets = [[bool(bits >> k & 1) for k in range(4)] for bits in range(1, 16)]
        f1 = {tuple(s): 2 * (truth & s).sum() / (truth.sum() + 15 * sum(s)) for s in map(np.array, sets)}
        assert f1[tuple(str(k) in guess for k in range(4))] == pytest.approx(max(f1.values()))


def test_one_against_the_rest_is_naive_bayes_by_its_formula():
    texts = [("good fun",), ("bad",), ("good bad",), ("dull",)]
    labels = [("joy",), ("anger",), ("joy", "anger"), ()]
    bayes = OneAgainstRest(texts, labels)
    with_it, without = {"good": 2, "fun": 1, "good fun": 1, "bad": 1, "good bad": 1}, {"bad": 1, "dull": 1}
    size = 6  # features
    odds = np.log(2 / 2)  # two texts have joy, two have not
    for feature in ("bad", "dull"):  # "bad dull" is new
        odds += np.log((with_it.get(feature, 0) + 1) / (6 + size)) - np.log((without.get(feature, 0) + 1) / (2 + size))
    score = bayes.prior.copy()
    for feature in ("bad", "dull"):
        never, which, bonus = bayes.bonus[feature]
        score += bayes.unseen + never
        score[which] += bonus
    assert score[bayes.classes.index("joy")] == pytest.approx(odds)
    assert bayes.answer(("good fun",)) == ("joy",)
    assert bayes.answer(("unheard of",)) == ()


def test_the_worst_mistakes_have_most_wrong_labels(write):
    task = load(None, write("a.jsonl", [("x", ["a"]), ("y", ["b"]), ("z", [])]))
    said = [
        Labels(("a",), {"a": 0.9, "b": 0.1}),
        Labels(("a",), {"a": 0.9, "b": 0.1}),
        Labels(("a",), {"a": 0.6, "b": 0}),
    ]
    assert [example.prompt for example, _ in worst_mistakes(task.splits.dev, said)] == ["y", "z"]


# ---- loss and files --------------------------------------------------------------------------------


def batch(labels, seed=0):
    return batch_of(*packed(sequences((3, 5, 2), seed)), labels=torch.tensor(labels))


LABELS = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]


def test_the_loss_is_minus_log_p_of_all_answers():
    model = shake(MultiLabelClassifier(bert_config(), "abc")).eval()
    asked = batch(LABELS)
    p = model.probabilities(model(asked.tokens, asked.packing, asked.segments)).detach()
    truth = torch.tensor(LABELS, dtype=torch.float64)
    expected = -(truth * p.log() + (1 - truth) * (1 - p).log()).sum(1)
    torch.testing.assert_close(model.loss(asked).detach(), expected)
    other = -(truth * (1 - p).log() + (1 - truth) * p.log()).sum(1)
    smoothed = 0.8 * expected + 0.2 * (expected + other) / 2  # see objective.Model
    torch.testing.assert_close(model.loss(asked, label_smoothing=0.2).detach(), smoothed)
    weights = torch.tensor([0.2, 0.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(model.loss(asked, weights).detach(), (weights * expected).sum())
    hot = model.probabilities(model(asked.tokens, asked.packing, asked.segments) / 2).detach()
    expected = F.binary_cross_entropy(hot, truth, reduction="none").sum(1)
    torch.testing.assert_close(model.loss(asked, temperature=2.0).detach(), expected)


def test_a_new_head_says_how_often_each_class_applies(write):
    rows = [(str(i), ["a"] * (i % 2 == 0) + ["b"] * (i % 10 == 0)) for i in range(98)]
    task = load(write("a.jsonl", rows), write("b.jsonl", [("98", [])]))
    tokenizer = SymbolTokenizer("digits", ".", list("0123456789"))
    model = MultiLabelClassifier(bert_config(), task.classes)
    task.adapt(model, tokenizer)
    p = model.probabilities(model.classifier.bias).tolist()
    assert p == pytest.approx([50 / 100, 11 / 100])  # one more of either kind, so that none is certain
    model.head_is_trained = True
    with torch.no_grad():
        model.classifier.bias.zero_()
    task.adapt(model, tokenizer)
    assert not model.classifier.bias.any()
    task.adapt(MultiLabelClassifier(gpt_config(), task.classes), tokenizer)  # which has no bias


# ---- from end to end -------------------------------------------------------------------------------

WORDS = {"joy": ("great", "lovely"), "anger": ("awful", "furious"), "fear": ("afraid", "dread")}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    pytest.importorskip("tokenizers")
    folder, rng = tmp_path_factory.mktemp("files"), random.Random(0)
    for name, size in (("train", 300), ("dev", 60)):
        lines = ["text,label"]
        for _ in range(size):
            labels = [label for label in WORDS if rng.random() < 0.4]
            words = [rng.choice(["the", "a", "film", "was", "quite"]) for _ in range(rng.randint(1, 6))]
            words += [rng.choice(WORDS[label]) for label in labels]
            rng.shuffle(words)
            lines.append(f"{' '.join(words)},{'|'.join(labels)}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return {name: folder / f"{name}.csv" for name in ("train", "dev")}


@pytest.fixture(scope="module", params=["modernbert", "bert", "gpt"])
def run(request, tmp_path_factory, files):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    rates = {"optimizer": "adamw-head", "lr": 0.003, "embedding_lr": 0.003}
    rates |= {"dropout": 0.1, "precision": "fp32", "evaluations": 1}
    task = {"task": "classify", "problem": "multi", "model": request.param, "out": folder, "steps": 60}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        assert scripts.main(train_sft, **task, **rates, **files) == 0
    return folder


def test_it_learns(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["dev_micro_f1"] > 0.9
    assert metrics["dev_all_labels"] > 0.8
    assert metrics["dev_by_class"].keys() == WORDS.keys()
    assert "By class, dev" in (run / "report.html").read_text()


def test_transformers_has_the_same_logits_and_loss(run, files):
    transformers = pytest.importorskip("transformers")
    config = json.loads((run / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(run).double().eval()
    ours, tokenizer = checkpoint.load(run).double().eval(), load_tokenizer(run)
    assert type(ours) is MultiLabelClassifier
    task = load(**files)
    task.adapt(ours, tokenizer)
    for example in task.splits.dev[:5]:
        (document,) = task.documents(example, tokenizer, None)
        tokens, labels = torch.tensor(document.tokens), torch.tensor([document.label])
        found = ours.loss(batch_of(*packed([tokens]), labels=labels)).detach()
        answer = theirs(input_ids=tokens[None], labels=labels.double())
        # ours is the sum over classes, theirs the mean
        torch.testing.assert_close(found[0] / len(ours.classes), answer.loss.detach(), rtol=1e-5, atol=1e-6)


def test_commands(run, files, capsys, monkeypatch):
    def command(*words):
        monkeypatch.setattr("sys.argv", ["minillm", *map(str, words)])
        minillm.__main__.main()
        return capsys.readouterr().out

    text = "the furious film was lovely"
    (line,) = command("classify", run, text, "--json").splitlines()
    found = json.loads(line)
    assert set(found["labels"]) == {"joy", "anger"}
    assert found["labels"] == sorted(found["labels"], key=lambda name: -found["probabilities"][name])
    table = command("classify", run, text, "the film")
    assert f"joy {found['probabilities']['joy']:.1%}" in table
    assert "none" in table
    over = json.loads(command("classify", run, text, "--json", "--threshold", "0").splitlines()[0])
    assert set(over["labels"]) == WORDS.keys()
    metrics = json.loads(command("evaluate", run, "--json"))["metrics"]
    assert metrics["micro_f1"]["value"] == json.loads((run / "metrics.json").read_text())["dev_micro_f1"]
    (run / "args.json").rename(run / "args.json.away")  # a published model says itself what it is
    try:
        again = json.loads(command("evaluate", run, "--json", "--task", "classify", "--file", files["dev"]))["metrics"]
    finally:
        (run / "args.json.away").rename(run / "args.json")
    assert again == metrics
    compared = json.loads(command("compare", run, run, "--json"))["difference"]
    assert {name: each["value"] for name, each in compared.items()} == dict.fromkeys(metrics, 0)


def test_it_is_trained_further_and_said_what_is_learned(run, files, capsys):
    assert scripts.main(train_sft, task="classify", problem="multi", init=run, inspect=3, **files) == 0
    assert ", label " in capsys.readouterr().out
    task = load(**files)
    saved = checkpoint.open_checkpoint(run)
    model = saved.load(task.head, saved.matching_classes(task.classes))
    assert model.head_is_trained
    probabilities = evaluate.classify(model, load_tokenizer(run), [("the furious film",)])
    assert labels_over(0.5, dict(zip(model.classes, probabilities[0], strict=True))).labels == ("anger",)


def test_what_does_not_go_together(run, files, write):
    with pytest.raises(UserError, match="--class-weights is for --problem single"):
        MultiLabel(Options(files["train"], problem="multi", class_weights="balanced"), 0)
    with pytest.raises(UserError, match="problem_type='multi_label_classification' is not supported, only"):
        checkpoint.load(run, "classify")
