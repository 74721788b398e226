"""Cross-entropy from hidden states: equal to the definition, however the rows are cut, in little memory."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import linear_cross_entropy
from kernels.arguments import CrossEntropyOptions as Options
from kernels.cpu import cross_entropy as rows_in_pytorch
from kernels.linear_cross_entropy import Gradients, Room
from kernels.linear_cross_entropy import run as run_chunks

IGNORED = -100
EVERY_THIRD, NONE, ALL = slice(1, None, 3), slice(0), slice(None)
OPTIONS = {
    "plain": {},
    "smooth": {"label_smoothing": 0.1},
    "z": {"z_loss": 1e-2},
    "cold": {"temperature": 0.6},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "temperature": 1.7},
}
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def draw(N: int, C: int, V: int, dtype: torch.dtype = torch.float64, ignored: slice = EVERY_THIRD):
    """hidden, weight, bias, targets, and gradients of the loss of which one is 0."""
    generator = torch.Generator().manual_seed(N + C + V)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((N, C), (V, C), (V,))
    )
    targets = torch.randint(0, V, (N,), generator=generator)
    targets[ignored] = IGNORED
    g = torch.randn(N, generator=generator)
    g[:1] = 0.0
    return hidden, weight, bias, targets, g


def weights(g: Tensor, kind: str) -> Tensor | float | None:
    """The weights that make Σ w · loss of what the tests weigh by g, where they can."""
    return {"single": None, "weighted": g, "one number": 0.7}[kind]


def run(impl: str, tensors, g: Tensor, kind: str, upstream: float = 1.0, **options) -> list[Tensor]:
    """Loss, statistics and gradients in float64; of single losses weighed by g, of a sum times `upstream`."""
    hidden, weight, bias, targets = tensors
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
    how = {"token_weights": weights(g, kind), "bias": leaves[2], "return_stats": True, "impl": impl}
    loss, stats = linear_cross_entropy(*leaves[:2], targets, **how, **options)
    loss.backward(g.to(loss.dtype) if kind == "single" else loss.new_tensor(upstream))
    return [x.detach().double() for x in (loss, *stats, *(leaf.grad for leaf in leaves if leaf is not None))]


all_kinds = pytest.mark.parametrize("kind", ["single", "weighted", "one number"])


@all_kinds
@pytest.mark.parametrize("chunk_rows", [1, 3, 7, None])
@pytest.mark.parametrize("with_bias", [True, False])
@all_options
def test_equals_the_definition(options, kind, chunk_rows, with_bias):
    *tensors, targets, g = draw(7, 4, 9)
    if not with_bias:
        tensors[2] = None
    ours = run("torch", (*tensors, targets), g, kind, upstream=3.0, chunk_rows=chunk_rows, **options)
    torch.testing.assert_close(ours, run("eager", (*tensors, targets), g, kind, upstream=3.0, **options))


@pytest.mark.parametrize("impl", ["torch", "eager"])
def test_the_sum_is_that_of_the_single_losses(impl):
    hidden, weight, _, targets, g = draw(7, 4, 9)
    assert (g < 0).any()
    loss = linear_cross_entropy(hidden, weight, targets, impl=impl)
    for w in (g, 0.7, torch.tensor(0.7), 1):
        weighted = linear_cross_entropy(hidden, weight, targets, token_weights=w, impl=impl)
        torch.testing.assert_close(weighted, (w * loss).sum())


@pytest.mark.parametrize("impl", ["torch", "eager"])
def test_a_weight_of_zero_drops_an_infinite_loss(impl):
    hidden, weight, bias, targets, _ = draw(3, 4, 5, ignored=NONE)
    bias = bias.detach().index_fill_(0, targets[1:2], -float("inf"))
    w = torch.tensor([1.0, 0.0, 2.0]) * (targets != targets[1])
    for stats in (False, True):
        out = linear_cross_entropy(hidden, weight, targets, token_weights=w, bias=bias, return_stats=stats, impl=impl)
        loss = out[0] if stats else out
        assert loss.isfinite()
        assert all(x.isfinite().all() for x in torch.autograd.grad(loss, (hidden, weight)))


def test_rows_without_a_weight_are_not_computed():
    hidden, weight, _, targets, g = draw(20, 4, 9)
    g[5:] = 0.0
    counted = int(((g != 0) & (targets != IGNORED)).sum())
    with patch.object(rows_in_pytorch, "forward_chunk", wraps=rows_in_pytorch.forward_chunk) as seen:
        linear_cross_entropy(hidden, weight, targets, token_weights=g)
        assert [len(call.args[0]) for call in seen.call_args_list] == [counted]


def test_statistics_are_of_every_target():
    hidden, weight, _, targets, g = draw(20, 4, 9)
    loss = linear_cross_entropy(hidden, weight, targets)
    _, stats = linear_cross_entropy(hidden, weight, targets, token_weights=torch.zeros_like(g), return_stats=True)
    torch.testing.assert_close(stats.logprob, -loss)


@pytest.mark.parametrize(("kind", "times"), [("weighted", 1), ("one number", 1), ("single", 2)])
def test_logits_are_formed_once_where_the_weights_are_known(kind, times):
    hidden, weight, _, targets, g = draw(10, 4, 9, ignored=NONE)
    with patch.object(Room, "logits", autospec=True, side_effect=Room.logits) as formed:
        loss = linear_cross_entropy(hidden, weight, targets, token_weights=weights(g, kind), chunk_rows=4)
        loss.sum().backward()
    assert formed.call_count == 3 * times


def test_no_gradients_where_none_are_wanted():
    hidden, weight, _, targets, g = draw(10, 4, 9)
    with torch.no_grad(), patch.object(Gradients, "add") as add:
        loss = linear_cross_entropy(hidden, weight, targets, token_weights=g)
    assert not loss.requires_grad
    assert not add.called


@pytest.mark.parametrize("upstream", [1.0, -2.5])
@pytest.mark.parametrize("kind", ["weighted", "one number"])
def test_gradient_from_above(kind, upstream):
    """Of 1 the backward pass has nothing to do."""
    hidden, weight, _, targets, g = draw(10, 4, 9)
    loss = linear_cross_entropy(hidden, weight, targets, token_weights=weights(g, kind))
    grads = torch.autograd.grad(loss, (hidden, weight), loss.new_tensor(upstream))
    singles = linear_cross_entropy(hidden, weight, targets)
    expected = torch.autograd.grad((singles * weights(g, kind) * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(grads, expected)


def test_small_weights_do_not_vanish_in_float16():
    hidden, weight, _, targets, _ = draw(20, 4, 50, torch.float16, ignored=NONE)
    loss = linear_cross_entropy(hidden, weight, targets, token_weights=1e-7)
    grads = torch.autograd.grad(loss, (hidden, weight), loss.new_tensor(1e7))  # as a scaler of losses does
    singles = linear_cross_entropy(hidden, weight, targets, impl="eager")
    torch.testing.assert_close(grads, torch.autograd.grad(singles.sum(), (hidden, weight)), rtol=5e-3, atol=5e-3)


def test_weights_are_constants():
    hidden, weight, _, targets, g = draw(7, 4, 9)
    for impl in ("torch", "eager"):
        with pytest.raises(ValueError, match="token_weights are constants: detach them"):
            linear_cross_entropy(hidden, weight, targets, token_weights=g.requires_grad_(), impl=impl)
        with pytest.raises(ValueError, match=r"token_weights \(6,\) don't fit targets \(7,\)"):
            linear_cross_entropy(hidden, weight, targets, token_weights=g.detach()[1:], impl=impl)


@pytest.mark.parametrize("chunk_rows", [2, None])
@all_kinds
def test_gradcheck(chunk_rows, kind):
    hidden, weight, bias, targets, g = draw(5, 3, 4)

    def f(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        how = {"token_weights": weights(g, kind), "bias": bias, "chunk_rows": chunk_rows, "z_loss": 0.01}
        return linear_cross_entropy(hidden, weight, targets, **how)

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("V", [3, 70, 5001])  # from 4096 on rows of logits are padded
@pytest.mark.parametrize("chunk_rows", [6, None])
@all_kinds
def test_error_is_that_of_the_definition(dtype, V, chunk_rows, kind):
    """Against float64, at most twice the error of the plain formula in the same dtype, whole or in the same chunks
    (a library sums a product of few rows in another order, and less exactly)."""
    hidden, weight, bias, targets, g = draw(20, 16, V, dtype)
    tensors = hidden, weight, bias, targets
    options = {"label_smoothing": 0.1}
    ours = run("torch", tensors, g, kind, chunk_rows=chunk_rows, **options)
    plain = run("eager", tensors, g, kind, **options)
    parts = plain_in_chunks(tensors, g, kind, chunk_rows or 20, options)
    wide = [x.detach().double() for x in tensors[:3]]
    right = run("eager", (*wide, targets), g, kind, **options)
    for a, b, p, c in zip(ours, plain, parts, right, strict=True):
        floor = 8 * torch.finfo(torch.float32).eps * c.abs().max().clamp_min(1)
        error = torch.maximum((b - c).abs().max(), (p - c).abs().max())
        assert (a - c).abs().max() <= torch.maximum(2 * error, floor)


def plain_in_chunks(tensors, g, kind, rows, options):
    """What `run` gives for the plain formula, its hidden gradient formed in chunks of rows."""
    hidden, weight, bias, targets = tensors
    whole = list(run("eager", tensors, g, kind, **options))
    place = next(i for i, x in enumerate(whole) if x.shape == hidden.shape)
    parts = []
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        chunk = run("eager", (hidden[part], weight, bias, targets[part]), g[part], kind, **options)
        parts.append(next(x for x in chunk if x.shape == hidden[part].shape))
    whole[place] = torch.cat(parts)
    return whole


def test_float32_master_weights():
    """bfloat16 activations; the gradient of the weight stays in float32 over the chunks (Liger issue 512)."""
    hidden, weight, _, targets, _ = draw(64, 8, 5, torch.float32, ignored=NONE)
    half = hidden.detach().bfloat16().requires_grad_()
    loss = linear_cross_entropy(half, weight, targets, token_weights=1.0, chunk_rows=1)
    loss.backward()
    assert (loss.dtype, half.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    wide, wide_weight = half.detach().double().requires_grad_(), weight.detach().bfloat16().double().requires_grad_()
    linear_cross_entropy(wide, wide_weight, targets, token_weights=1.0, impl="eager").backward()
    error = (weight.grad.double() - wide_weight.grad).abs().max() / wide_weight.grad.abs().max()
    assert error < 2e-3  # summed in bfloat16 it is 1e-2


def test_every_word_gets_a_gradient():
    """The weight's gradient is formed in slices of 16,384 words."""
    hidden, weight, _, targets, _ = draw(4, 2, 20_000, torch.bfloat16, ignored=NONE)
    linear_cross_entropy(hidden, weight, targets, token_weights=1e4, chunk_rows=2).backward()
    assert weight.grad.any(-1).all()


