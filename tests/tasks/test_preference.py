"""Preferences from files to a model: what is read, what fits, what is learned, and that it goes on where it stopped."""

import dataclasses
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
import minillm.tasks.preference as preference
import train_sft
from minillm import evaluate
from minillm.batching import IGNORE
from minillm.errors import UserError
from minillm.gpt import GPT, GPTConfig
from minillm.heads import RewardModel
from minillm.metrics import Interval
from minillm.preference import METHODS
from minillm.published import checkpoint
from minillm.published.exchanges import Composer, longest_end
from minillm.published.subwords import letters_of_bytes
from minillm.session import Session
from minillm.start import open_start
from minillm.tasks.preference import Judged, Options, Pair, Preference
from minillm.tokenizer import SymbolTokenizer

pytest.importorskip("tokenizers")
TURNS = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}<|end|>\n{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}<assistant>{% endif %}"
FAST = {"task": "preference", "precision": "fp32", "evaluations": 2}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(minillm.curves, "draw", lambda *_: None)


def write(path, number, seed):
    """Questions with a kind answer, which was chosen, and an unkind one."""
    rng = random.Random(seed)
    lines = []
    for _ in range(number):
        name, thing = (rng.choice(words) for words in (["sun", "sea", "sky"], ["red", "big", "old", "far"]))
        prompt = f"is the {name} {thing} {rng.randint(0, 99)}"
        kind, rude = rng.choice(["please", "thankfully"]), rng.choice(["stupid", "nonsensical"])
        chosen, rejected = (f"{name} is {thing} {word}" for word in (kind, rude))
        lines.append(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    return {name: write(folder / f"{name}.jsonl", size, seed) for seed, (name, size) in enumerate(SIZES.items())}


SIZES = {"train": 90, "dev": 30, "test": 20}


def write_gpt(folder, template=TEMPLATE, max_seq_len=96):
    """A tiny GPT-2 of bytes, with a chat template or without."""
    folder.mkdir()
    tokens = [*letters_of_bytes(), "<|end|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    config = {"eos_token": "<|end|>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    config = GPTConfig(len(tokens), max_seq_len, 1, 32, 2, positions="learned", bias=True, dropout=0.1)
    checkpoint.save(GPT(config), folder)
    return folder


@pytest.fixture(scope="module")
def gpt_folder(tmp_path_factory):
    return write_gpt(tmp_path_factory.mktemp("gpt") / "gpt", template=None)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    return write_gpt(tmp_path_factory.mktemp("chat") / "gpt")


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Files for what is slow: a template runs in a process of its own."""
    folder = tmp_path_factory.mktemp("few")
    return {name: write(folder / f"{name}.jsonl", 4, seed) for seed, name in enumerate(("train", "dev"))}


def main(**options):
    return scripts.main(train_sft, **options)


def metrics_of(folder):
    return json.loads((folder / "metrics.json").read_text())


def opened(init, files, **options):
    task = Preference(Options(files["train"], files["dev"], **options), seed=0)
    model, tokenizer = open_start(init, task)
    task.adapt(model, tokenizer)
    return task, model.eval(), tokenizer


# ---- files ---------------------------------------------------------------------------------------


def read(tmp_path, *records, **options):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Preference(Options(path, **options), seed=0)


def pair(prompt, chosen="yes", rejected="no", **more):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def test_prompts_may_be_joined_and_are_held_out_as_a_whole(tmp_path):
    records = [
        pair("", f"yes{j}", "no", instruction=f"question {i}", input="" if i % 2 else "text")
        for i in range(20)
        for j in range(3)
    ]
    task = read(tmp_path, *records, fields="prompt=instruction+input")
    train, dev = ({each.prompt for each in split} for split in (task.splits.train, task.splits.dev))
    assert not train & dev
    assert len(dev) == 2
    assert {"question 0\ntext", "question 1"} <= train | dev
    assert len(task.splits.train) + len(task.splits.dev) == 60


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"train.jsonl:2 has no field 'rejected'"),
        (pair("a", chosen=""), r"train.jsonl:2: 'chosen' is empty"),
        (pair("a", rejected=[1]), r"train.jsonl:2: 'rejected' is \[1\]"),
    ],
)
def test_a_record_that_is_no_pair_is_named(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, pair("x"), record, pair("y"))


def test_equal_answers_are_left_out_and_said(tmp_path):
    task = read(tmp_path, *(pair(str(i)) for i in range(5)), pair("a", "same", "same"), pair("b", "s", "s"))
    assert "2 pairs are left out, as both answers are the same; the first is" in " ".join(task.notes)
    assert any("train.jsonl:6" in note for note in task.notes)
    assert len(task.splits.train) + len(task.splits.dev) == 5
    with pytest.raises(UserError, match="in every record the chosen and the rejected answer are the same"):
        read(tmp_path, pair("a", "s", "s"))


def test_what_looks_like_a_mistake_is_noted(tmp_path):
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps(pair("held out")) + "\n")
    task = read(tmp_path, pair("a", "yes", "no"), pair("a", "no", "yes"), pair("b", "long one", "x"), dev=dev)
    assert "1 pair of answers stands in --train both ways round" in task.notes
    assert "the chosen answer is the longer one in 67% of the pairs" in task.notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.1}, "--beta 0.1 is for --method dpo"),
        ({"method": "dpo", "beta": 0.0}, "--beta 0.0 must be above 0"),
        ({"method": "kto", "beta": float("nan")}, "must be above 0"),
        ({"method": "ipo", "model": "bert"}, "--method ipo needs --init"),
        ({"context": 3}, "--context 3 must be at least 16"),
    ],
)
def test_options_that_make_no_sense(files, options, message):
    with pytest.raises(UserError, match=message):
        Preference(Options(files["train"], files["dev"], **options), seed=0)


def test_the_other_methods_need_a_start(files, tmp_path):
    options = Options(files["train"], files["dev"], method="dpo")
    with pytest.raises(UserError, match="--method dpo teaches a GPT that can write already: name it with --init"):
        train_sft.train(train_sft.Args(task="preference", out=tmp_path / "out", options=options))
    assert not (tmp_path / "out").exists()


# ---- a prompt and its answer ---------------------------------------------------------------------


def test_a_gpt_reads_what_its_template_makes_of_them(chat_folder, few):
    task, model, tokenizer = opened(chat_folder, few, method="dpo")
    compose = Composer(model, tokenizer)
    exchange = compose("why?", "so.")
    assert tokenizer.decode(exchange.tokens[: exchange.num_read]) == "<user>why?\n<assistant>"
    assert exchange.tokens[exchange.num_read :] == [*tokenizer.encode("so."), tokenizer.end]
    assert exchange.tokens[: exchange.num_read] == compose.prompt("why?")
    chosen, rejected = task.splits.train[0].documents
    for document, answer in ((chosen, task.splits.train[0].chosen), (rejected, task.splits.train[0].rejected)):
        learned = [target for target in document.targets if target != IGNORE]
        assert learned == [*tokenizer.encode(answer), tokenizer.end]


def test_without_a_template_a_blank_line_stands_between(tmp_path, files):
    _, model, tokenizer = opened(write_gpt(tmp_path / "gpt", template=None), files, method="dpo")
    compose = Composer(model, tokenizer)
    exchange = compose("why?", "so.")
    assert tokenizer.decode(exchange.tokens) == "why?\n\nso."
    assert exchange.tokens[-1] == tokenizer.end
    assert exchange.tokens[: exchange.num_read] == compose.prompt("why?") == tokenizer.prompt("why?")
    assert tokenizer.config["prompt_format"] == "{prompt}\n\n"  # so that commands ask as it was taught


def test_of_what_is_too_long_the_beginning_of_the_prompt_is_cut_first(chat_folder, few):
    _, model, tokenizer = opened(chat_folder, few, method="dpo")
    compose = Composer(model, tokenizer, context=40)
    room = 40 - len(compose.encode("", "").tokens)
    cut = compose("abcdefghijklmnopqrstuvwxyz", "12345")
    assert cut.cut == "prompt"
    assert cut._replace(cut=None) == compose.encode("abcdefghijklmnopqrstuvwxyz"[-(room - 5) :], "12345")
    assert len(cut.tokens) == 40
    far = compose("abc", "0123456789" * 9)
    assert far.cut == "answer"
    assert far._replace(cut=None) == compose.encode("", ("0123456789" * 9)[-room:])
    assert compose("abc", "1").cut is None
    with pytest.raises(UserError, match="3 tokens are fewer than what stands around a prompt and its answer"):
        Composer(model, tokenizer, context=3)("abc", "1")


def test_the_longest_end():
    for room in range(5):
        assert longest_end("abcd", lambda end, room=room: len(end) <= room) == "abcd"[4 - room :]


def test_answers_that_do_not_fit_are_not_learned_by_what_writes(chat_folder, tmp_path):
    records = [pair("q" * 200), pair("b", "x" * 200, "no"), pair("c"), pair("d")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps(pair("e")) + "\n")
    task, _, _ = opened(chat_folder, {"train": path, "dev": dev}, method="dpo")
    assert [each.prompt[0] for each in task.splits.train] == ["q", "c", "d"]
    notes = " ".join(task.notes)
    assert "1 pair is longer than 96 tokens; the prompt's beginning is cut" in notes
    assert "1 pair has an answer longer than 96 tokens, left out" in notes
    judge, _, _ = opened(chat_folder, {"train": path, "dev": dev})
    assert len(judge.splits.train) == 4
    assert "1 pair has an answer longer than 96 tokens, whose beginning is cut, too" in judge.notes
    with pytest.raises(UserError, match="--context 200 is more than the 96 tokens"):
        opened(chat_folder, {"train": path, "dev": dev}, context=200)


def test_a_text_that_the_model_does_not_know():
    model = GPT(GPTConfig(4, 16, 1, 8, 2))
    with pytest.raises(UserError, match="this model does not read such a text: the symbol 'z'"):
        Composer(model, SymbolTokenizer("tiny", r"[\s\S]", "ab\n"))("az", "b")
    with pytest.raises(UserError, match="gives a text the token 6, but the model only has 4"):
        Composer(model, SymbolTokenizer("tiny", r"[\s\S]", "abcde\n"))("a", "b")


# ---- what is measured ----------------------------------------------------------------------------


def test_metrics():
    task = object.__new__(Preference)
    task.is_judge = True
    examples = [Pair("p", "longer", "it"), Pair("p", "a", "longer"), Pair("p", "same", "four"), Pair("p", "xy", "zz")]
    answers = [Judged(2.0, 1.0), Judged(0.0, 3.0), Judged(1.0, 0.0), Judged(1.0, 1.0)]
    measured = task.measure(examples, answers)
    assert measured["accuracy"].value == 0.5  # a tie is not right
    assert measured["of_equal_length"].value == 0.5
    assert measured["prefers_the_longer"].value == 1.0
    assert measured["margin"].value == pytest.approx(-0.25)
    assert measured["margin"].low < -0.25 < measured["margin"].high
    assert task.baselines(examples)["longer"].value == 0.25
    loss = task.details(examples, answers)["log_loss"]["value"]
    assert loss == pytest.approx(np.mean([np.log1p(np.exp(-m)) for m in (1, -3, 1, 0)]))
    assert task.details(examples, answers)["worst_mistakes"][0]["margin"] == -3.0


# ---- a judge -------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["modernbert", "bert", "gpt"])
def judge(request, tmp_path_factory, files):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    rates = {"optimizer": "adamw-head", "lr": 0.003, "embedding_lr": 0.003}
    options = {**rates, "dropout": 0.1, "steps": 40, "model": request.param}
    assert main(**FAST, **files, **options, out=folder) == 0
    return folder


def test_a_judge_learns(judge):
    metrics = metrics_of(judge)
    assert metrics["dev_accuracy"] > 0.9
    assert metrics["test_accuracy"] > 0.9
    assert metrics["dev_longer"] < 0.7
    assert metrics["dev_log_loss"]["value"] < 0.5
    first, *_, last = (record["loss"] for record in scripts.read_log(judge) if "loss" in record)
    assert first == pytest.approx(np.log(2), abs=0.1)  # a mean over pairs
    assert last < first


@pytest.mark.parametrize(
    ("accuracy", "longer", "said"),
    [(0.5, 0.5, "than a coin: .*--init"), (1.0, 1.0, "always the longer answer .*: pairs in which"), (0.9, 0.5, None)],
)
def test_what_may_help_where_nothing_was_learned(accuracy, longer, said, files):
    task = Preference(Options(files["train"], files["dev"]), 0)
    shares = {"accuracy": accuracy, "longer": longer}
    remarks = task.remarks({name: Interval(share, share - 0.1, share) for name, share in shares.items()})
    assert len(remarks) == (said is not None)
    assert all(re.search(said, remark) for remark in remarks)


def test_scores_are_those_that_were_measured(judge, files):
    task, model, tokenizer = opened(judge, files)
    assert type(model) is RewardModel
    dev = [json.loads(line) for line in files["dev"].read_text().splitlines()]
    prompts = [each["prompt"] for each in dev]
    chosen, rejected = (
        evaluate.score(model, tokenizer, prompts, [each[name] for each in dev]) for name in ("chosen", "rejected")
    )
    assert (chosen > rejected).mean() == metrics_of(judge)["dev_accuracy"]
    measured = task.answer(model, tokenizer, task.splits.dev)
    np.testing.assert_allclose([judged.chosen for judged in measured], chosen, rtol=1e-4, atol=1e-5)


def test_transformers_scores_alike(judge, files):
    transformers = pytest.importorskip("transformers")
    _, model, tokenizer = opened(judge, files)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(judge).eval()
    other_tokenizer = transformers.AutoTokenizer.from_pretrained(judge)
    assert other.config.num_labels == 1
    prompt, answer = "is the sun red 3", "sun is red please"
    if isinstance(model.config, GPTConfig):
        ids = torch.tensor([Composer(model, tokenizer)(prompt, answer).tokens])
        theirs = other(input_ids=ids).logits.item()
    else:
        theirs = other(**other_tokenizer(prompt, answer, return_tensors="pt")).logits.item()
    assert evaluate.score(model, tokenizer, [prompt], [answer]) == pytest.approx(theirs, abs=1e-4)


def test_the_command(judge, tmp_path, capsys, files):
    from minillm.commands import score

    answers = ["sun is red please", "sun is red stupid"]
    prompt = "is the sun red 3"
    _, model, tokenizer = opened(judge, files)
    expected = evaluate.score(model, tokenizer, [prompt] * 2, answers)
    score.main(score.Args(model=str(judge), prompt=prompt, answer=tuple(answers), json=True))
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["score"] for each in found] == pytest.approx(expected, abs=1e-5)
    assert found[0]["score"] > found[1]["score"]
    path = tmp_path / "answers.csv"
    path.write_text(f"question,answer\n{prompt},{answers[0]}\n{prompt},{answers[1]}\n")
    score.main(score.Args(model=str(judge), file=path, fields="prompt=question", json=True))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found
    score.main(score.Args(model=str(judge), prompt=prompt, answer=tuple(answers)))
    assert "stupid" in capsys.readouterr().out
    with pytest.raises(UserError, match="an answer is scored for a prompt"):
        score.main(score.Args(model=str(judge), answer=("a",)))


def test_a_model_without_one_output_gives_no_scores(gpt_folder):
    from minillm.commands import score

    with pytest.raises(UserError, match="score needs a model with one output"):
        score.main(score.Args(model=str(gpt_folder), prompt="a", answer=("b",)))


def test_a_published_gpt_becomes_a_judge(gpt_folder, files, tmp_path):
    options = {"lr": 0.003, "embedding_lr": 0.003, "steps": 3}
    assert main(**FAST, **files, **options, init=gpt_folder, out=tmp_path / "run") == 0
    assert type(checkpoint.load(tmp_path / "run", "reward")) is RewardModel


# ---- what writes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=METHODS)
def writer(request, tmp_path_factory, files, gpt_folder):
    folder = tmp_path_factory.mktemp(request.param) / "run"
    options = {"method": request.param, "lr": 0.003, "embedding_lr": 0.003, "steps": 12}
    assert main(**FAST, **files, **options, init=gpt_folder, out=folder) == 0
    return request.param, folder


def test_what_writes_learns(writer):
    method, folder = writer
    metrics = metrics_of(folder)
    assert metrics["dev_accuracy"] > 0.75
    assert metrics["dev_margin_low"] > 0
    losses = [record["loss"] for record in scripts.read_log(folder) if "loss" in record]
    assert losses[-1] < losses[0]
    start = {"dpo": np.log(2), "ipo": 25.0, "kto": 0.5}
    if method in start:  # of a model that is its own reference, dropout or not
        assert losses[0] == pytest.approx(start[method], abs=1e-3)
    assert type(checkpoint.load(folder)) is GPT
    assert not (folder / "reference.safetensors").exists()


def test_with_lora_too(gpt_folder, files, tmp_path):
    options = {"method": "dpo", "lora": 4, "lr": 0.01, "steps": 8}
    assert main(**FAST, **files, **options, init=gpt_folder, out=tmp_path / "run") == 0
    losses = [record["loss"] for record in scripts.read_log(tmp_path / "run") if "loss" in record]
    assert losses[0] == pytest.approx(np.log(2), abs=1e-3)
    assert losses[-1] < losses[0]


def test_gains_are_measured_from_the_start(writer, files, gpt_folder):
    method, folder = writer
    task, model, _ = opened(folder, files, method=method)
    start = opened(gpt_folder, files, method=method)[1]
    found = []
    for each in (model, start):
        documents = [document for pair in task.splits.dev for document in pair.documents]
        found.append(-np.array(evaluate.nats(each, documents)).reshape(-1, 2))
    gains = found[0] - found[1]
    assert metrics_of(folder)["dev_margin"] == pytest.approx((gains[:, 0] - gains[:, 1]).mean(), rel=1e-3)
    assert metrics_of(folder)["dev_chosen_gain"] == pytest.approx(gains[:, 0].mean(), rel=1e-3, abs=1e-4)


def test_the_kl_that_kto_estimates(gpt_folder, files):
    task, model, _ = opened(gpt_folder, files, method="kto")
    train = task.splits.train
    assert len(task.strangers) == len(train)
    others = preference.mismatched(train)
    assert others[0] == (train[0].prompt, train[1].chosen)
    assert others[1] == (train[1].prompt, train[2].rejected)
    assert others[-1][1] in train[0].answers
    now = -np.array(evaluate.nats(model, task.strangers))
    task.start_of_strangers = now - 0.25
    assert task.kl(model, 7) == pytest.approx(0.25, abs=1e-5)
    task.start_of_strangers = now + 0.25
    assert task.kl(model, 7) == 0


# ---- interruption --------------------------------------------------------------------------------


def interrupt_at_step(patch, number):
    real, calls = Session.set_lr, []

    def set_lr(*args):
        calls.append(args)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return real(*args)

    patch.setattr(Session, "set_lr", set_lr)


def by_command(options, resume):
    return main(**options) if resume is None else main(resume=resume)


def by_call(options, resume):
    args = train_sft.Args(resume=resume)
    if resume is None:
        names = {field.name for field in dataclasses.fields(Options)}
        own = Options(**{name: value for name, value in options.items() if name in names})
        args = train_sft.Args(**{name: options[name] for name in options.keys() - names}, options=own)
    try:
        train_sft.train(args, Console(quiet=True))
    except KeyboardInterrupt:
        return 130
    return 0


@pytest.mark.parametrize("call", [by_command, by_call])
@pytest.mark.parametrize("method", ["reward", "dpo", "kto"])
@pytest.mark.parametrize("choices", [{}, {"micro_tokens": 150, "lora": 2}], ids=["plain", "pieces, lora"])
def test_a_resumed_training_is_the_one_that_was_not_interrupted(
    call, method, choices, files, gpt_folder, tmp_path, monkeypatch
):
    moving = write_gpt(tmp_path / "moving", template=None)
    options = {**FAST, **files, "method": method, "init": moving, "steps": 6, "lr": 0.003, **choices}
    options |= {"batch_tokens": 600, "embedding_lr": 0.003}
    assert call({**options, "out": tmp_path / "whole"}, None) == 0
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 4)
        assert call({**options, "out": tmp_path / "cut"}, None) == 130
    moving.rename(tmp_path / "gone")  # the start is not needed any more
    assert call(None, tmp_path / "cut") == 0
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    logs = [
        [{k: v for k, v in record.items() if k != "seconds"} for record in scripts.read_log(tmp_path / name)]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1]


def test_without_its_references_a_run_does_not_go_on(files, gpt_folder, tmp_path, monkeypatch, capsys):
    options = {**FAST, **files, "method": "dpo", "init": gpt_folder, "steps": 4, "out": tmp_path / "cut"}
    with monkeypatch.context() as patch:
        interrupt_at_step(patch, 2)
        assert main(**options) == 130
    (tmp_path / "cut" / "reference.safetensors").unlink()
    assert main(resume=tmp_path / "cut") == 2
    assert "this has changed since it began: reference.safetensors" in capsys.readouterr().err
