"""The options of optimisation: what each of them does to a step, and that a run with any of them can be resumed."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import scripts
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scripts import FEW, SMALL
from test_resume import STEPS, assert_equal_runs, interrupt_at_step
from tiny import batch_of, bert_config, gpt, gpt_config, gradients, packed, sequences, shake
from torch import nn

import minillm.curves
import train_rl
import train_sft
from minillm import lora, optim
from minillm.batching import IGNORE
from minillm.device import Placement, settle
from minillm.errors import UserError
from minillm.files import read_tensors
from minillm.gpt import GPT
from minillm.heads import MaskedLM, SequenceClassifier, TokenClassifier
from minillm.modernbert import ModernBERTConfig
from minillm.objective import backward
from minillm.optim import Average, freeze
from minillm.options import Optimisation, Supervised, check_optimisation
from minillm.published import checkpoint
from minillm.session import SCHEDULES, Session, schedule
from minillm.tasks import Pronounce

CPU = torch.device("cpu")
MODERN = ModernBERTConfig(11, max_seq_len=16, num_layers=3, width=16, num_heads=4, window=3, classifier_dropout=0.2)
MODELS = {
    "gpt": lambda: gpt(dropout=0.2, attention_dropout=0.2),
    "bert": lambda: shake(MaskedLM(bert_config(dropout=0.2, attention_dropout=0.2))),
    "modernbert": lambda: shake(TokenClassifier(MODERN, "abc")),
    "classifier": lambda: shake(SequenceClassifier(bert_config(dropout=0.2, attention_dropout=0.2), "abc")),
}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


def batch_for(model: nn.Module, lengths=(5, 1, 7), seed=0):
    tokens, packing = packed(sequences(lengths, seed))
    if isinstance(model, SequenceClassifier):
        return batch_of(tokens, packing, labels=torch.arange(len(lengths)) % 3)
    targets = tokens % 3 if isinstance(model, TokenClassifier) else tokens.roll(-1)
    return batch_of(tokens, packing, targets.where(torch.arange(len(tokens)) != 2, IGNORE))


# ---- label smoothing -----------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_label_smoothing_is_that_of_pytorch(make, smoothing):
    model = make().eval()
    batch = batch_for(model)
    found = model(batch.tokens, batch.packing)
    logits = model.logits(found) if hasattr(model, "logits") else found
    targets = batch.labels if len(batch.labels) else batch.targets
    truth = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(model.loss(batch, label_smoothing=smoothing), truth)
    truth.sum().mul(0.25).backward()
    expected = gradients(model)
    assert backward(model, batch, 0.25, label_smoothing=smoothing) == pytest.approx(float(0.25 * truth.sum().detach()))
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-9)


# ---- checkpointing and compiling -----------------------------------------------------------------


def settled(model, checkpointing=False, compiled=False, dtype=torch.float64):
    settle(model, Placement(CPU, dtype, "", []), checkpointing, compiled)
    return model


@every_model
@pytest.mark.parametrize("with_lora", [False, True])
def test_checkpointing_changes_no_bit(make, with_lora):
    """With dropout of both kinds, whose numbers are drawn again; and it keeps less."""
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = lora.adapted(make(), 2) if with_lora else make()
        settled(model.train(), checkpointing)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            loss = model.loss(batch_for(model), 0.5)
        loss.sum().backward()
        results.append((loss, gradients(model), torch.rand(2), sum(kept)))
    (loss, expected, dice, much), (other, found, others, little) = results
    assert torch.equal(loss, other)
    assert torch.equal(dice, others)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert little < 0.7 * much


def test_checkpointing_is_for_training_only(monkeypatch):
    model = settled(gpt(), checkpointing=True)
    monkeypatch.setattr(
        "minillm.layers.checkpoint", lambda *_: pytest.fail("without gradients there is nothing to keep")
    )
    with torch.no_grad():
        model(*packed(sequences((3, 4))))


@pytest.fixture
def graphs(monkeypatch):
    """What is compiled, each graph then run as it is."""
    found = []

    def backend(graph, _):
        found.append(graph)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: real(function, **{**how, "backend": backend}))
    implementations = sys.modules["kernels.attention"]._IMPLEMENTATIONS
    monkeypatch.setitem(implementations, "torch", implementations["torch"])
    yield found
    torch._dynamo.reset()


COMPILED = [  # a compiler takes its time
    pytest.param(make, checkpointing, marks=[] if (name, checkpointing) == ("gpt", True) else pytest.mark.slow)
    for name, make in MODELS.items()
    for checkpointing in (False, True)
]


@pytest.mark.parametrize(("make", "checkpointing"), COMPILED)
def test_compiled_blocks_compute_the_same(make, checkpointing, graphs):
    """Of batches of ever other lengths, whose graphs are all there after the first few."""
    model, plain = make().eval(), make().eval()
    settled(model, checkpointing, compiled=True)
    lengths = [[5, 1, 7], [16], [3, 3], [1], [2, 9, 4, 1]]
    for i in range(12):
        batch = batch_for(model, lengths[i % 5] + [1 + i] * (i % 3), seed=i)
        for each in (model, plain):
            each.loss(batch, 0.5).sum().backward()
        for (name, found), expected in zip(gradients(model).items(), gradients(plain).values(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9, msg=name)
        if i == 4:
            count = len(graphs)
    assert 0 < count == len(graphs)


def test_without_a_compiler_one_is_told(monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("minillm.device.torch.compile", no_compiler)
    with pytest.raises(UserError, match="--compile cannot work here: no compiler"):
        settled(gpt(), compiled=True)


# ---- frozen layers, decay, clipping --------------------------------------------------------------


@every_model
@pytest.mark.parametrize("count", [0, 1, 2])
def test_frozen_layers_are_embeddings_and_the_first_blocks(make, count):
    model = make()
    freeze(model, count)
    model.loss(batch_for(model), 0.5).sum().backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in model.named_parameters() if p.grad is None}
    plain = {name.removeprefix("encoder.") for name in frozen}
    assert {name.split(".")[1] for name in plain if name.startswith("blocks.")} == {str(i) for i in range(count)}
    assert {name.split(".")[0] for name in plain} <= {"tokens", "positions", "segments", "embedding_norm", "blocks"}
    assert "tokens.weight" in plain


def test_more_frozen_layers_than_there_are():
    with pytest.raises(ValueError, match="has 2 blocks, of which no 3"):
        freeze(gpt(), 3)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_what_decays_are_matrices_that_learn(name):
    """One step without gradients of any size: what shrinks, shrinks by lr · decay."""
    model = SequenceClassifier(bert_config(), "ab") if name == "adamw-head" else gpt(bias=True, positions="learned")
    freeze(model, 1)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optim.OPTIMIZERS[name](model, 0.1, 0.05, 0.5):
        optimizer.step()
    for key, p in model.named_parameters():
        main = key.startswith("encoder.") if name == "adamw-head" else "blocks." in key
        rate = (0.1 if main else 0.05) * 0.5 if p.ndim == 2 and p.requires_grad else 0.0
        torch.testing.assert_close(p.detach(), before[key] * (1 - rate), msg=key)


def session_of(model, optimizers, **budget):
    return Session(SimpleNamespace(**budget), None, model, optimizers, None)


def test_gradients_are_cut_to_a_norm():
    model = gpt()
    session = session_of(model, [torch.optim.SGD(model.parameters(), lr=1.0)])
    for clip in (None, 1e-3, 1e9):
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        backward(model, batch_for(model), 1.0)
        whole = torch.cat([p.grad.flatten() for p in model.parameters()])
        assert session.update(clip) == pytest.approx(float(whole.norm()))
        moved = before - torch.cat([p.detach().flatten() for p in model.parameters()])
        expected = whole if clip != 1e-3 else whole * 1e-3 / whole.norm()
        torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-9)


# ---- averages and schedules ----------------------------------------------------------------------


def test_the_average_of_the_weights():
    model = gpt(num_layers=1)
    average, weight = Average(model, 0.5), model.tokens.weight
    expected = None
    for step in range(1, 9):
        weight.data.normal_()
        average.step()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = weight.clone() if expected is None else decay * expected + (1 - decay) * weight
    last = weight.clone()
    average.swap()
    torch.testing.assert_close(weight, expected)
    average.swap()
    assert torch.equal(weight, last)


def test_the_average_has_only_what_learns():
    model = lora.adapted(gpt(), 2)
    average = Average(model, 0.9)
    average.step()
    assert len(average.state) == 2 * len(lora.adapters(model))


@pytest.mark.parametrize("shape", SCHEDULES)
def test_schedules_rise_and_fall(shape):
    values = [schedule(i / 1000, 0.1, shape) for i in range(1101)]
    assert values[:101] == pytest.approx([i / 100 for i in range(101)])
    assert all(a >= b for a, b in pairwise(values[100:]))
    assert values[1000] == values[1100] == pytest.approx(float(shape == "constant"), abs=1e-12)


def test_points_of_the_schedules():
    def points(shape):
        return [schedule(share, 0.0, shape) for share in (0.0, 0.25, 0.5, 0.8, 0.85, 0.95)]

    assert points("linear") == pytest.approx([1, 0.75, 0.5, 0.2, 0.15, 0.05])
    assert points("cosine") == pytest.approx([1, 0.853553, 0.5, 0.095492, 0.054497, 0.006156], abs=1e-6)
    assert points("wsd") == pytest.approx([1, 1, 1, 1, 0.5, 1 - 0.75**0.5])


# ---- options that make no sense ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lora": 0}, "--lora 0 must be positive"),
        ({"clip": -1.0}, "--clip -1.0 must be positive"),
        ({"lr": float("nan")}, "--lr nan must be positive"),
        ({"warmup": 1.0}, "--warmup 1.0 must be a share of the training"),
        ({"freeze": -1}, "--freeze -1 must be 0 or more"),
        ({"weight_decay": -0.1}, "--weight-decay -0.1 must be 0 or more"),
        ({"weight_decay": float("nan")}, "--weight-decay nan must be 0 or more"),
    ],
)
def test_options_that_make_no_sense(options, sentence):
    with pytest.raises(UserError, match=sentence):
        check_optimisation(Optimisation(**options))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0 must be a share"),
        ({"ema": -0.5}, "--ema -0.5 must be a share"),
        ({"embedding_lr": 0.0}, "--embedding-lr 0.0 must be positive"),
        ({"lora": 4}, "--lora and --freeze keep what a model knows: name it with --init"),
        ({"freeze": 0}, "--lora and --freeze keep what a model knows: name it with --init"),
        ({"schedule": "quadratic"}, "--schedule quadratic is not one of"),
    ],
)
def test_options_of_supervised_learning_that_make_no_sense(options, sentence):
    assert issubclass(train_sft.Args, Supervised)
    with pytest.raises(UserError, match=sentence):
        train_sft.check(train_sft.Args(**options))


# ---- whole runs ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)  # slow, and not what this is about
    made_up = lambda self, _, answers: {"made up": [len(a) % 3 / 2 for a in answers]}  # noqa: E731
    monkeypatch.setattr(Pronounce, "reward", made_up)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return scripts.write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def start(tmp_path_factory, words):
    folder = tmp_path_factory.mktemp("start") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(minillm.curves, "draw", lambda *_: None)
        assert scripts.main(train_sft, **words, **{**SMALL, "layers": 2}, steps=STEPS, out=folder) == 0
    return folder


RUNS = {
    "lora": {"lora": 3},
    "lora and an average, the best of it": {"lora": 3, "ema": 0.8, "keep": "best", "weight_decay": 0.1},
    "frozen and recomputed": {"freeze": 1, "checkpointing": True, "dropout": 0.2},
    "frozen, lora, muon": {"freeze": 1, "lora": 2, "optimizer": "muon", "embedding_lr": 0.01},
    "average": {"ema": 0.8, "clip": 0.1, "schedule": "wsd", "label_smoothing": 0.1},
}
BY_REWARD = {"lora": {"lora": 3, "clip": 0.5}, "frozen": {"freeze": 1, "schedule": "cosine", "weight_decay": 0.1}}
CASES = [
    *(pytest.param(train_sft, options, id=name) for name, options in RUNS.items()),
    *(pytest.param(train_rl, options, id=f"{name}, by reward") for name, options in BY_REWARD.items()),
]


def options_for(script, start, words):
    by_reward = {"task": "pronounce", **FEW}
    small = {name: SMALL[name] for name in ("batch_tokens", "precision", "evaluations")}
    own = {**words, **small} if script is train_sft else by_reward
    return {**own, "init": start, "steps": STEPS, "lr": 0.02}


@pytest.mark.parametrize(("script", "chosen"), CASES)
def test_resumed_is_not_interrupted(script, chosen, start, words, monkeypatch):
    options = {**options_for(script, start, words), **chosen}
    assert scripts.main(script, **options, out="whole") == 0
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 5)
        assert scripts.main(script, **options, out="cut") == 130
    saved = read_tensors(Path("cut/checkpoint.safetensors"))
    if "lora" in chosen:  # what is frozen is not written again and again
        assert all("lora_" in name for name in saved if name.startswith("model."))
    assert scripts.main(script, resume="cut") == 0
    assert_equal_runs("whole", "cut")
    assert not Path("cut/start.safetensors").exists()
    if "lora" in chosen:
        first, second = (load_file(f"{run}/adapter/adapter_model.safetensors") for run in ("whole", "cut"))
        assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("script", [train_sft, train_rl], ids=["sft", "rl"])
def test_a_run_with_lora_holds_a_model_like_any_other(script, start, words):
    assert scripts.main(script, **options_for(script, start, words), lora=3, out="run") == 0
    before, after = (load_file(f"{folder}/model.safetensors") for folder in (start, "run"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in lora.adapters(lora.adapted(checkpoint.load(start), 3))}
    settings = json.loads(Path("run/adapter/adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (3, 32)
    assert settings["base_model_name_or_path"] == str(start)
    # and it can be gone on from, with pairs or without
    assert scripts.main(train_sft, **options_for(train_sft, "run", words), lora=2, out="next") == 0


def test_loras_learning_rate_is_ten_times_that_of_the_recipe(start, words):
    rates = {}
    for rank in (None, 3):
        options = {**options_for(train_sft, start, words), "lr": None}
        assert scripts.main(train_sft, **options, lora=rank, out=f"run{rank}") == 0
        rates[rank] = json.loads(Path(f"run{rank}/args.json").read_text())["lr"]
    assert rates[3] == pytest.approx(10 * rates[None])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"lora": 17}, "--lora 17: rank 17 is not between 1 and 16"),
        ({"freeze": 3}, "--freeze 3: the model has 2 blocks"),
    ],
)
def test_what_does_not_suit_the_model_is_refused(options, sentence, start, words, capsys):
    assert scripts.main(train_sft, **options_for(train_sft, start, words), **options, out="run") == 2
    assert sentence in capsys.readouterr().err
    assert not Path("run").exists()


def test_the_averaged_weights_are_judged_and_saved(start, words, monkeypatch):
    """They are no step's: with a decay near 1 they have hardly moved where the weights have."""
    judged, real = [], Pronounce.answer
    first = load_file(start / "model.safetensors")

    def distance(model):
        return float((dict(model.named_parameters())["tokens.weight"] - first["tokens.weight"]).abs().max())

    monkeypatch.setattr(
        Pronounce, "answer", lambda self, model, *rest: judged.append(model) or real(self, model, *rest)
    )
    norms = []
    for decay in (None, 0.2):
        assert scripts.main(train_sft, **options_for(train_sft, start, words), ema=decay, out=f"run{decay}") == 0
        norms.append(distance(checkpoint.load(Path(f"run{decay}"))))
        assert distance(judged[-1]) == pytest.approx(norms[-1])
    assert 0 < norms[1] != norms[0]


def test_gpt_has_what_the_options_need():
    """A plain one, as train_rl.py makes it."""
    assert GPT(gpt_config()).pretrained == ("",)
