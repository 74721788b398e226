"""What a training computes, against PyTorch's own counter; what it holds, against what autograd saves."""

import io
import json
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny import LLAMA, batch_of, packed, sequences
from torch.utils.flop_counter import FlopCounterMode

import kernels
import train_sft
from minillm import costs
from minillm.batching import IGNORE, Corpus, Document
from minillm.bert import BERTConfig
from minillm.gpt import GPT, GPTConfig
from minillm.heads import MaskedLM, RewardModel, SequenceClassifier, TokenClassifier
from minillm.lora import adapted
from minillm.modernbert import ModernBERTConfig
from minillm.objective import backward
from minillm.optim import freeze, optimizers_of
from minillm.tasks.arithmetic import Options

SHAPE = {"vocab_size": 11, "max_seq_len": 128, "num_layers": 3, "width": 16, "num_heads": 4}
LENGTHS = (7, 3, 7, 5)


def gpt(**choices):
    return GPT(GPTConfig(**SHAPE | choices))


MODELS = {
    "gpt2": lambda: gpt(positions="learned", bias=True),
    "llama": lambda: gpt(**LLAMA, tie_embeddings=False),
    "masked words": lambda: MaskedLM(BERTConfig(**SHAPE)),
    "classes of texts": lambda: SequenceClassifier(BERTConfig(**SHAPE), ("a", "b", "c")),
    "classes by a gpt": lambda: SequenceClassifier(GPTConfig(**SHAPE), ("a", "b", "c")),
    "pairs": lambda: RewardModel(ModernBERTConfig(**SHAPE)),
    "tags and intents": lambda: TokenClassifier(ModernBERTConfig(**SHAPE), ("O", "B-x"), ("p", "q")),
}
HELD = {
    "all learns": lambda model: None,
    "lora": lambda model: adapted(model, 2),
    "two of three blocks": lambda model: freeze(model, 2),
}


@pytest.fixture
def _eager():
    """Products of matrices that PyTorch's counter sees: those of operators of ours it does not."""
    kernels.set_default("eager")


def counted(model, n, read=0):
    """By PyTorch, of a document of n tokens, of which the first few are only read; of pairs, of two of them."""
    documents = 2 if isinstance(model, RewardModel) else 1
    tokens, packing = packed(sequences([n] * documents, high=2))
    labels = torch.tensor([1] * documents) if isinstance(model, SequenceClassifier | TokenClassifier) else None
    targets = torch.where(packing.positions < read, IGNORE, tokens)
    batch = batch_of(tokens, packing, targets, labels)
    with FlopCounterMode(display=False) as counter:
        backward(model.train(), batch, 1.0)
    return counter.get_total_flops(), documents


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize("read", [0, 4])
@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_pytorch_counts(name, held, read, monkeypatch):
    """It counts every pair of tokens of a document in the attention, seen or not."""
    model = MODELS[name]()
    HELD[held](model)
    found, documents = counted(model, 9, read)
    monkeypatch.setattr(costs, "seen", lambda *_: documents * 9 * 9)
    assert costs.operations(model, {9: documents}, (9 - read) * documents) == found


@pytest.mark.parametrize(("name", "layer"), [("gpt2", 0), ("masked words", 0), ("pairs", 0), ("pairs", 1)])
@pytest.mark.parametrize("lengths", [(1, 5, 5), (64, 65, 66), (100, 3)])
def test_pairs_that_see_each_other(name, layer, lengths):
    model = MODELS[name]()
    window = 65 if (name, layer) == ("pairs", 1) else 10**9  # the first layer of ModernBERT sees everything
    pairs = 0
    for n in lengths:
        i, j = np.arange(n)[:, None], np.arange(n)
        pairs += ((i >= j) if name == "gpt2" else (abs(i - j) < window)).sum()
    path = f"blocks.{layer}.attn.out" if name == "gpt2" else f"encoder.blocks.{layer}.attn.out"
    assert costs.seen(model, path, Counter(lengths)) == pairs


def test_what_a_weight_takes():
    """Of one token the whole is 2 and 6 times the weights that are products, but for the attention to itself."""
    model = MODELS["gpt2"]()
    weights = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "positions" not in name)
    assert costs.operations(model, {1: 1}, 1) == costs.LEARNED * weights + 3 * 3 * 4 * 16
    model.requires_grad_(False)
    assert costs.operations(model, {1: 1}, 1) == costs.READ * weights + 3 * 4 * 16


# ---- memory --------------------------------------------------------------------------------------