def test_autocast():
    hidden, weight, _, targets, _ = draw(6, 8, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, token_weights=1.0)
    loss.backward()
    expected = linear_cross_entropy(hidden.bfloat16(), weight, targets, token_weights=1.0)
    assert torch.equal(loss, expected)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


@all_kinds
def test_nothing_counts(kind):
    hidden, weight, bias, targets, g = draw(5, 3, 4, ignored=ALL)
    how = {"token_weights": weights(g, kind), "bias": bias, "return_stats": True}
    loss, stats = linear_cross_entropy(hidden, weight, targets, **how)
    loss.sum().backward()
    assert not loss.any()
    assert not torch.stack(stats).any()
    assert not any(x.grad.any() for x in (hidden, weight, bias))


@all_kinds
def test_no_rows(kind):
    hidden, weight, _, targets, g = draw(0, 3, 4)
    loss = linear_cross_entropy(hidden, weight, targets, token_weights=weights(g, kind))
    loss.sum().backward()
    assert loss.shape == ((0,) if kind == "single" else ())
    assert not weight.grad.any()


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("chunk_rows", [2, None])
@all_kinds
def test_frozen_inputs(frozen, chunk_rows, kind):
    """Each gradient alone must not depend on the others being wanted (Liger issue 507)."""
    *tensors, targets, g = draw(5, 3, 4)
    full = [x.detach().clone().requires_grad_() for x in tensors]
    part = [x.detach().clone().requires_grad_(i != frozen) for i, x in enumerate(tensors)]
    for hidden, weight, bias in (full, part):
        how = {"token_weights": weights(g, kind), "bias": bias, "chunk_rows": chunk_rows}
        linear_cross_entropy(hidden, weight, targets, **how).sum().backward()
    assert part[frozen].grad is None
    for i in {0, 1, 2} - {frozen}:
        torch.testing.assert_close(part[i].grad, full[i].grad)


