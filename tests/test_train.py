"""Both scripts called from Python: a task of one's own, starts of every kind, mistakes that come as exceptions."""

import dataclasses
import json
import string
from pathlib import Path

import pytest
import scripts
import torch
from rich.console import Console
from safetensors.torch import load_file
from scripts import FEW, SMALL

import minillm.curves
import minillm.tasks.arithmetic as arithmetic
import train_rl
import train_sft
from minillm import episodes, held_out
from minillm.batching import IGNORE
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.metrics import rate
from minillm.published import checkpoint
from minillm.run import Run
from minillm.session import schedule
from minillm.start import open_start
from minillm.tasks import TASKS
from minillm.tasks.base import Example, Splits, WritingTask
from minillm.tokenizer import SymbolTokenizer

GPT2 = Path(__file__).resolve().parents[2] / "shared" / "data" / "bpe_gpt2"


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    """In an empty folder, without pictures, with few examples held out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)
    monkeypatch.setattr(arithmetic, "HELD_OUT", 30)


# ---- a task of one's own -------------------------------------------------------------------------


class Shout(WritingTask):
    """Two letters, to be said again in capitals: `ab:` → `AB`."""

    name = "shout"
    headline = "accuracy"

    def __init__(self, options, seed):
        pairs = [a + b for a in "abcdefgh" for b in "abcdefgh"]
        examples = [Example(f"{pair}:", (pair.upper(),)) for pair in pairs]
        self.splits = Splits(examples[::2], examples[1::2], [])

    def tokenizer(self):
        return SymbolTokenizer("shout", r"[\s\S]", string.ascii_letters + ":")

    def recipe(self, model, minutes):
        if model:
            return super().recipe(model, minutes)
        shape = {"layers": 1, "width": 32, "heads": 2, "dropout": 0.0}
        rates = {"optimizer": "adamw", "lr": 0.01, "embedding_lr": 0.01, "warmup": 0.1}
        return {**shape, **rates, "batch_tokens": 256, "steps": 24}

    def reward(self, examples, answers):
        pairs = zip(examples, answers, strict=True)
        return {"letters": [(len(a) == 2) * sum(map(str.__eq__, e.answers[0], a)) / 2 for e, a in pairs]}

    def measure(self, examples, answers):
        return {"accuracy": rate([a in e.answers for e, a in zip(examples, answers, strict=True)])}


def register(monkeypatch, task):
    monkeypatch.setitem(TASKS, task.name, task)


def metrics_of(run):
    return json.loads(run.path("metrics.json").read_text())


def test_a_task_of_ones_own_is_trained_by_both_scripts(monkeypatch):
    register(monkeypatch, Shout)
    start = train_sft.train(train_sft.Args(task="shout", precision="fp32"))
    assert start.folder == Path("runs/shout-sft")
    assert metrics_of(start)["steps"] == 24
    learned = metrics_of(start)["dev_accuracy"]
    assert 0 < learned < 1  # it learned something, and there is more to learn
    run = train_rl.train(
        train_rl.Args(task="shout", init=start.folder, steps=40, prompts=16, samples=8, lr=0.003, precision="fp32")
    )
    metrics = metrics_of(run)
    assert metrics["start_dev_accuracy"] == learned
    assert metrics["dev_accuracy"] > 0
    rewards = [record["reward"] for record in run.read_log() if "reward" in record]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1
    more = train_sft.train(train_sft.Args(task="shout", init=run.folder, steps=2))  # and back
    assert load_file(more.path("model.safetensors")).keys() == load_file(run.path("model.safetensors")).keys()


def test_a_task_whose_documents_are_redrawn_sees_others_in_every_epoch(monkeypatch):
    """Which of two capitals is asked for is drawn: of (seed, epoch, index), so that it can be resumed."""

    class Changing(Shout):
        name = "changing"
        is_redrawn = True

        def documents(self, example, tokenizer, rng):
            (document,) = super().documents(example, tokenizer, rng)
            drawn.append(int(rng.integers(10**9)))
            targets = [IGNORE if target != IGNORE and rng.random() < 0.5 else target for target in document.targets]
            return [dataclasses.replace(document, targets=[*targets[:-1], document.targets[-1]])]

    drawn = []
    register(monkeypatch, Changing)
    args = train_sft.Args(task="changing", epochs=3, batch_tokens=64, precision="fp32")
    first = train_sft.train(args)
    assert len(drawn) == 3 * 32  # an epoch at a time
    assert len(set(drawn)) == len(drawn)
    seen = list(drawn)
    second = train_sft.train(args)
    assert drawn[len(seen) :] == seen
    one, two = (load_file(run.path("model.safetensors")) for run in (first, second))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_epochs_are_so_many_steps(monkeypatch):
    register(monkeypatch, Shout)
    for epochs, steps in ((1.0, 4), (2.0, 8), (0.01, 1)):  # 32 examples of 5 tokens
        run = train_sft.train(train_sft.Args(task="shout", epochs=epochs, batch_tokens=50, precision="fp32"))
        assert metrics_of(run)["steps"] == steps
        assert run.options()["epochs"] is None  # decided: it is so many steps
    run = train_sft.train(train_sft.Args(task="shout", epochs=1.0, batch_examples=8, precision="fp32"))
    assert (metrics_of(run)["steps"], run.options()["batch_tokens"]) == (4, 40)


def test_pieces_of_a_step_train_the_same_model(monkeypatch):
    """Up to the rounding of float32 over ten steps."""
    register(monkeypatch, Shout)
    whole, pieces = (
        train_sft.train(train_sft.Args(task="shout", steps=10, micro_tokens=micro, precision="fp32"))
        for micro in (None, 20)
    )
    losses = [[record["loss"] for record in run.read_log() if "loss" in record] for run in (whole, pieces)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


# ---- published models, and runs of old -----------------------------------------------------------


def letters_of_bytes():
    """As GPT-2 writes the 256 bytes: those that can be seen as themselves, the others as letters beyond."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return {byte: chr(byte if byte in seen else next(rest)) for byte in range(256)}


