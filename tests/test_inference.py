"""What makes generation fast: a model made ready is the model, and reading a text in pieces is reading it at once."""

import pytest
import torch
from tiny import GPT_FAMILIES, LLAMA, gpt, packed, sequences

from kernels import backend
from minillm import inference
from minillm.inference import KVCache, ready
from minillm.layers import YarnScaling

LENGTHS = (9, 4, 6)
CHOICES = {"default": {}, **GPT_FAMILIES, "relu": {"mlp": "relu", "bias": True}}
CHOICES["yarn"] = LLAMA | {"rope_scaling": YarnScaling(4.0, 6, magnitude=1.2)}
every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)
PROMPTS = [part.tolist() for part in sequences((3, 1, 5, 2, 4), high=4)]


# ---- the cache -------------------------------------------------------------------------------------


def whole(model, parts):
    return model(*packed(parts)).split([len(part) for part in parts])


def read(model, cache, parts, seen, until):
    """Give the cache the tokens `seen[i] : until[i]` of each sequence; their hidden states, one tensor a sequence."""
    pieces = [part[a:b] for part, a, b in zip(parts, seen, until, strict=True)]
    return model(*packed(pieces), cache).split([len(piece) for piece in pieces])


@torch.no_grad()
@every_choice
@pytest.mark.parametrize("impl", ["torch", "eager"])
@pytest.mark.parametrize(
    "stops",
    [
        [(9, 4, 6)],  # all at once
        [(3, 1, 2), (4, 2, 3), (5, 3, 4)],  # a ragged prompt, then a token each
        [(2, 2, 2), (3, 3, 3), (4, 4, 4)],  # the same of one length
        [(3, 1, 2), (9, 2, 4), (9, 4, 6)],  # several tokens each, also none
        [(3, 0, 2), (5, 4, 2), (9, 4, 6)],  # a sequence that begins later
        [(3, 1, 2), (4, 4, 4), (9, 4, 6)],  # as long as each other in the end, but not before
        [(3, 4, 3), (4, 4, 4), (9, 4, 6)],  # the same by a token each, but for one
        [(3, 2, 2), (4, 2, 2), (9, 4, 6)],  # a token for one alone
        [(3, 0, 3), (4, 1, 4), (5, 2, 5)],  # a token each, the first of one
    ],
    ids=["at once", "ragged", "rectangular", "pieces", "late", "level", "level by one", "one alone", "one begins"],
)
def test_pieces_are_the_whole(choices, impl, stops, monkeypatch):
    backend.set_default(impl)
    monkeypatch.setattr(inference, "AHEAD", 1)  # so that it grows often
    model, parts = gpt(**choices), sequences(LENGTHS)
    truth = whole(model, parts)
    cache, seen = KVCache.of(model, len(parts), max(LENGTHS)), (0,) * len(parts)
    for until in stops:
        for piece, right, a, b in zip(read(model, cache, parts, seen, until), truth, seen, until, strict=True):
            torch.testing.assert_close(piece, right[a:b], rtol=0, atol=1e-10)
        seen = until
        assert cache.lengths == until


@torch.no_grad()
def test_steps_on_a_gpu_are_the_whole(monkeypatch):
    """Prompts are read by one kernel and what follows by that of few queries, in the interpreter where there is no
    GPU, whether sequences are as long as each other or not."""
    pytest.importorskip("triton")
    from kernels.gpu import attention_launch as kernels

    counts, original = [], kernels.attention_decode
    monkeypatch.setattr(kernels, "attention_decode", lambda *args: counts.append(len(args)) or original(*args))
    monkeypatch.setattr(inference, "AHEAD", 1)
    parts = sequences((20, 14, 19))
    choices = {"num_kv_heads": 2, "max_seq_len": 24}
    model, truth = gpt(**choices).float(), whole(gpt(**choices), parts)
    backend.set_default("triton")
    cache, seen = KVCache.of(model, 3, 20), (0, 0, 0)
    for until in ((17, 11, 12), (18, 12, 13), (18, 13, 18), (18, 14, 18), (19, 14, 19), (20, 14, 19)):
        for piece, right, a, b in zip(read(model, cache, parts, seen, until), truth, seen, until, strict=True):
            torch.testing.assert_close(piece.double(), right[a:b], rtol=0, atol=1e-5)
        seen = until
    assert len(counts) == 5 * model.config.num_layers


@torch.no_grad()
def test_sequences_leave_and_are_copied():
    model, parts = gpt(), sequences(LENGTHS)
    cache = KVCache.of(model, 3, max(LENGTHS))
    read(model, cache, parts, (0, 0, 0), (3, 1, 2))
    cache.select([2, 0, 2])
    parts = [parts[2], parts[0], sequences([6], seed=5)[0]]
    parts[2][:2] = parts[0][:2]  # the copies share a beginning and go on apart
    assert cache.lengths == (2, 3, 2)
    truth = whole(model, parts)
    for piece, right, a in zip(read(model, cache, parts, (2, 3, 2), (6, 9, 6)), truth, (2, 3, 2), strict=True):
        torch.testing.assert_close(piece, right[a:], rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_cache_has_the_dtype_that_the_model_computes_in():
    model = gpt().float()
    assert KVCache.of(model, 1, 4).layers[0][0].dtype == torch.float32
    model.compute_dtype = torch.bfloat16
    assert KVCache.of(model, 1, 4).layers[0][0].dtype == torch.bfloat16


@torch.no_grad()
def test_a_cache_has_little_more_room_than_it_needs():
    model, (part,) = gpt(num_kv_heads=2, max_seq_len=500), sequences([400])
    cache, rooms = KVCache.of(model, 1, 400), set()
    for n in range(400):
        read(model, cache, [part], (n,), (n + 1,))
        room = cache.layers[1][0].shape[2]
        assert {each.shape for each in cache.layers[1]} == {(1, 2, room, 4)}
        assert n < room <= min(400, n + 1 + max(32, (n + 1) // 4))
        rooms.add(room)
    assert len(rooms) < 12


@torch.no_grad()
def test_a_cached_sequence_may_not_outgrow_the_model():
    model, parts = gpt(), sequences([17])
    cache = KVCache.of(model, 1, 32)
    read(model, cache, parts, (0,), (16,))
    with pytest.raises(ValueError, match="17 tokens but max_seq_len=16"):
        read(model, cache, parts, (16,), (17,))


# ---- a model made ready --------------------------------------------------------------------------


@every_choice
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 0), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_a_ready_model_is_the_model(choices, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(inference, "WORTH_PACKING", {torch.float32: 1, torch.bfloat16: 1})
    model = gpt(vocab_size=5, **choices).to(dtype)
    text = packed([torch.tensor(prompt) for prompt in PROMPTS])
    with torch.inference_mode():
        truth, twin = model.logits(model(*text)), ready(model)
        got = twin.logits(twin(*text))
    torch.testing.assert_close(got, truth, rtol=tolerance, atol=tolerance * float(truth.abs().max()))
    assert ready(twin) is twin


def test_a_ready_model_shares_what_need_not_change():
    model = gpt(vocab_size=5).float()
    assert ready(model).tokens.weight is model.tokens.weight
    model.compute_dtype = torch.bfloat16
    twin = ready(model)
    assert twin.tokens.weight.dtype == torch.bfloat16
    assert model.tokens.weight.dtype == torch.float32
    assert len(list(model.parameters())) == len(list(gpt(vocab_size=5).parameters()))
