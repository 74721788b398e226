"""Sequences that begin alike: as if each were computed by itself, and with fewer tokens."""

import dataclasses
import random

import pytest
import tiny
import torch
from test_objective import distance, gradients

from kernels import Branches, Packing
from kernels.packing import _LookUp, copies_of
from minillm.batching import IGNORE, Document, answering, pack, pack_branches
from minillm.episodes import Episode, parts_of, to_batch
from minillm.gpt import GPT
from minillm.objective import backward

V = 11
CPU = torch.device("cpu")
FORMS = {
    "learned positions": {"positions": "learned", "bias": True},
    "turned": {"positions": "rope"},
    "grouped heads": {"num_heads": 4, "num_kv_heads": 2},
}


def model_of(**form):
    torch.manual_seed(0)
    return tiny.shake(GPT(tiny.gpt_config(**{"vocab_size": V, "max_seq_len": 32} | form))).double()


def documents_of(prompts, answers):
    """Documents of answers (number of a prompt, tokens), and how many tokens of each are shared."""
    documents = [answering(prompts[i], answer) for i, answer in answers]
    return documents, [len(prompts[i]) - 1 for i, _ in answers]


def drawn(rng, prompts=5, answers=17):
    prompts = [[rng.randrange(V) for _ in range(rng.randint(1, 9))] for _ in range(prompts)]
    kinds = [
        (rng.randrange(len(prompts)), [rng.randrange(V) for _ in range(rng.randint(1, 8))]) for _ in range(answers)
    ]
    return documents_of(prompts, kinds)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients_are_those_of_whole_sequences(form, seed):
    model = model_of(**FORMS[form])
    documents, shared = drawn(random.Random(seed))
    whole, branched = pack(documents), pack_branches(documents, shared)
    assert isinstance(branched.packing, Branches)
    assert len(branched.tokens) < len(whole.tokens)
    losses, of_branches = (model.loss(each)[each.targets != IGNORE].detach() for each in (whole, branched))
    torch.testing.assert_close(of_branches, losses, rtol=0, atol=1e-12)
    weights = torch.randn(len(losses), dtype=torch.float64)
    found = []
    for batch in (whole, branched):
        of_all = torch.zeros(len(batch.tokens), dtype=torch.float64)
        of_all[batch.asked] = weights
        backward(model, batch, of_all)
        found.append(gradients(model))
    assert distance(*found) < 1e-12


def test_each_beginning_is_computed_once():
    """What several answers share, all but the last token of their prompt, and nothing besides."""
    prompts = [[1, 2, 3], [1, 2, 4], [5], [6, 7]]
    answers = [(0, [8, 9]), (3, [8]), (0, [9]), (1, [8]), (2, [8, 9]), (2, [9])]
    batch = pack_branches(*documents_of(prompts, answers))
    rows = [row.tolist() for row in batch.tokens.split(batch.packing.lengths)]
    assert rows == [[1, 2], [3, 8], [6, 7], [3], [4], [5, 8], [5]]  # [1, 2] before 3 and before 4, as it is the same
    targets = [row.tolist() for row in batch.targets.split(batch.packing.lengths)]
    assert targets == [[IGNORE] * 2, [8, 9], [IGNORE, 8], [9], [8], [8, 9], [9]]
    read = [row.tolist() for row in batch.packing.keys.split(batch.tokens[batch.packing.rows])]
    assert read == [[1, 2, 3, 8], [6, 7], [1, 2, 3], [1, 2, 4], [5, 8], [5]]
    places = [row.tolist() for row in batch.packing.positions.split(batch.packing.lengths)]
    assert places == [[0, 1], [2, 3], [0, 1], [2], [2], [0, 1], [0]]
    assert (batch.count, batch.packing.max_len) == (8, 4)


def test_where_nothing_is_shared_the_documents_are_whole():
    batch = pack_branches(*documents_of([[1, 2], [3, 4]], [(0, [5]), (1, [6])]))
    assert isinstance(batch.packing, Packing)
    assert batch.tokens.tolist() == [1, 2, 3, 4]