def published(folder, vocabulary):
    """A tiny GPT-2 in Hugging Face's layout, with a vocabulary of bytes or GPT-2's own."""
    if vocabulary == "GPT-2's" and not GPT2.is_dir():
        pytest.skip("shared/data/bpe_gpt2 is not beside the checkout")
    size = 50257 if vocabulary == "GPT-2's" else 257
    torch.manual_seed(0)
    model = GPT(GPTConfig(size, 32, 1, 16, 2, positions="learned", bias=True, dropout=0.1))
    checkpoint.save(model, folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    if vocabulary == "GPT-2's":
        for name in ("encoder.json", "vocab.bpe"):
            (folder / name).write_bytes((GPT2 / name).read_bytes())
    else:
        ids = {letter: byte for byte, letter in letters_of_bytes().items()} | {"<|endoftext|>": 256}
        (folder / "vocab.json").write_text(json.dumps(ids))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize("vocabulary", ["bytes", "GPT-2's"])
def test_a_published_model_learns_a_task_by_both_scripts(tmp_path, vocabulary):
    folder = published(tmp_path / "gpt2", vocabulary)
    args = {"task": "arithmetic", "precision": "fp32", "evaluations": 1}
    run = train_sft.train(train_sft.Args(**args, init=folder, steps=3, options=arithmetic.Options(40)))
    assert run.options()["dropout"] is None  # as the model came
    model = checkpoint.load(run.folder)
    assert model.config == checkpoint.load(folder).config
    task = arithmetic.Arithmetic(arithmetic.Options(40), 0)
    ours, theirs = (open_start(path, task)[1] for path in (run.folder, folder))
    text = "83+04=087"
    assert ours.encode(text) == theirs.encode(text)
    assert (ours.end, ours.vocab_size) == (theirs.end, theirs.vocab_size)
    before, after = (load_file(path / "model.safetensors") for path in (folder, run.folder))
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert after.keys() == before.keys()

    more = train_rl.train(train_rl.Args(**args, init=folder, steps=2, prompts=2, samples=2))
    assert metrics_of(more)["steps"] == 2
    kept = train_rl.train(train_rl.Args(**args, init=run.folder, steps=2, prompts=2, samples=2))
    assert kept.options()["examples"] == 40  # the data of the run it starts from


def test_transformers_reads_what_was_learned(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = published(tmp_path / "gpt2", "bytes")
    run = train_sft.train(train_sft.Args(task="arithmetic", init=folder, steps=1, precision="fp32"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run.folder)
    ours = checkpoint.load(run.folder)
    assert torch.equal(theirs.transformer.wte.weight, ours.tokens.weight)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return scripts.write_words(tmp_path_factory.mktemp("words"))


def options_of_words(words):
    return TASKS["pronounce"].Options(words["train"], words["dev"])


@pytest.fixture
def old_run(tmp_path, words):
    """A finished run as train_sft.py left it when its options lay side by side and were not said to be of a script."""
    folder = tmp_path / "old"
    args = train_sft.Args(out=folder, **SMALL, steps=2, options=options_of_words(words))
    run = train_sft.train(args)
    saved = run.options() | dict.fromkeys(("fields", "model", "examples")) | {"symbols": "data"}
    for name in ("script", "batch_examples", "epochs", "micro_tokens", "optimizer", "keep"):
        del saved[name]
    run.path("args.json").write_text(json.dumps(saved))
    run.path("checkpoint.safetensors").write_bytes(b"what went on from here cannot be read any more")
    return folder


def test_an_old_run_is_a_start_for_both_scripts(old_run, words):
    run = train_sft.train(train_sft.Args(init=old_run, steps=1, options=options_of_words(words), precision="fp32"))
    assert checkpoint.load(run.folder).config == checkpoint.load(old_run).config
    rl = train_rl.train(train_rl.Args(task="pronounce", init=old_run, steps=1, **FEW))
    assert rl.options()["train"] == str(words["train"])  # the data of the run it starts from
    assert rl.options()["symbols"] == "data"


def test_a_model_of_other_symbols_is_refused(old_run, words):
    sums = train_sft.train(train_sft.Args(task="arithmetic", **SMALL, steps=1, options=arithmetic.Options(20)))
    for task, init, symbol in (("arithmetic", old_run, r"'\d'"), ("pronounce", sums.folder, "'[a-z]'")):
        options = options_of_words(words) if task == "pronounce" else None
        with pytest.raises(
            UserError, match=f"--init {init}: this model does not know what --task {task} is .*: the symbol {symbol}"
        ):
            train_sft.train(train_sft.Args(task=task, init=init, steps=1, options=options, out=Path("no")))
    assert not Path("no").exists()


def test_a_published_model_that_is_too_short_is_refused(tmp_path):
    checkpoint.save(GPT(GPTConfig(257, 9, 1, 16, 2, positions="learned", bias=True)), tmp_path / "short")
    published(tmp_path / "long", "bytes")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "short" / name).write_bytes((tmp_path / "long" / name).read_bytes())
    for script in (train_sft, train_rl):
        with pytest.raises(UserError, match=r"max_seq_len=9 of the model is too short: .* takes up to 10 tokens"):
            script.train(script.Args(task="arithmetic", init=tmp_path / "short", steps=1))
    assert not list(Path("runs").glob("*"))


# ---- from Python ---------------------------------------------------------------------------------


@pytest.fixture
def sums(tmp_path):
    """A finished run of arithmetic."""
    args = train_sft.Args(task="arithmetic", out=tmp_path / "sums", **SMALL, steps=5, options=arithmetic.Options(20))
    return train_sft.train(args).folder


def test_rl_from_python(sums):
    run = train_rl.train(train_rl.Args(init=sums, steps=3, **FEW))
    assert metrics_of(run)["steps"] == 3
    steps = [record for record in run.read_log() if "reward" in record]
    assert abs(steps[0]["kl"]) < 1e-4  # but for rounding: the model is the one it starts from
    assert run.options()["script"] == "rl"
    assert not run.path("checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    ("names", "made_with"),
    [
        ([], {"out": Path("runs/arithmetic-sft")}),
        (["lock"], {"out": Path("runs/arithmetic-sft")}),
        (["lock", "config.json", "tokenizer.json", "args.json"], {"out": Path("runs/arithmetic-sft")}),
        (["args.json", "config.json", "checkpoint.safetensors"], {"resume": Path("runs/arithmetic-sft")}),
        (["args.json", "config.json", "checkpoint.safetensors", "metrics.json"], None),
    ],
    ids=["nothing", "lock", "beginning", "unfinished", "finished"],
)
def test_a_start_is_made_gone_on_with_or_taken(monkeypatch, names, made_with):
    """Whatever a process that made one and died has left."""
    folder, made = Path("runs/arithmetic-sft"), []
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    monkeypatch.setattr(train_sft, "train", lambda args, _: made.append(args) or Run(folder))
    assert train_rl.find_start(train_rl.Args(), Console(quiet=True)) == folder
    assert [{name: getattr(args, name) for name in made_with} for args in made] == ([made_with] if made_with else [])


def test_additions_of_more_digits_have_runs_of_their_own(monkeypatch):
    """Of the same name whichever script makes them."""
    monkeypatch.setattr(train_sft, "train", lambda args, _: Run(args.out))
    options = TASKS["arithmetic"].Options(digits=3)
    start = train_rl.find_start(train_rl.Args(options=options), Console(quiet=True))
    assert start == Path(f"runs/{TASKS['arithmetic'].variant(options)}-sft") != Path("runs/arithmetic-sft")


@pytest.mark.parametrize(
    ("script", "options", "sentence"),
    [
        (train_rl, {"samples": 1}, "--samples 1: the leave-one-out baseline needs at least 2"),
        (train_rl, {"prompts": 0}, "--prompts 0 must be positive"),
        (train_rl, {"temperature": 0.0}, r"--temperature 0\.0 must be positive"),
        (train_rl, {"temperature": 1e-40}, r"--temperature 1e-40 leaves nothing to chance; give at least 0\.001"),
        (train_rl, {"warmup": 1.0}, r"--warmup 1\.0 must be a share"),
        (train_rl, {"minutes": 1.0, "steps": 2}, "--minutes and --steps exclude each other"),
        (train_rl, {"task": "regress"}, "--task regress is not one of pronounce, arithmetic"),
        (train_rl, {"baseline": "mean"}, "--baseline mean is not one of none, moving-average"),
        (train_rl, {"precision": "fp8"}, "--precision fp8 is not one of"),
        (train_sft, {"steps": -1}, "--steps -1 must be positive"),
        (train_sft, {"epochs": 0.0}, r"--epochs 0\.0 must be positive"),
        (train_sft, {"task": "spelling"}, "--task spelling is not one of"),
        (train_sft, {"optimizer": "sgd"}, "--optimizer sgd is not one of muon, adamw, adamw-head"),
        (train_sft, {"keep": "first"}, "--keep first is not one of last, best"),
        (train_sft, {"kernels": "cuda"}, "--kernels cuda is not one of"),
        (
            train_sft,
            {"task": "pronounce", "options": TASKS["pronounce"].Options(symbols="mine")},
            "--symbols mine is not one of arpabet, data",
        ),
        (train_sft, {"seed": -1}, "--seed -1"),
        (train_sft, {"resume": Path("nowhere")}, "there is no run folder nowhere"),
    ],
)
def test_mistakes_are_exceptions_and_leave_nothing_behind(script, options, sentence):
    with pytest.raises(UserError, match=sentence):
        script.train(script.Args(**{"task": "arithmetic"} | options if "resume" not in options else options))
    assert not Path("runs").exists()


def test_one_sample_is_enough_without_a_baseline(sums):
    run = train_rl.train(train_rl.Args(init=sums, steps=2, prompts=4, samples=1, baseline="none", precision="fp32"))
    assert metrics_of(run)["steps"] == 2


def test_the_best_model_of_the_evaluations_is_kept(monkeypatch):
    """The second look is made to be the best."""
    register(monkeypatch, Shout)
    scores, weights = iter([0.1, 0.9, 0.5, 0.2]), []

    def score(task, measured):
        weights.append({name: p.clone() for name, p in current[0].named_parameters()})
        return next(scores)

    current, real = [], held_out.glance
    monkeypatch.setattr(held_out, "score_of", score)
    monkeypatch.setattr(
        held_out,
        "glance",
        lambda session, task, model, *rest: (current.append(model), real(session, task, model, *rest))[1],
    )
    run = train_sft.train(train_sft.Args(task="shout", steps=8, evaluations=4, keep="best", precision="fp32"))
    model = checkpoint.load(run.folder)
    assert len(weights) == 4
    assert all(torch.equal(weights[1][name], p) for name, p in model.named_parameters())
    assert any(not torch.equal(weights[3][name], p) for name, p in model.named_parameters())
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "args.json",
        "config.json",
        "log.jsonl",
        "metrics.json",
        "model.safetensors",
        "report.html",
        "report.json",
        "tokenizer.json",
    ]


@pytest.mark.parametrize(
    ("script", "args", "is_on"),
    [
        (train_sft, {"task": "arithmetic", "dropout": 0.1, "options": arithmetic.Options(20)}, True),
        (train_rl, {"prompts": 4, "samples": 4}, False),
    ],
    ids=["by example", "by reward"],
)
def test_dropout_is_on_by_example_and_off_by_reward(sums, monkeypatch, script, args, is_on):
    """Also where the model came in evaluation mode, and after looks at the dev set."""
    modes, real = [], script.backward
    monkeypatch.setattr(
        script, "backward", lambda model, *rest, **more: modes.append(model.training) or real(model, *rest, **more)
    )
    made_up = staticmethod(lambda _, answers: {"right": [float(i % 2) for i in range(len(answers))]})
    monkeypatch.setattr(arithmetic.Arithmetic, "reward", made_up)  # so that every step has something to learn
    script.train(script.Args(**args, init=sums, steps=4, evaluations=3, precision="fp32"))
    assert modes == [is_on] * 4


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_rates_rise_as_long_as_warmup_says(sums, warmup):
    common = {"init": sums, "steps": 4, "lr": 0.01, "warmup": warmup, "evaluations": 1, "precision": "fp32"}
    options = arithmetic.Options(20)
    runs = (
        train_sft.train(train_sft.Args(task="arithmetic", optimizer="adamw", options=options, **common)),
        train_rl.train(train_rl.Args(prompts=2, samples=2, **common)),
    )
    for run in runs:
        rates = [record["lr"] for record in run.read_log() if "lr" in record]
        assert rates == pytest.approx([0.01 * schedule((step + 0.5) / 4, warmup) for step in range(4)])


def test_reinforcement_draws_and_learns_at_its_temperature(sums, monkeypatch):
    drawn, learned, generate, backward = [], [], episodes.generate, train_rl.backward
    monkeypatch.setattr(episodes, "generate", lambda *args: drawn.append(args[4].temperature) or generate(*args))
    monkeypatch.setattr(train_rl, "backward", lambda *args: learned.append(args[3]) or backward(*args))
    made_up = staticmethod(lambda _, answers: {"right": [float(i % 2) for i in range(len(answers))]})
    monkeypatch.setattr(arithmetic.Arithmetic, "reward", made_up)  # so that every step has something to learn
    run = train_rl.train(train_rl.Args(init=sums, steps=2, watch=0, **FEW | {"temperature": 0.7}))
    assert drawn == learned == [0.7] * 2
    assert abs(run.read_log()[1]["kl"]) < 1e-4


@pytest.mark.parametrize(
    ("budget", "examples", "is_short"),
    [({"minutes": 1e-4}, None, True), ({"minutes": 0.02}, 20, False), ({"epochs": 0.1}, None, False)],
)
def test_where_the_time_was_short_it_is_said(tmp_path, budget, examples, is_short):
    """Of a task that has more examples than a fraction of a second suffices for."""
    options = arithmetic.Options(examples=examples)
    args = train_sft.Args(task="arithmetic", out=tmp_path / "run", options=options, **SMALL, **budget)
    remarks = json.loads(train_sft.train(args, Console(quiet=True)).path("report.json").read_text())["remarks"]
    assert any("sufficed for" in each and each.endswith("more is likely to help") for each in remarks) == is_short
