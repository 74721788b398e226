"""The exact state of a training: what was saved comes back bit for bit, and a spoiled file is named."""

import json
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import batch_of, bert_config, gpt, gpt_config, packed, sequences

from minillm import optim, state
from minillm.errors import UserError
from minillm.files import read_state, write_tensors
from minillm.gpt import GPT
from minillm.heads import SequenceClassifier
from minillm.state import weights_of


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def start(make):
    torch.manual_seed(1)
    model = gpt(dropout=0.3).float().train()
    return model, make(model)


def steps(model, optimizers, numbers):
    for i in numbers:
        tokens, packing = packed(sequences((5, 3), seed=i))
        model.loss(batch_of(tokens, packing, tokens), 1 / len(tokens)).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 / (1 + i)
            optimizer.step()
            optimizer.zero_grad()


def muon(model):
    return optim.muon(model, lr=0.01, embedding_lr=0.005)


def adamw(model):
    return optim.adamw(model, lr=0.01, embedding_lr=0.005)


@pytest.mark.parametrize("make", [muon, adamw])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(path, make):
    model, optimizers = start(make)
    steps(model, optimizers, range(3))
    progress = {"step": 3, "seconds": 1.25, "name": "x", "nothing": None, "totals": {"tokens": 9}}
    state.save(path, model, optimizers, progress)
    steps(model, optimizers, range(3, 6))
    end, dice = weights_of(model), torch.rand(3)

    other, others = start(make)
    steps(other, others, range(1))  # a state of its own, which must vanish
    torch.manual_seed(99)
    assert state.load(path, other, others) == progress
    steps(other, others, range(3, 6))
    assert all(torch.equal(end[name], w) for name, w in weights_of(other).items())
    assert torch.equal(torch.rand(3), dice)


@pytest.mark.parametrize("make", [muon, adamw])
def test_optimiser_state_comes_back_exactly(path, make):
    model, optimizers = start(make)
    steps(model, optimizers, range(2))
    state.save(path, model, optimizers, {})
    other, others = start(make)
    state.load(path, other, others)
    for one, two in zip(optimizers, others, strict=True):
        first, second = one.state_dict(), two.state_dict()
        assert first["state"].keys() == second["state"].keys()
        for i, values in first["state"].items():
            assert values.keys() == second["state"][i].keys()
            for name, value in values.items():
                torch.testing.assert_close(second["state"][i][name], value, rtol=0, atol=0)  # the dtype as well
        for a, b in zip(first["param_groups"], second["param_groups"], strict=True):
            assert a.keys() == b.keys()
            assert all(list(v) == list(b[k]) if isinstance(v, tuple) else v == b[k] for k, v in a.items())


@pytest.mark.parametrize("config", [gpt_config(tie_embeddings=False), bert_config()], ids=["gpt", "bert"])
def test_classifiers_go_on_too(path, config):
    first, second = (SequenceClassifier(config, ("no", "yes")) for _ in range(2))
    state.save(path, first, [], {})
    state.load(path, second, [])
    ours, theirs = weights_of(first), weights_of(second)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_checkpoint_is_its_own_memory(path):
    model, optimizers = start(adamw)
    steps(model, optimizers, range(1))
    state.save(path, model, optimizers, {})
    state.load(path, model, optimizers)
    first = weights_of(model)["tokens.weight"].clone()
    steps(model, optimizers, range(2))
    state.load(path, model, optimizers)
    assert torch.equal(weights_of(model)["tokens.weight"], first)


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_a_spoiled_checkpoint_is_named(path, content):
    state.save(path, gpt(), [], {})
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        state.load(path, gpt(), [])


def test_weights_alone_are_no_checkpoint(path):
    save_file({f"model.{name}": w.clone() for name, w in weights_of(gpt()).items()}, path)
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        state.load(path, gpt(), [])


def test_a_checkpoint_of_other_optimisers_is_refused(path):
    model, optimizers = start(adamw)
    state.save(path, model, optimizers, {})
    with pytest.raises(UserError, match=r"checkpoint\.safetensors"):
        state.load(path, model, muon(model))


