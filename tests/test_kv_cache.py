"""The cache: reading a text in pieces is reading it at once."""

import pytest
import torch
from tiny import GPT_FAMILIES, gpt, packed, sequences

from kernels import backend
from minillm import kv_cache

LENGTHS = (9, 4, 6)
CHOICES = {"default": {}, **GPT_FAMILIES}
every_choice = pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES)


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
    ],
    ids=["at once", "ragged", "rectangular", "pieces", "late"],
)
def test_pieces_are_the_whole(choices, impl, stops, monkeypatch):
    monkeypatch.setattr(backend, "_default", impl)
    monkeypatch.setattr(kv_cache, "AHEAD", 1)  # so that it grows often
    model, parts = gpt(**choices), sequences(LENGTHS)
    truth = whole(model, parts)
    cache, seen = model.new_cache(len(parts), max(LENGTHS)), (0,) * len(parts)
    for until in stops:
        for piece, right, a, b in zip(read(model, cache, parts, seen, until), truth, seen, until, strict=True):
            torch.testing.assert_close(piece, right[a:b], rtol=0, atol=1e-10)
        seen = until
        assert cache.lengths == until


@torch.no_grad()
def test_sequences_leave_and_are_copied():
    model, parts = gpt(), sequences(LENGTHS)
    cache = model.new_cache(3, max(LENGTHS))
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
    assert model.new_cache(1, 4).layers[0][0].dtype == torch.float32
    model.compute_dtype = torch.bfloat16
    assert model.new_cache(1, 4).layers[0][0].dtype == torch.bfloat16


@torch.no_grad()
def test_a_cache_has_little_more_room_than_it_needs():
    model, (part,) = gpt(num_kv_heads=2, max_seq_len=500), sequences([400])
    cache, rooms = model.new_cache(1, 400), set()
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
    cache = model.new_cache(1, 32)
    read(model, cache, parts, (0,), (16,))
    with pytest.raises(ValueError, match="17 tokens but max_seq_len=16"):
        read(model, cache, parts, (16,), (17,))
