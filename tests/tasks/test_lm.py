"""Language modelling: every token of a text is predicted once, from as much as was promised, and scored rightly."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scripts import SMALL

import minillm.curves
import train_sft
from kernels import Packing
from minillm.baselines import NGrams
from minillm.batching import IGNORE, example_rng, pack
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.heads import MaskedLM
from minillm.metrics import Interval
from minillm.tasks.lm import LanguageModelling, Options, Window, cut
from minillm.tasks.mlm import MaskedLanguageModelling
from minillm.tasks.mlm import Options as MaskedOptions

TEXT = "the cat sat on the mat; the dog sat on the cat. " * 12


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT)
    (tmp_path / "dev.txt").write_text(TEXT[:100])
    return {"train": tmp_path / "train.txt", "dev": tmp_path / "dev.txt"}


@pytest.fixture
def lm(files):
    """The task with a model from scratch that reads 16 tokens, of random weights."""
    task = LanguageModelling(Options(**files, context=16), seed=0)
    tokenizer = task.tokenizer()
    torch.manual_seed(0)
    model = GPT(GPTConfig(tokenizer.vocab_size, 16, num_layers=1, width=16, num_heads=2)).double()
    torch.nn.init.normal_(model.output.weight)
    task.adapt(model, tokenizer)
    return task, model, tokenizer


# ---- windows -------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(2, 40), st.data())
def test_every_token_but_the_first_is_predicted_once(length, context, data):
    step = data.draw(st.integers(1, context))
    ids = np.arange(length)
    windows = list(cut(ids, 3 * length, context, step))
    predicted = [token for window in windows for token in ids[window.first : window.stop]]
    assert predicted == list(range(1, length))
    for window in windows:
        targets = window.document.targets
        assert 1 <= len(window.document.tokens) <= context
        assert [t for t in targets if t != IGNORE] == list(range(window.first, window.stop))
        assert window.start == 0 or window.first - window.start > context - step  # so much is read before, at least
        for token, target in zip(window.document.tokens, targets, strict=True):
            assert target in (token + 1, IGNORE)
    assert sum((window.stop - window.first) * window.characters for window in windows) == pytest.approx(
        3 * length * (length > 1)
    )


@given(st.integers(2, 120), st.integers(2, 30), st.integers(0, 10**6))
def test_drawn_windows_lie_in_the_text_and_predict_all_they_read(length, context, seed):
    for window in cut(np.arange(length), length, context, context):
        document = window.drawn(np.random.default_rng(seed), context).document
        assert len(document.tokens) == min(context, length - 1)
        assert list(document.targets) == [token + 1 for token in document.tokens]
        assert 0 <= document.tokens[0] <= document.targets[-1] < length


def test_in_training_all_of_a_text_is_seen_as_often():
    counts = np.zeros(500)
    for seed in range(400):
        for i, window in enumerate(cut(np.arange(500), 500, 50, 50)):
            counts[list(window.drawn(example_rng(seed, 0, i), 50).document.targets)] += 1
    assert counts[0] == 0
    assert 0.9 < counts[60:440].mean() / 400 < 1.1
    assert counts[1:].min() > 0.4 * 400


def test_records_are_texts_of_their_own(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in ("abc", "cab a", "b", "bb", "aa")))
    path.with_name("b.jsonl").write_text('{"body": "ba"}\n')
    task = LanguageModelling(Options(path, path.with_name("b.jsonl"), fields="text=body"), 0)
    tokenizer = task.tokenizer()
    task.adapt(GPT(GPTConfig(tokenizer.vocab_size, 8, num_layers=1, width=8, num_heads=1)), tokenizer)
    documents = [window.document for window in task.splits.train]
    assert [tokenizer.decode(document.tokens) for document in documents] == ["abc", "cab a", "b", "bb", "aa"]
    assert all(document.targets[-1] == tokenizer.end for document in documents)


# ---- scores --------------------------------------------------------------------------------------


@torch.no_grad()
def test_nats_are_those_of_each_token_alone(lm):
    task, model, tokenizer = lm
    windows = task.splits.dev
    scored = task.answer(model, tokenizer, windows)
    assert sum(each.tokens for each in scored) == 99
    for window, each in zip(windows, scored, strict=True):
        ids = torch.from_numpy(window.text[window.start : window.stop].astype(np.int64))
        logits = model.logits(model(ids[:-1], Packing.from_lengths([len(ids) - 1]))).log_softmax(dim=-1)
        losses = -logits[torch.arange(len(ids) - 1), ids[1:]]
        assert each.nats == pytest.approx(float(losses[window.first - window.start - 1 :].sum()), rel=1e-6)
    measured = task.measure(windows, scored)
    nats = sum(each.nats for each in scored) / 99
    assert measured["nats"].value == pytest.approx(nats)
    assert measured["perplexity"].value == pytest.approx(math.exp(nats))
    assert measured["bits_per_character"].value == pytest.approx(nats * 99 / 100 / math.log(2))


def test_n_grams_stand_beside_the_result(lm):
    """Of a text that repeats itself they foresee nearly all; each token once, behind those before it."""
    task, _, _ = lm
    found = task.baselines(task.splits.dev)["n_grams"]
    (text,) = {id(window.text): window.text for window in task.splits.dev}.values()
    (train,) = {id(window.text): window.text for window in task.splits.train}.values()
    counted = NGrams([train.tolist()], 5)
    ids = text.tolist()
    truth = -sum(math.log(counted.probability(ids[max(0, i - 4) : i], ids[i])) for i in range(1, len(ids)))
    assert found.value == pytest.approx(truth / (len(ids) - 1))
    assert found.value < 0.5
    better, worse = Interval(0.1, 0.1, 0.1), Interval(9.0, 9.0, 9.0)
    assert task.remarks({"nats": better, "n_grams": found}) == []
    assert "5 tokens foresees more" in task.remarks({"nats": worse, "n_grams": found})[0]


def test_what_is_masked_is_what_is_asked_for(files):
    task = MaskedLanguageModelling(MaskedOptions(**files, context=20, masked=0.3), 0)
    tokenizer = task.tokenizer()
    model = task.new_model(tokenizer, type("Shape", (), {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0}))
    task.adapt(model, tokenizer)
    kinds = np.zeros(3)
    for seed in range(60):
        for i, window in enumerate(task.splits.train):
            (document,) = task.documents(window, tokenizer, example_rng(seed, 0, i))
            tokens, targets = np.array(document.tokens), np.array(document.targets)
            assert tokens[[0, -1]].tolist() == [tokenizer.id_of("cls"), tokenizer.id_of("sep")]
            assert len(tokens) <= 20
            asked = targets != IGNORE
            assert asked.any()
            assert not asked[[0, -1]].any()
            assert tokenizer.mask not in targets
            assert not np.any((tokens == tokenizer.mask) & ~asked)
            masked, same = tokens[asked] == tokenizer.mask, tokens[asked] == targets[asked]
            kinds += [asked.sum(), masked.sum(), same.sum()]
    assert kinds[1] / kinds[0] == pytest.approx(0.8, abs=0.03)
    assert kinds[2] / kinds[0] == pytest.approx(0.1, abs=0.03)
    assert task.answer(model, tokenizer, task.splits.dev) == task.answer(model, tokenizer, task.splits.dev)


def test_a_document_changes_nothing_of_another(lm):
    task, model, _ = lm
    documents = [window.document for window in task.splits.train[:6]]
    together = model.loss(pack(documents))
    alone = torch.cat([model.loss(pack([document])) for document in documents])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


# ---- files and trainings -------------------------------------------------------------------------


def test_without_dev_the_end_of_a_text_is_held_out(files):
    task = LanguageModelling(Options(files["train"]), 0)
    (train,), (dev,) = task.splits.train, task.splits.dev
    assert train.text + dev.text == TEXT
    assert len(dev.text) == len(TEXT) - round(0.9 * len(TEXT))
    assert task.notes == ["--dev is not given: the last 10% of --train are held out"]


def test_wrong_texts_and_options(files, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.jsonl").write_text('{"text": "a"}\n')
    for options, sentence in (
        (Options(tmp_path / "empty.txt"), r"empty\.txt holds no text"),
        (Options(**files, context=1), "--context 1 must be at least 2"),
        (Options(), "--task lm learns from your own examples: give --train FILE"),
        (Options(tmp_path / "none.txt", files["dev"]), r"cannot read .*none\.txt"),
    ):
        with pytest.raises(UserError, match=sentence):
            LanguageModelling(options, 0)
    with pytest.raises(UserError, match=r"--masked 1\.0 must be a share"):
        MaskedLanguageModelling(MaskedOptions(**files, masked=1.0), 0)


def test_a_model_that_reads_less_or_other_symbols(files, lm):
    _, model, tokenizer = lm
    task = LanguageModelling(Options(**files, context=17), 0)
    with pytest.raises(UserError, match="--context 17 is more than the 16 tokens that the model reads"):
        task.adapt(model, tokenizer)
    files["train"].write_text("ÄÖÜ" * 30)
    with pytest.raises(UserError, match="does not know what --task lm is to read: the symbol 'Ä'"):
        LanguageModelling(Options(**files), 0).adapt(model, tokenizer)


@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_a_training_learns_and_goes_on_from_its_run(files, tmp_path, monkeypatch, task):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    kind = (Options if task == "lm" else MaskedOptions)(**files, context=24)
    shape = SMALL | {"width": 32, "batch_tokens": 256}
    run = train_sft.train(train_sft.Args(task=task, steps=60, out=tmp_path / "run", options=kind, **shape))
    command = {
        "lm": f'generate {run.folder} --prompt "how a text begins"',
        "mlm": f'fill {run.folder} "a text with a [MASK]"',
    }
    assert json.loads(run.path("report.json").read_text())["next"] == f"python -m minillm {command[task]}"
    losses = [record["loss"] for record in run.read_log() if "loss" in record]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    more = train_sft.Args(task=task, init=tmp_path / "run", steps=2, out=tmp_path / "more", options=kind)
    assert json.loads(train_sft.train(more).path("metrics.json").read_text())["dev_nats"] > 0


def test_masked_models_are_of_their_own_kind(files):
    task = MaskedLanguageModelling(MaskedOptions(**files), 0)
    tokenizer = task.tokenizer()
    shape = type("Shape", (), {"layers": 1, "width": 16, "heads": 2, "dropout": 0.0})
    assert isinstance(task.new_model(tokenizer, shape), MaskedLM)
    assert isinstance(Window(np.arange(3), 0, 1, 3, 1.0).document.tokens, list)
