"""torch.compile of a whole model: the kernels are nodes of one graph, and loss and gradients stay what they are."""

import shutil
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels import Packing, attention, cross_entropy, linear_cross_entropy, set_default
from minillm.heads import MaskedLM
from tests.tiny import batch_of, bert_config, gpt, packed, sequences, shake

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


@pytest.mark.parametrize(
    ("dynamic", "dtype", "options"),
    [
        (None, torch.float32, {}),
        (True, torch.float32, {}),
        (True, torch.bfloat16, {"window": 3, "softcap": 5.0}),
        pytest.param(None, torch.bfloat16, {}, marks=pytest.mark.slow),
        pytest.param(True, torch.float32, {"dropout_p": 0.3}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_attention_of_other_lengths(dynamic, dtype, options):
    """One graph, whatever is known of the lengths: the second meets symbols, a single query is special."""

    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q * 1, k, v, causal=True, **options).sin().sum()

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for B, T, S in ((2, 20, 20), (2, 33, 33), (3, 9, 9), (2, 20, 31), (2, 1, 31)):
        leaves = [torch.randn(B, n, heads, 16).to(dtype).requires_grad_() for n, heads in ((T, 4), (S, 2), (S, 2))]
        expected = torch.autograd.grad(function(*leaves), leaves)
        torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), expected)


def test_numbers_that_change_are_symbols():
    """A scale or a temperature that another call chooses otherwise."""

    def function(q: Tensor, logits: Tensor, number: float) -> Tensor:
        loss = cross_entropy(logits, torch.arange(3), temperature=number, impl="eager")
        return attention(q, q, q, scale=number, dropout_p=number / 4).sum() + loss.sum()

    compiled = torch.compile(function, backend="eager", fullgraph=True, dynamic=True)
    for number in (0.5, 0.7, 2.0):
        inputs = torch.randn(1, 20, 2, 16), torch.randn(3, 5), number
        torch.testing.assert_close(compiled(*inputs), function(*inputs))


def test_a_wrong_target_is_refused_in_a_graph():
    compiled = torch.compile(partial(cross_entropy, impl="eager"), backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="a target is neither in 0"):
        compiled(torch.randn(3, 5), torch.tensor([0, 5, 1]))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=compiler)])
@pytest.mark.parametrize("dynamic", [None, True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "make", [lambda: gpt(num_kv_heads=2), lambda: shake(MaskedLM(bert_config()))], ids=["gpt", "bert"]
)
def test_models_of_both_kinds(make, dtype, dynamic, backend):
    """Against float64, with at most twice the error of the same model as it is: the compiler rounds elsewhere."""
    truth, model = make().eval(), make().float().eval()
    model.compute_dtype = dtype

    def loss(model: torch.nn.Module, tokens: Tensor, packing: Packing) -> Tensor:
        return model.loss(batch_of(tokens, packing, tokens.roll(-1)), 1 / len(tokens))

    compiled = torch.compile(loss, backend=backend, dynamic=dynamic)
    for lengths in ((5, 9, 2), (4, 12), (7, 7), (1,), (16,)):
        tokens = sequences(lengths)
        right = gradients(truth, loss(truth, *packed(tokens)))
        plain, ours = (gradients(model, f(model, *packed(tokens))) for f in (loss, compiled))
        assert error(ours, right) <= 2 * error(plain, right) + 1e-6


def error(found: list[Tensor], right: list[Tensor]) -> float:
    """Of all gradients as one vector, relative."""
    found, right = (torch.cat([x.double().flatten() for x in each]) for each in (found, right))
    return float((found - right).norm() / right.norm())


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
