"""What a training starts from, and which options it has in the end: given, of the recipe, of a run that goes on."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
from tiny import bert_config, gpt, gpt_config

import train_rl
import train_sft
from minillm import cli, state
from minillm.errors import UserError
from minillm.gpt import GPT
from minillm.heads import SequenceClassifier
from minillm.run import Run, options_of
from minillm.start import complete, inherited_options, new_start, refuse_beside_resume, resumed, with_dropout
from minillm.tasks import TASKS
from minillm.tasks.arithmetic import Arithmetic
from minillm.tasks.pronounce import Pronounce
from minillm.tokenizer import SymbolTokenizer

TOKENIZER = SymbolTokenizer("arithmetic", r"[\s\S]", "0123456789+=")


@pytest.fixture
def run(tmp_path):
    """An unfinished run of train_sft.py."""
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    options = Pronounce.Options(train=Path("words.txt"), symbols="data")
    args = train_sft.Args(out=run.folder, lr=0.25, steps=7, init=Path("start"), options=options)
    run.describe(model := gpt().float(), TOKENIZER, {"script": "sft", **options_of(args)})
    state.save(run.path("checkpoint.safetensors"), model, [], {})
    return run


# ---- options of an interrupted run ---------------------------------------------------------------


def test_options_come_back(run):
    args = resumed(train_sft.Args(resume=run.folder), "sft", TASKS)
    options = Pronounce.Options(train=Path("words.txt"), symbols="data")
    assert args == train_sft.Args(
        out=run.folder, lr=0.25, steps=7, init=Path("start"), options=options, resume=run.folder
    )
    for path in (args.out, args.init, args.options.train):
        assert isinstance(path, Path)


def test_options_that_came_later_have_their_defaults(run):
    saved = run.options()
    del saved["micro_tokens"], saved["symbols"]
    run.path("args.json").write_text(json.dumps(saved))
    args = resumed(train_sft.Args(resume=run.folder), "sft", TASKS)
    assert (args.micro_tokens, args.options.symbols, args.lr) == (None, None, 0.25)


def test_a_finished_run_is_not_resumed(run):
    run.finish({})
    with pytest.raises(UserError, match="is finished; to train its model further use --init"):
        resumed(train_sft.Args(resume=run.folder), "sft", TASKS)


@pytest.mark.parametrize("content", [None, "{", "[]", "{}", '{"task": "spelling"}'])
def test_spoiled_options_are_named(run, content):
    if content is None:
        run.path("args.json").unlink()
    else:
        run.path("args.json").write_text(content)
    with pytest.raises(UserError, match=r"args\.json"):
        resumed(train_sft.Args(resume=run.folder), "sft", TASKS)


def test_a_run_of_another_script_is_refused(run):
    with pytest.raises(UserError, match="is a run of another script"):
        resumed(train_rl.Args(resume=run.folder), "rl", TASKS)


def test_a_run_of_another_version_is_refused(run):
    """Once, args.json did not say which script it was of, and held the options of all tasks."""
    saved = run.options() | {"fields": None, "examples": None}
    del saved["script"]
    run.path("args.json").write_text(json.dumps(saved))
    with pytest.raises(UserError, match=r"args\.json is of another version of this program; start a new run"):
        resumed(train_sft.Args(resume=run.folder), "sft", TASKS)


def test_options_that_there_are_not_are_named(run):
    run.path("args.json").write_text(json.dumps(run.options() | {"colour": 4}))
    with pytest.raises(UserError, match=r"args\.json holds 'colour', which no option is called"):
        resumed(train_sft.Args(resume=run.folder), "sft", TASKS)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", "high"), ("steps", 0.5), ("train", 5), ("task", 7), ("task", None), ("seed", None)]
)
def test_options_of_other_types_are_named(run, name, value):
    run.path("args.json").write_text(json.dumps(run.options() | {name: value}))
    with pytest.raises(UserError, match=rf"args\.json .*{value!r}"):
        resumed(train_sft.Args(resume=run.folder), "sft", TASKS)
    if name == "train":
        with pytest.raises(UserError, match=r"args\.json is spoiled: 'train' cannot be 5"):
            inherited_options(run.folder, Pronounce)


def other_value(field):
    """A value of the type of an option's default that is not the default."""
    if field.metadata.get("choices"):
        return next(choice for choice in field.metadata["choices"] if choice != field.default)
    return field.default + 1 if isinstance(field.default, int | float) else "x"


@pytest.mark.parametrize("script", [train_sft, train_rl])
def test_no_option_beside_resume_is_ignored(script):
    refuse_beside_resume(script.Args(resume=Path("run")))
    for field in fields(script.Args):
        if field.name in ("resume", "options", "task"):
            continue
        args = script.Args(resume=Path("run"), **{field.name: other_value(field)})
        with pytest.raises(UserError, match=f"leave out --{field.name.replace('_', '-')}, or, .* new one with --init "):
            refuse_beside_resume(args)


def test_options_of_the_task_beside_resume_are_not_ignored():
    refuse_beside_resume(train_sft.Args(resume=Path("run"), options=Pronounce.Options()))
    for options in (Pronounce.Options(symbols="data"), Arithmetic.Options(examples=5)):
        (name,) = [f.name for f in fields(options) if vars(options)[f.name] != f.default]
        with pytest.raises(UserError, match=f"leave out --{name}, or, .* new one with --init "):
            refuse_beside_resume(train_sft.Args(resume=Path("run"), options=options))


def test_another_task_beside_resume_is_not_ignored(run):
    with pytest.raises(UserError, match="is a run of --task pronounce; leave out --task arithmetic"):
        resumed(train_sft.Args(resume=run.folder, task="arithmetic"), "sft", TASKS)