def test_a_checkpoint_of_another_shape_is_named(path):
    state.save(path, GPT(gpt_config(positions="learned")), [], {})
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is no .*: 'positions\.weight' has shape \(16, 16\)"):
        state.load(path, GPT(gpt_config(positions="learned", max_seq_len=32)), [])


# ---- generators ----------------------------------------------------------------------------------


def throw():
    """The next numbers of every generator."""
    return [
        [random.random() for _ in range(3)],
        random.gauss(0, 1),
        np.random.random(3).tolist(),
        np.random.standard_normal(),
        torch.rand(3).tolist(),
        torch.randn(20).tolist(),
    ]


def test_every_generator_goes_on(path):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    throw()  # of the normal ones half a pair is left, which belongs to the state
    model = gpt()
    state.save(path, model, [], {})
    truth = throw()
    assert throw() != truth
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(99)
    state.load(path, model, [])
    assert throw() == truth


def test_saving_draws_nothing(path):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    truth = throw()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    state.save(path, gpt_without_drawing(), [], {})
    assert throw() == truth


def gpt_without_drawing():
    with torch.random.fork_rng():
        return gpt()


def test_a_model_is_not_tied_twice(path):
    state.save(path, gpt(), [], {})
    names = {name.removeprefix("model.") for name in load_file(path) if name.startswith("model.")}
    assert names == weights_of(gpt()).keys()
    assert "output.weight" not in names


# ---- files of other versions ---------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"format": 4}, {"format": 6}, {"format": None}, "progress only"])
def test_other_formats_are_refused(path, change):
    """Before this one, files had no number, and the progress under another name."""
    model = gpt()
    state.save(path, model, [], {"step": 3})
    tensors, saved = load_file(path), read_state(path)
    saved = {"optimizers": [], "progress": {"step": 3}} if change == "progress only" else {**saved, **change}
    write_tensors(path, tensors, saved)
    before = {name: weight.clone() for name, weight in weights_of(model).items()}
    with pytest.raises(
        UserError, match=r"was written by another version of this program.*start a new run, with --init"
    ):
        state.load(path, model, [])
    assert all(torch.equal(before[name], weight) for name, weight in weights_of(model).items())


def test_the_number_of_the_format_is_in_the_file(path):
    state.save(path, gpt(), [], {"step": 3})
    saved = read_state(path)
    assert saved["format"] == state.FORMAT == 5
    assert saved["progress"] == {"step": 3}
    json.dumps(saved)


@pytest.mark.parametrize("lost", ["optimizers", "generators", "progress", "rng.cpu"])
def test_a_checkpoint_without_a_part_is_named(path, lost):
    model = gpt()
    state.save(path, model, [], {})
    tensors, saved = load_file(path), read_state(path)
    write_tensors(path, {k: v for k, v in tensors.items() if k != lost}, {k: v for k, v in saved.items() if k != lost})
    with pytest.raises(UserError, match=r"checkpoint\.safetensors is no checkpoint of this training"):
        state.load(path, model, [])


# ---- trees ---------------------------------------------------------------------------------------


def test_trees_with_tensors_come_back():
    tree = {"a": [torch.ones(2), {3: torch.zeros(1), "b": None}], "c": {"d": 1.5}, 4: [True, []]}
    tensors = {}
    plain = json.loads(json.dumps(state.detach_tensors(tree, "t", tensors)))
    back = state.attach_tensors(plain, tensors)
    assert back["a"][0].tolist() == [1, 1]
    assert back["a"][1][3].tolist() == [0]  # the keys keep their type
    assert back["a"][1]["b"] is None
    assert (back["c"], back[4]) == ({"d": 1.5}, [True, []])
    assert back["a"][0] is not tensors["t.a.0"]


# ---- a disk that is full ---------------------------------------------------------------------------


@contextmanager
def full_disk():
    """No file may grow beyond 1,000 bytes: writing fails as on a full disk. Not for long: pytest writes, too."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_save_that_fails_leaves_the_old_file(path):
    model = gpt().float()
    state.save(path, model, [], {"step": 1})
    with full_disk(), pytest.raises(UserError, match=r"cannot write .*checkpoint\.safetensors: .*File too large"):
        state.save(path, model, [], {"step": 2})
    assert state.load(path, model, []) == {"step": 1}
    assert not list(path.parent.glob("*.partial"))