def saved_for_backward(model, batch):
    """Bytes of different tensors."""
    own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def look(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes(), x  # kept, so that no other takes its place
        return x

    with torch.autograd.graph.saved_tensors_hooks(look, lambda x: x):
        backward(model, batch, 1.0)
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("name", ["gpt2", "llama", "masked words", "tags and intents"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_activations_are_about_what_autograd_saves(name, dtype, monkeypatch):
    """In heads of a usual width."""
    monkeypatch.setitem(SHAPE, "width", 128)
    model = MODELS[name]()
    model.compute_dtype = dtype
    tokens, packing = packed(sequences([64] * 32, high=2))
    batch = batch_of(tokens, packing, tokens, tokens[:32] if name == "tags and intents" else None)
    found = saved_for_backward(model.train(), batch) / len(tokens)
    assert 0.7 < costs.activations(model, recomputes=False) / found < 1.3
    assert costs.activations(model, recomputes=True) < 0.6 * costs.activations(model, recomputes=False)


def corpus(n=40):
    return Corpus(lambda epoch: [[Document([1] * n, [1] * n)] for _ in range(20)], seed=0)


def args(**choices):
    usual = {"micro_tokens": None, "batch_tokens": 400, "checkpointing": False, "shard": False, "ema": None}
    rates = {"optimizer": "adamw", "lr": 0.01, "embedding_lr": 0.01, "weight_decay": None, "beta2": None}
    return SimpleNamespace(**usual | rates | choices)


def memory(model, ranks=1, **choices):
    return costs.memory(model, optimizers_of(model, args(**choices)), args(**choices), corpus(), ranks)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_is_that_of_weights_and_of_the_largest_batch(optimizer, ema):
    """What optimisers hold is seen in them behind a step."""
    model, choices = gpt(), {"optimizer": optimizer, "ema": ema}
    whole = memory(model, **choices)
    assert memory(model, batch_tokens=800, **choices) - whole == 400 * costs.activations(model, False)
    assert memory(model, batch_tokens=800, micro_tokens=400, **choices) == whole
    weights = 4 * sum(p.numel() for p in model.parameters())
    optimizers = optimizers_of(model, args(**choices))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for each in optimizers:
        each.step()
    states = [state for each in optimizers for state in each.state.values()]
    held = sum(costs.size(x) for state in states for x in state.values() if torch.is_tensor(x) and x.ndim)
    model.requires_grad_(False)
    assert whole - costs.memory(model, [], args(), corpus()) == weights + held


def test_of_a_model_in_parts_each_process_has_its_share():
    """But for what is put together while it computes, with its gradient: a block, and what is in none. Of ten examples
    of a step, a process has three at most."""
    model = gpt()
    of_blocks = [4 * sum(p.numel() for p in block.parameters()) for block in model.blocks]
    weights = 4 * sum(p.numel() for p in model.parameters())
    together = 2 * (weights - sum(of_blocks) + of_blocks[0])
    of_examples = (10 - 3) * 40 * costs.activations(model, False)
    saved = 3 * weights * 3 / 4 - together + of_examples
    assert memory(model) - memory(model, ranks=4, shard=True) == pytest.approx(saved)


def test_much_memory_is_said(monkeypatch):
    model = gpt()
    session = SimpleNamespace(model=model, optimizers=optimizers_of(model, args()), ranks=1)
    needed = memory(model)
    for free, said in ((3 * needed, []), (1.5 * needed, ["to train, of"]), (0.9 * needed, ["--checkpointing"])):
        monkeypatch.setattr(costs, "free_memory_of_host", lambda free=free: free)
        lines = costs.memory_lines(session, args(), corpus())
        assert len(lines) == len(said)
        assert all(part in line for part, line in zip(said, lines, strict=True))
    monkeypatch.setattr(costs, "free_memory_of_host", lambda: 3 * needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # processes that share it
    assert "--checkpointing" in costs.memory_lines(session, args(), corpus())[0]
    monkeypatch.setattr(costs, "free_memory_of_host", lambda: None)
    assert costs.memory_lines(session, args(), corpus()) == []


def test_some_memory_is_free():
    free = costs.free_memory(torch.device("cpu"))
    assert free is None or 1e6 < free < 1e14


# ---- a run ---------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Three steps, as if they had been a long training on a machine of 1 GFLOP/s."""
    monkeypatch.setattr(costs, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(costs, "matrix_rate", lambda *_: 1e9)
    console = Console(record=True, width=160, file=io.StringIO())
    shape = {"layers": 1, "width": 16, "heads": 2, "batch_tokens": 200, "steps": 3, "evaluations": 1}
    arguments = train_sft.Args(task="arithmetic", out=tmp_path / "run", options=Options(examples=50), **shape)
    return train_sft.train(arguments, console), console.export_text()


def test_a_run_ends_with_its_share_of_the_matrix_rate(run):
    folder, said = run
    metrics = json.loads(folder.path("metrics.json").read_text())
    assert metrics["operations"] > 6 * 16 * 16 * 3 * metrics["tokens"]  # queries, keys and values of every token
    assert metrics["operations"] < 6 * 16 * 16 * 15 * metrics["tokens"]
    assert 0 < metrics["matrix_share"] < 10
    assert re.search(rf"steps took {metrics['matrix_share']:.0%} of this machine's matrix rate", said)
    assert f"{metrics['matrix_share']:.0%}</span> of the machine" in folder.path("report.html").read_text()


def test_a_short_run_says_nothing_of_it(monkeypatch):
    monkeypatch.setattr(costs, "matrix_rate", lambda *_: pytest.fail("measured"))
    assert costs.work_done(gpt(), {9: 2}, 3, seconds=1.0).keys() == {"operations"}
    assert costs.work_done(gpt(), {}, 0, seconds=100.0) == {}  # by reward, which is not counted


def test_the_rate_of_this_machine_is_one(monkeypatch):
    monkeypatch.setattr(costs, "RATE_SECONDS", 0.01)
    assert 1e7 < costs.matrix_rate(torch.device("cpu"), torch.float32) < 1e16
    before = torch.get_rng_state()
    costs.matrix_rate(torch.device("cpu"), torch.bfloat16)
    assert torch.equal(before, torch.get_rng_state())
