"""Where only some tokens are asked for, the rest of the last block is not computed, and nothing else changes."""

import pytest
import torch
from tiny import LLAMA, batch_of, packed, sequences, shake

from minillm.batching import IGNORE, Document, pack
from minillm.bert import BERTConfig
from minillm.gpt import GPT, GPTConfig
from minillm.heads import MaskedLM, SequenceClassifier, pool
from minillm.inference import KVCache, ready
from minillm.modernbert import ModernBERTConfig
from minillm.objective import backward

SHAPE = {"vocab_size": 11, "max_seq_len": 64, "num_layers": 3, "width": 16, "num_heads": 4}
MODELS = {
    "gpt2": lambda: GPT(GPTConfig(**SHAPE, positions="learned", bias=True)),
    "llama": lambda: GPT(GPTConfig(**SHAPE, **LLAMA)),
    "bert": lambda: MaskedLM(BERTConfig(**SHAPE)),
    "modernbert": lambda: MaskedLM(ModernBERTConfig(**SHAPE)),
}
LENGTHS = (7, 1, 12, 3)
AT = torch.tensor([0, 6, 7, 9, 19, 21])


@pytest.fixture(params=MODELS)
def model(request):
    return shake(MODELS[request.param]()).eval()


def some_batch(asked):
    tokens, packing = packed(sequences(LENGTHS))
    is_asked = torch.zeros(len(tokens), dtype=torch.bool)
    is_asked[asked] = True
    return batch_of(tokens, packing, torch.where(is_asked, tokens.roll(-1), IGNORE))


@pytest.mark.parametrize("recompute", [False, True])
def test_hidden_states_are_those_among_all(model, recompute):
    model.recompute = recompute
    tokens, packing = packed(sequences(LENGTHS))
    torch.testing.assert_close(model(tokens, packing, at=AT), model(tokens, packing)[AT])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, 0.25, torch.arange(23.0, dtype=torch.float64)], ids=["none", "one", "each"])
@pytest.mark.parametrize("asked", [AT, AT[:0], torch.arange(23)], ids=["some", "none", "all"])
def test_losses_and_gradients_are_the_same(model, asked, weights, smoothing):
    """As where it was not looked who is asked for."""
    batch, whole = some_batch(asked), some_batch(asked)
    object.__setattr__(whole, "asked", None)
    assert (batch.asked is None) == (len(asked) == 23)
    found = []
    for each in (batch, whole):
        losses = model.loss(each, weights, 0.7, smoothing)
        assert losses.shape == (() if weights is not None else (23,))
        model.zero_grad()
        losses.sum().backward()
        found.append([losses, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for ours, usual in zip(*found, strict=True):
        torch.testing.assert_close(ours, usual, atol=1e-12, rtol=1e-9)


def test_what_is_not_asked_for_is_not_computed(model):
    """Or the same could be had by throwing it away."""
    rows = []
    blocks = getattr(model, "encoder", model).blocks
    for block in blocks:
        block.mlp.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    backward(model, some_batch(AT), 1.0)
    assert rows == [23, 23, len(AT)]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_behind_a_cache(name):
    """What is filed there does not depend on what is asked for."""
    model, found = ready(shake(MODELS[name]())), []
    for at in (None, AT):
        cache = KVCache.of(model, len(LENGTHS), 40)
        model(*packed(sequences([5] * len(LENGTHS), seed=1)), cache)
        found.append((model(*packed(sequences(LENGTHS)), cache, at), *cache.layers[-1]))
    (every, *whole), (some, *partial) = found
    torch.testing.assert_close(some, every[AT])
    torch.testing.assert_close(partial, whole)


@pytest.mark.parametrize("config", [BERTConfig(**SHAPE), ModernBERTConfig(**SHAPE), GPTConfig(**SHAPE)])
def test_classes_are_told_by_the_token_that_stands_for_a_text(config):
    torch.manual_seed(0)
    model = SequenceClassifier(config, ("a", "b")).double().eval()
    tokens, packing = packed(sequences(LENGTHS))
    hidden = model.encode(tokens, packing, None)
    for pooling in ("first", "last", "mean"):
        found = model.pooled(pooling, tokens, packing, None)
        torch.testing.assert_close(found, pool(pooling, hidden, packing))
        rows = [part.mean(0) if pooling == "mean" else part[0 if pooling == "first" else -1]
                for part in hidden.split(LENGTHS)]  # fmt: skip
        torch.testing.assert_close(found, torch.stack(rows))


def test_a_batch_knows_which_tokens_have_a_target():
    documents = [Document([1, 2, 3], [IGNORE, 3, 4]), Document([5, 6], [6, IGNORE])]
    assert pack(documents).asked.tolist() == [1, 2, 3]
    assert pack(documents).count == 3
    assert pack([Document([1, 2], [2, 3])]).asked is None
    assert pack([Document([1, 2], label=1)]).asked.tolist() == []
    assert batch_of(*packed(sequences(LENGTHS))).asked.tolist() == []
    moved = pack(documents).to(torch.device("meta"))
    assert moved.asked.device.type == moved.packing.cu_seqlens.device.type == "meta"