def test_loss_without_gradients():
    hidden, weight, _, targets, _ = draw(5, 3, 4)
    expected = linear_cross_entropy(hidden, weight, targets, impl="eager")
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets, chunk_rows=2)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected.detach())


@pytest.mark.parametrize("chunk_rows", [2, None])
@all_kinds
def test_two_backward_passes_through_one_graph(chunk_rows, kind):
    hidden, weight, _, targets, g = draw(5, 3, 4)
    how = {"token_weights": weights(g, kind), "chunk_rows": chunk_rows}
    loss = linear_cross_entropy(hidden, weight, targets, **how).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(3 * loss, (hidden, weight))
    for a, b, c in zip(first, kept, second, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 3 * b)


def test_inputs_are_not_written_to():
    hidden, weight, bias, targets, g = draw(5, 3, 4)
    before = [x.detach().clone() for x in (hidden, weight, bias, g)]
    for w in (None, g, 0.5):
        how = {"token_weights": w, "bias": bias, "temperature": 2.0}
        linear_cross_entropy(hidden, weight, targets, **how).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (hidden, weight, bias, g), strict=True))


class Watch(TorchDispatchMode):
    """The largest tensor that a function of the library returns, in bytes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            self.largest = max(self.largest, x.untyped_storage().nbytes() if isinstance(x, Tensor) else 0)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_g", [False, True])
def test_no_tensor_is_larger_than_a_chunk(dtype, with_g):
    """Looks at everything that a pass allocates, below the operator, where a dispatch mode sees it."""
    N, C, V, rows = 512, 8, 4096, 16
    hidden, weight, _, targets, g = (x.detach() for x in draw(N, C, V, dtype, ignored=NONE))
    how = {"chunk_rows": rows, "stats": True, "wanted": [True, True, False], "triton": False}
    with Watch() as watch:
        run_chunks(hidden, weight, None, targets, g if with_g else None, Options(), **how)
    assert watch.largest == 4 * rows * V


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": (4, 3)}, r"hidden \(4, 3\), weight \(4, 3\) and targets \(5,\) don't fit"),
        ({"hidden": (5, 2)}, r"hidden \(5, 2\)"),
        ({"bias": (3,)}, r"bias \(3,\) doesn't fit weight \(4, 3\): it must be \(4,\)"),
    ],
)
def test_bad_shapes(change, message):
    hidden, weight, bias, targets, _ = draw(5, 3, 4)
    tensors = {"hidden": hidden, "weight": weight, "bias": bias}
    tensors |= {name: torch.zeros(shape, dtype=torch.float64) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**tensors, targets=targets)


def test_bad_values():
    hidden, weight, _, targets, _ = draw(5, 3, 4)
    with pytest.raises(ValueError, match="chunk_rows=0 must be at least 1"):
        linear_cross_entropy(hidden, weight, targets, chunk_rows=0)
    targets[3] = 4
    for impl in ("torch", "eager"):
        with pytest.raises(ValueError, match="target 4 is neither in 0 … 3 nor ignore_index=-100"):
            linear_cross_entropy(hidden, weight, targets, impl=impl)


@all_kinds
def test_double_backward_says_no(kind):
    hidden, weight, _, targets, g = draw(5, 3, 4)
    loss = linear_cross_entropy(hidden, weight, targets, token_weights=weights(g, kind)).sum()
    with pytest.raises(NotImplementedError, match="linear_cross_entropy has no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


# ---- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [2, 100])
@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck(chunk_rows, weighted):
    hidden, weight, bias, targets, g = draw(5, 3, 4, torch.float32, ignored=NONE)
    for wanted, with_bias in (([True, True, True], bias), ([False, True, False], None)):
        leaves = [x.detach().requires_grad_(want) for x, want in zip((hidden, weight), wanted, strict=False)]
        how = chunk_rows, wanted if weighted else [False] * 3, False, True, IGNORED, 0.1, 0.01, 1.5
        arguments = *leaves, with_bias, targets, g if weighted else None, *how
        torch.library.opcheck(torch.ops.minillm.linear_cross_entropy.default, arguments)


@all_kinds
def test_compiles_without_a_graph_break(kind):
    hidden, weight, bias, targets, g = draw(9, 3, 4, torch.float32)
    how = {"token_weights": weights(g, kind), "bias": bias, "chunk_rows": 4, "return_stats": True}

    def f(hidden: Tensor, weight: Tensor) -> Tensor:
        loss, stats = linear_cross_entropy(hidden * 2, weight, targets, **how)
        return loss.sum() + stats.entropy.mean()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    leaves = hidden, weight
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(f(*leaves), leaves))
