"""Optimisers, schedule and budget."""

from itertools import pairwise

import pytest
import torch
from tiny import gpt

from minillm import optim
from minillm.optim import Budget, schedule, set_lr


def muon(model):
    return optim.muon(model, lr=0.01, embedding_lr=0.005)


def adamw(model):
    return optim.adamw(model, lr=0.01)


@pytest.mark.parametrize("make", [muon, adamw])
@pytest.mark.parametrize("choices", [{}, {"bias": True, "positions": "learned", "tie_embeddings": False}], ids=str)
def test_every_parameter_has_one_optimiser(make, choices):
    model = gpt(**choices)
    found = [p for optimizer in make(model) for group in optimizer.param_groups for p in group["params"]]
    assert len(found) == len({id(p) for p in found})
    assert {id(p) for p in found} == {id(p) for p in model.parameters()}


def test_muon_has_the_matrices_of_the_blocks_only():
    model = gpt(bias=True, positions="learned", tie_embeddings=False)
    matrices, rest = muon(model)
    assert isinstance(matrices, torch.optim.Muon)
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)].split(".", 2)[2] for p in matrices.param_groups[0]["params"]} == {
        "attn.qkv.weight",
        "attn.out.weight",
        "mlp.up.weight",
        "mlp.down.weight",
    }
    assert {"tokens.weight", "positions.weight", "output.weight", "final_norm.weight"} <= {
        names[id(p)] for p in rest.param_groups[0]["params"]
    }


def test_schedule_is_up_and_down():
    assert schedule(0.0, 0.02) == 0.0
    assert schedule(0.01, 0.02) == pytest.approx(0.5)
    assert schedule(0.02, 0.02) == pytest.approx(1.0)
    assert schedule(0.51, 0.02) == pytest.approx(0.5)
    assert schedule(1.0, 0.02) == schedule(1.5, 0.02) == 0.0
    values = [schedule(i / 1000, 0.02) for i in range(1001)]
    assert max(abs(a - b) for a, b in pairwise(values)) < 0.06  # no jumps


def test_learning_rates_are_shares_of_the_first():
    optimizers = muon(gpt())
    for factor in (0.5, 0.0, 1.0, 0.25):
        set_lr(optimizers, factor)
        assert [o.param_groups[0]["lr"] for o in optimizers] == [pytest.approx(0.01 * factor), 0.005 * factor]


def test_budget_of_steps():
    budget = Budget(None, 8)
    assert [budget.progress(step) for step in (0, 2, 8, 10)] == [0, 0.25, 1, 1.25]
    assert Budget(2.0, 8).progress(4) == 0.5  # steps go before minutes


def test_budget_of_minutes(monkeypatch):
    now = 100.0
    monkeypatch.setattr(optim.time, "monotonic", lambda: now)
    fresh, resumed = Budget(2.0, None), Budget(2.0, None, spent_seconds=60.0)
    assert (fresh.progress(5), resumed.progress(5)) == (0.0, 0.5)
    now = 160.0
    assert (fresh.progress(5), resumed.progress(5)) == (0.5, 1.0)
    assert (fresh.seconds, resumed.seconds) == (60.0, 120.0)
