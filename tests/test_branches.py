"""Sequences that begin alike: as if each were computed by itself, and with fewer tokens."""

import random

import pytest
import tiny
import torch
from test_objective import distance, gradients

from kernels import Packing
from minillm.batching import IGNORE, answering, pack, pack_branches
from minillm.branches import Branches, _LookUp, copies_of
from minillm.gpt import GPT
from minillm.objective import backward

V = 11
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
    rows = [row.tolist() for row in batch.packing.own.split(batch.tokens)]
    assert rows == [[1, 2], [3, 8], [6, 7], [3], [4], [5, 8], [5]]  # [1, 2] before 3 and before 4, as it is the same
    targets = [row.tolist() for row in batch.packing.own.split(batch.targets)]
    assert targets == [[IGNORE] * 2, [8, 9], [IGNORE, 8], [9], [8], [8, 9], [9]]
    read = [row.tolist() for row in batch.packing.keys.split(batch.tokens[batch.packing.rows])]
    assert read == [[1, 2], [1, 2, 3, 8], [6, 7], [1, 2, 3], [1, 2, 4], [5, 8], [5]]
    places = [row.tolist() for row in batch.packing.own.split(batch.packing.positions)]
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
