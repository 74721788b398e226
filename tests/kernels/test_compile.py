"""torch.compile of a whole model: the kernels are nodes of one graph, and loss and gradients stay what they are."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels import Packing, linear_cross_entropy, set_default
from tests.tiny import gpt, packed, sequences

compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
CASES = [
    pytest.param("torch", "aot_eager"),
    pytest.param("torch", "inductor", marks=[pytest.mark.slow, compiler]),
    pytest.param("triton", "aot_eager", marks=pytest.mark.slow),
    pytest.param("triton", "inductor", marks=[pytest.mark.slow, compiler]),
]


@pytest.fixture(autouse=True)
def _as_before():
    yield
    set_default("auto")
    torch._dynamo.reset()


@pytest.mark.parametrize(("implementation", "backend"), CASES)
def test_a_whole_model(implementation, backend):
    """Two packed batches of other lengths, so that the second meets the graph of the first."""
    if implementation == "triton":
        pytest.importorskip("triton")
    set_default(implementation)
    model = gpt(num_kv_heads=2).float()

    def loss(tokens: Tensor, packing: Packing) -> Tensor:
        hidden, options = model(tokens, packing), {"token_weights": 1 / len(tokens), "label_smoothing": 0.1}
        return linear_cross_entropy(hidden, model.output.weight, tokens.roll(-1), **options)

    # In PyTorch the work is planned from the lengths, in Python: the graph breaks there.
    compiled = torch.compile(loss, backend=backend, fullgraph=implementation == "triton")
    for lengths in ((5, 9, 2), (4, 12)):
        tokens = sequences(lengths)  # packed twice, so that nothing derived from a packing is there already
        expected = gradients(model, loss(*packed(tokens)))
        torch.testing.assert_close(gradients(model, compiled(*packed(tokens))), expected, rtol=1e-4, atol=1e-5)


def test_other_lengths_need_no_other_graph():
    """With Triton: batches come packed in ever new ways, and compiling takes longer than a step."""
    pytest.importorskip("triton")
    model, graphs = gpt().float(), []

    def counting(graph: torch.fx.GraphModule, _inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    def hidden(tokens: Tensor, packing: Packing) -> Tensor:
        return model(tokens, packing)

    set_default("triton")
    compiled = torch.compile(hidden, backend=counting, fullgraph=True)
    for lengths in ((5, 9, 2), (4, 12), (3, 3, 3), (1, 7, 2), (8,), (2, 6, 7), (9, 9), (1, 1, 1, 5), (13, 2), (6,)):
        tokens = sequences(lengths)
        torch.testing.assert_close(compiled(*packed(tokens)), hidden(*packed(tokens)))
    assert len(graphs) <= 4  # numbers first, then symbols, but equal lengths and a single sequence are special


def gradients(model: torch.nn.Module, loss: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]