def test_a_sequence_may_not_outgrow_the_model_with_its_stem():
    model = model_of(max_seq_len=6)
    documents, shared = documents_of([[1, 2, 3, 4]], [(0, [5, 6, 7]), (0, [5, 6, 7, 8])])
    with pytest.raises(ValueError, match="a sequence has 7 tokens but max_seq_len=6"):
        model.loss(pack_branches(documents, shared))


@pytest.mark.parametrize("change", ["recomputed", "moved"])
def test_gradients_stay_when(change):
    """Blocks are computed twice to save memory; the batch goes to another device, here the same."""
    model = model_of()
    documents, shared = drawn(random.Random(0))
    batch = pack_branches(documents, shared)
    backward(model, batch, 0.5)
    truth = gradients(model)
    model.recompute = change == "recomputed"
    packing = batch.packing.to(torch.device("cpu")) if change == "moved" else batch.packing
    backward(model, dataclasses.replace(batch, packing=packing), 0.5)
    assert distance(truth, gradients(model)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_is_no_worse_than_of_whole_sequences(dtype):
    documents, shared = drawn(random.Random(1))
    found = {}
    for name, wide in (("truth", None), ("whole", dtype), ("branched", dtype)):
        model = model_of()
        model = model if wide is None else model.float()
        model.compute_dtype = wide
        batch = pack_branches(documents, shared) if name == "branched" else pack(documents)
        backward(model, batch, 1 / batch.count)
        found[name] = {key: value.double() for key, value in gradients(model).items()}
    whole, branched = (distance(found["truth"], found[name]) for name in ("whole", "branched"))
    assert branched < 1.5 * whole


def test_what_is_heard_belongs_to_the_branch():
    """Of answers of several turns, to one prompt."""
    model = model_of()
    documents = [answering([1, 2, 3], [4, 5, 6], [(1, (7, 8))]), answering([1, 2, 3], [9, 5], [(2, (7,))])]
    whole, branched = pack(documents), pack_branches(documents, [2, 2])
    losses = (model.loss(each)[each.targets != IGNORE].detach() for each in (whole, branched))
    torch.testing.assert_close(*losses, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (Document([1, 2, 3], [IGNORE, 3, 4]), "what documents share has no targets"),
        (Document([1, 2, 3], [IGNORE, IGNORE, 4], segments=[0, 0, 1]), "have targets alone"),
        (Document([1, 2, 3], label=1), "have targets alone"),
    ],
)
def test_what_would_be_lost_is_refused(document, words):
    with pytest.raises(ValueError, match=words):
        pack_branches([document, document], [2, 2])


@pytest.mark.parametrize(("ranks", "most"), [(1, 10_000), (1, 60), (2, 10_000), (4, 40)])
def test_answers_to_one_prompt_are_computed_together(ranks, most):
    """By one rank, as far as these have as much to do, and in one part, as far as that holds them."""
    prompts = [[i] * 9 for i in range(8)]
    episodes = [Episode(None, prompt, [*range(3)], [0.0] * 3, "") for _ in range(6) for prompt in prompts]
    parts = [parts_of(episodes, most, rank, ranks) for rank in range(ranks)]
    assert sorted(i for of_rank in parts for part in of_rank for i in part) == [*range(48)]
    counts = [[len(to_batch([episodes[i] for i in part], CPU).tokens) for part in of_rank] for of_rank in parts]
    assert sum(map(sum, counts)) <= 8 * (8 + 6 * 3) + 8 * (sum(map(len, parts)) - 1)  # a prompt more for each cut
    assert max(map(sum, counts)) <= 1.2 * min(map(sum, counts))
    assert max(map(max, counts)) <= most + 8 + 3


def test_gradients_of_what_is_looked_up_are_added_up():
    rows = torch.tensor([0, 1, 4, 0, 1, 2, 3, 0])
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: _LookUp.apply(x, rows, *copies_of(rows, 5)), x)


def test_sums_of_half_precision_are_rounded_once():
    """Of 4,096 ones bfloat16 would count 256."""
    rows = torch.zeros(4096, dtype=torch.int64)
    x = torch.ones(1, 2, 4, dtype=torch.bfloat16, requires_grad=True)
    _LookUp.apply(x, rows, *copies_of(rows, 1)).backward(torch.ones(4096, 2, 4, dtype=torch.bfloat16))
    assert (x.grad == 4096).all()
