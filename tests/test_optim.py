"""Optimisers: which rule moves which parameters."""

import copy

import pytest
import torch
from tiny import bert_config, gpt, gpt_config
from torch import nn

from minillm import optim
from minillm.errors import UserError
from minillm.heads import SequenceClassifier
from minillm.optim import OPTIMIZERS

MODELS = {
    "gpt": gpt,
    "gpt-2": lambda: gpt(bias=True, positions="learned", tie_embeddings=False),
    "bert classifier": lambda: SequenceClassifier(bert_config(), "ab"),
    "gpt classifier": lambda: SequenceClassifier(gpt_config(), "ab"),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_every_parameter_has_one_optimiser(make, model):
    model = model()
    if make is optim.adamw_under_head and not isinstance(model, SequenceClassifier):
        with pytest.raises(UserError, match="adamw-head is for classifiers"):
            make(model, 0.01, 0.005)
        return
    found = [p for optimizer in make(model, 0.01, 0.005) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len({id(p) for p in found})
    assert {id(p) for p in found} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_blocks_and_the_rest_have_rates_of_their_own(name):
    """The rest of a classifier is its head alone: an encoder learns as one."""
    model = SequenceClassifier(bert_config(), "ab") if name == "adamw-head" else gpt(bias=True)
    names = {id(p): n for n, p in model.named_parameters()}
    rates = {
        names[id(p)]: group["lr"]
        for optimizer in OPTIMIZERS[name](model, 0.01, 0.005)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    if name == "adamw":
        assert rates == {n: 0.01 if "blocks." in n else 0.005 for n in names.values()}
    if name == "muon":
        assert rates == {n: 0.01 if "blocks." in n and p.ndim == 2 else 0.005 for n, p in model.named_parameters()}
    if name == "adamw-head":
        assert rates == {n: 0.01 if n.startswith("encoder.") else 0.005 for n in names.values()}


def test_weight_decay_is_for_the_matrices_of_classifiers_alone():
    (optimizer,) = optim.adamw_under_head(SequenceClassifier(bert_config(), "ab"), 0.01, 0.005)
    for group in optimizer.param_groups:
        assert {p.ndim == 2 for p in group["params"]} == {group["weight_decay"] > 0}
    for make in (optim.muon, optim.adamw):
        groups = [group for optimizer in make(gpt(), 0.01, 0.005) for group in optimizer.param_groups]
        assert {group["weight_decay"] for group in groups} == {0.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_muon_moves_as_pytorchs_does(dtype):
    """Which computes in bfloat16; matrices of one shape are moved together, and one without a gradient not at all."""
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(8, 24), (24, 8), (8, 24), (8, 8), (4, 4)]]
    theirs = copy.deepcopy(ours)
    how = {"weight_decay": 0.1, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = optim.Muon(ours, 0.1, 0.1, dtype), torch.optim.Muon(theirs, lr=0.1, **how)
    before = copy.deepcopy(ours)
    for _ in range(4):
        for one, other in list(zip(ours, theirs, strict=True))[:-1]:
            one.grad = other.grad = torch.randn_like(one)
        for optimizer in optimizers:
            optimizer.step()
    for one, other, old in list(zip(ours, theirs, before, strict=True))[:-1]:
        assert (one - other).norm() < 0.02 * (other - old).norm()
    assert torch.equal(ours[-1], before[-1])


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 32), (2, 32, 8)])
def test_the_polar_factor_is_that_of_the_singular_value_decomposition_but_for_the_size_of_values(shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    core = u.mT @ optim.polar(x) @ v.mT  # diagonal in the singular vectors
    values = core.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(core, torch.diag_embed(values), rtol=0, atol=1e-9)
    assert values.min() > 0.3  # those under a hundredth of the norm are still on their way up
    assert values.max() < 1.3


def test_no_matrix_without_momentum_makes_a_step_that_is_no_number():
    matrix = nn.Parameter(torch.ones(4, 4))
    matrix.grad = torch.zeros(4, 4)
    optim.Muon([matrix], 0.1, 0.0, None).step()
    assert torch.equal(matrix, torch.ones(4, 4))


def test_muon_has_the_matrices_of_the_blocks_only():
    model = gpt(bias=True, positions="learned", tie_embeddings=False)
    matrices, rest = optim.muon(model, 0.01, 0.005)
    assert isinstance(matrices, optim.Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".", 2)[2] for p in matrices.param_groups[0]["params"]} == {
        "attn.qkv.weight",
        "attn.out.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    assert {"tokens.weight", "positions.weight", "output.weight", "final_norm.weight"} <= {
        names[id(p)] for group in rest.param_groups for p in group["params"]
    }