# ---- recipes -------------------------------------------------------------------------------------

RECIPE = {"lr": 0.1, "batch_tokens": 64, "steps": 100, "until": 0.4, "patience": 5, "warmup": 0.02}


def test_a_recipe_fills_what_was_not_given():
    args = complete(train_sft.Args(lr=0.5), RECIPE)
    assert (args.lr, args.batch_tokens, args.steps, args.until, args.warmup) == (0.5, 64, 100, 0.4, 0.02)
    assert complete(train_sft.Args(warmup=0.0), RECIPE).warmup == 0.0  # given, though it is nothing


@pytest.mark.parametrize("budget", [{"minutes": 1.0}, {"steps": 5}, {"epochs": 0.5}])
def test_a_budget_of_ones_own_is_used_up(budget):
    args = complete(train_sft.Args(**budget), RECIPE)
    assert {name: vars(args)[name] for name in ("minutes", "steps", "epochs") if vars(args)[name]} == budget
    assert args.until is None
    assert args.patience is None
    assert complete(train_sft.Args(**budget, until=0.9), RECIPE).until == 0.9


def test_a_size_of_a_step_takes_the_place_of_the_other():
    assert complete(train_sft.Args(batch_examples=8), RECIPE).batch_tokens is None
    assert complete(train_sft.Args(batch_tokens=8), {"batch_examples": 32, "epochs": 1.0}).batch_examples is None


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPT(gpt_config(dropout=0.1)),
        lambda: SequenceClassifier(bert_config(), ("no", "yes")),
        lambda: SequenceClassifier(gpt_config(), ("no", "yes")),
    ],
    ids=["gpt", "bert classifier", "gpt classifier"],
)
def test_dropout_is_what_was_asked_for(make):
    model = make()
    assert with_dropout(model, None) is model
    other = with_dropout(model, 0.25)
    config = other.config
    assert config.dropout == config.attention_dropout == getattr(config, "classifier_dropout", 0.25) == 0.25
    encoder = getattr(other, "encoder", other)
    assert all(block.dropout == 0.25 for block in encoder.blocks)
    saved, now = model.state_dict(), other.state_dict()
    assert all(torch.equal(saved[name], now[name]) for name in saved)
    assert getattr(other, "classes", None) == getattr(model, "classes", None)
    with pytest.raises(UserError, match=r"there is no such model: .*1\.5"):
        with_dropout(model, 1.5)


@dataclass
class Shape:
    layers: int = 1
    width: int = 16
    heads: int = 2
    dropout: float = 0.0


def test_a_model_that_cannot_be_is_named():
    task = Arithmetic(Arithmetic.Options(5), 0)
    assert new_start(task, TOKENIZER, Shape()).config.vocab_size == 13
    with pytest.raises(UserError, match=r"there is no such model: .*width=16 is no multiple of num_heads=3"):
        new_start(task, TOKENIZER, Shape(heads=3))


def test_a_model_for_which_there_is_no_memory_is_named(monkeypatch):
    task = Arithmetic(Arithmetic.Options(5), 0)
    for error in (RuntimeError, MemoryError):
        monkeypatch.setattr(task, "new_model", lambda *_, error=error: (_ for _ in ()).throw(error("too much")))
        with pytest.raises(UserError, match="no memory for a model of --layers 1 --width 16 --heads 2: too much"):
            new_start(task, TOKENIZER, Shape())


@pytest.mark.parametrize(
    "sizes", [{"layers": 100_000_000}, {"width": 1_000_000}, {"width": 10**30}, {"layers": 10**7, "width": 8}], ids=str
)
def test_a_model_beyond_all_memory_is_refused_at_once(sizes):
    shape = Shape(**{"heads": 1, **sizes})
    task = Arithmetic(Arithmetic.Options(5), 0)
    sentence = f"a model of --layers {shape.layers} --width {shape.width} takes over [0-9,]+ GiB of memory, but this"
    with pytest.raises(UserError, match=sentence):
        new_start(task, TOKENIZER, shape)


# ---- data of the run to start from ---------------------------------------------------------------


def test_the_data_of_the_starting_run_is_taken_where_no_other_is_given(run):
    assert inherited_options(run.folder, Pronounce) == Pronounce.Options(train=Path("words.txt"), symbols="data")
    given = Pronounce.Options(train=Path("mine.txt"))
    assert inherited_options(run.folder, Pronounce, given) == replace(given, symbols="data")
    given = Pronounce.Options(symbols="arpabet")  # the default, but said
    assert inherited_options(run.folder, Pronounce, given) == Pronounce.Options(Path("words.txt"), symbols="arpabet")
    with pytest.raises(UserError, match="was trained on --task pronounce, not on arithmetic"):
        inherited_options(run.folder, Arithmetic)


def test_a_published_model_has_no_data_to_take(tmp_path):
    assert inherited_options(tmp_path, Arithmetic) == Arithmetic.Options()
    assert inherited_options(tmp_path, Arithmetic, Arithmetic.Options(7)) == Arithmetic.Options(7)


def test_options_are_dataclasses_of_cli_options():
    """Every flag of every task has a help text, and none is called as one of the scripts that train it is."""
    for name, task in TASKS.items():
        scripts = [train_sft, train_rl] if name in train_rl.JUDGED else [train_sft]
        general = {field.name for script in scripts for field in fields(script.Args)}
        task.Options()  # all have defaults
        assert not general & set(cli.names_of(task.Options))
        assert all(field.metadata["help"] for field in fields(task.Options))
