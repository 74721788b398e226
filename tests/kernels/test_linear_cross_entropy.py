"""Cross-entropy from hidden states: equal to the definition, however the rows are cut, in little memory."""

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kernels import linear_cross_entropy
from kernels.arguments import CrossEntropyOptions as Options
from kernels.linear_cross_entropy_chunks import run as run_chunks

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


def run(impl: str, tensors, g: Tensor | None, **options) -> list[Tensor]:
    """Loss, statistics and gradients in float64; g None for a gradient of 3 after a reduction."""
    hidden, weight, bias, targets = tensors
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in (hidden, weight, bias)]
    loss, stats = linear_cross_entropy(*leaves[:2], targets, bias=leaves[2], return_stats=True, impl=impl, **options)
    loss.backward(loss.new_tensor(3.0) if g is None else g.to(loss.dtype))
    return [x.detach().double() for x in (loss, *stats, *(leaf.grad for leaf in leaves if leaf is not None))]


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("chunk_rows", [1, 3, 7, None])
@pytest.mark.parametrize("with_bias", [True, False])
@all_options
def test_equals_the_definition(options, reduction, chunk_rows, with_bias):
    *tensors, targets, g = draw(7, 4, 9)
    if not with_bias:
        tensors[2] = None
    g = g if reduction == "none" else None
    options = options | {"reduction": reduction}
    ours = run("torch", (*tensors, targets), g, chunk_rows=chunk_rows, **options)
    torch.testing.assert_close(ours, run("eager", (*tensors, targets), g, **options))


@pytest.mark.parametrize("impl", ["torch", "eager"])
def test_mean_is_over_the_targets_that_count(impl):
    hidden, weight, _, targets, _ = draw(7, 4, 9)
    count = int((targets != IGNORED).sum())
    assert 0 < count < 7
    loss = linear_cross_entropy(hidden, weight, targets, impl=impl)
    mean = linear_cross_entropy(hidden, weight, targets, reduction="mean", impl=impl)
    torch.testing.assert_close(mean, loss.sum() / count)


@pytest.mark.parametrize(("chunk_rows", "reduction"), list(product([2, None], ["none", "sum", "mean"])))
def test_gradcheck(chunk_rows, reduction):
    hidden, weight, bias, targets, _ = draw(5, 3, 4)

    def f(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden, weight, targets, bias=bias, chunk_rows=chunk_rows, reduction=reduction, z_loss=0.01
        )

    assert torch.autograd.gradcheck(f, (hidden, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("V", [3, 70, 5001])  # from 4096 on rows of logits are padded
@pytest.mark.parametrize(("chunk_rows", "reduction"), [(6, "none"), (6, "mean"), (None, "none"), (None, "sum")])
def test_error_is_that_of_the_definition(dtype, V, chunk_rows, reduction):
    """Against float64, at most twice the error of the plain formula in the same dtype, whole or in the same chunks
    (a library sums a product of few rows in another order, and less exactly)."""
    hidden, weight, bias, targets, g = draw(20, 16, V, dtype)
    g = g if reduction == "none" else None
    tensors = hidden, weight, bias, targets
    options = {"reduction": reduction, "label_smoothing": 0.1}
    ours = run("torch", tensors, g, chunk_rows=chunk_rows, **options)
    plain = run("eager", tensors, g, **options)
    parts = plain_in_chunks(tensors, g, chunk_rows or 20, options)
    wide = [x.detach().double() for x in tensors[:3]]
    right = run("eager", (*wide, targets), g, **options)
    for a, b, p, c in zip(ours, plain, parts, right, strict=True):
        floor = 8 * torch.finfo(torch.float32).eps * c.abs().max().clamp_min(1)
        error = torch.maximum((b - c).abs().max(), (p - c).abs().max())
        assert (a - c).abs().max() <= torch.maximum(2 * error, floor)


def plain_in_chunks(tensors, g, rows, options):
    """What `run` gives for the plain formula, its hidden gradient formed in chunks of rows."""
    hidden, weight, bias, targets = tensors
    whole = list(run("eager", tensors, g, **options))
    scale = (targets != IGNORED).sum() if options["reduction"] == "mean" else 1
    place = next(i for i, x in enumerate(whole) if x.shape == hidden.shape)
    each = {**options, "reduction": "none"}
    parts = []
    for start in range(0, len(hidden), rows):
        part = slice(start, start + rows)
        g_part = torch.ones_like(whole[0].expand(len(hidden))[part]) / scale if g is None else g[part]
        chunk = run("eager", (hidden[part].detach().requires_grad_(), weight, bias, targets[part]), g_part, **each)
        parts.append(next(x for x in chunk if x.shape == hidden[part].shape))
    whole[place] = torch.cat(parts)
    return whole


def test_float32_master_weights():
    """bfloat16 activations; the gradient of the weight stays in float32 over the chunks (Liger issue 512)."""
    hidden, weight, _, targets, _ = draw(64, 8, 5, torch.float32, ignored=NONE)
    half = hidden.detach().bfloat16().requires_grad_()
    loss = linear_cross_entropy(half, weight, targets, reduction="sum", chunk_rows=1)
    loss.backward()
    assert (loss.dtype, half.grad.dtype, weight.grad.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    wide, wide_weight = half.detach().double().requires_grad_(), weight.detach().bfloat16().double().requires_grad_()
    linear_cross_entropy(wide, wide_weight, targets, reduction="sum", impl="eager").backward()
    error = (weight.grad.double() - wide_weight.grad).abs().max() / wide_weight.grad.abs().max()
    assert error < 2e-3  # summed in bfloat16 it is 1e-2


def test_autocast():
    hidden, weight, _, targets, _ = draw(6, 8, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets, reduction="sum")
    loss.backward()
    expected = linear_cross_entropy(hidden.bfloat16(), weight, targets, reduction="sum")
    assert torch.equal(loss, expected)
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_nothing_counts(reduction):
    hidden, weight, bias, targets, _ = draw(5, 3, 4, ignored=ALL)
    loss, stats = linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction, return_stats=True)
    loss.sum().backward()
    assert not loss.any()
    assert not torch.stack(stats).any()
    assert not any(x.grad.any() for x in (hidden, weight, bias))


def test_no_rows():
    hidden, weight, _, targets, _ = draw(0, 3, 4)
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.sum().backward()
    assert loss.shape == (0,)
    assert not weight.grad.any()


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize(("chunk_rows", "reduction"), [(2, "none"), (2, "sum"), (None, "none")])
def test_frozen_inputs(frozen, chunk_rows, reduction):
    """Each gradient alone must not depend on the others being wanted (Liger issue 507)."""
    *tensors, targets, _ = draw(5, 3, 4)
    full = [x.detach().clone().requires_grad_() for x in tensors]
    part = [x.detach().clone().requires_grad_(i != frozen) for i, x in enumerate(tensors)]
    for hidden, weight, bias in (full, part):
        linear_cross_entropy(
            hidden, weight, targets, bias=bias, chunk_rows=chunk_rows, reduction=reduction
        ).sum().backward()
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


@pytest.mark.parametrize(("chunk_rows", "reduction"), [(2, "sum"), (2, "none"), (None, "none")])
def test_two_backward_passes_through_one_graph(chunk_rows, reduction):
    hidden, weight, _, targets, _ = draw(5, 3, 4)
    loss = linear_cross_entropy(hidden, weight, targets, chunk_rows=chunk_rows, reduction=reduction).sum()
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(3 * loss, (hidden, weight))
    for a, b, c in zip(first, kept, second, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 3 * b)


def test_inputs_are_not_written_to():
    hidden, weight, bias, targets, _ = draw(5, 3, 4)
    before = [x.detach().clone() for x in (hidden, weight, bias)]
    for reduction in ("none", "sum"):
        linear_cross_entropy(hidden, weight, targets, bias=bias, reduction=reduction, temperature=2.0).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (hidden, weight, bias), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_g", [False, True])
def test_no_tensor_is_larger_than_a_chunk(dtype, with_g):
    """Looks at everything that both passes allocate, below the operators, where a dispatch mode sees it."""
    N, C, V, rows = 512, 8, 4096, 16
    hidden, weight, _, targets, g = (x.detach() for x in draw(N, C, V, dtype, ignored=NONE))
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                largest = max(largest, x.untyped_storage().nbytes() if isinstance(x, Tensor) else 0)
            return out

    how = {"chunk_rows": rows, "stats": True, "wanted": [True, True, False], "triton": False}
    with Watch():
        run_chunks(hidden, weight, None, targets, Options(), g=g if with_g else None, **how)
    assert largest == 4 * rows * V


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


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_double_backward_says_no(reduction):
    hidden, weight, _, targets, _ = draw(5, 3, 4)
    loss = linear_cross_entropy(hidden, weight, targets, reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="linear_cross_entropy has no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


# ---- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize(("chunk_rows", "total"), [(2, True), (2, False), (100, True), (100, False)])
def test_opcheck(chunk_rows, total):
    hidden, weight, bias, targets, g = draw(5, 3, 4, torch.float32, ignored=NONE)
    for wanted, with_bias in (([True, True, True], bias), ([False, True, False], None)):
        tail = (IGNORED, 0.1, 0.01, 1.5, chunk_rows, wanted, False)
        leaves = [x.detach().requires_grad_(want) for x, want in zip((hidden, weight), wanted, strict=False)]
        forward = torch.ops.minillm.linear_cross_entropy.default
        torch.library.opcheck(forward, (*leaves, with_bias, targets, *tail, True, total))
        kept = (torch.zeros(5 if chunk_rows > 5 else 0, 4), torch.zeros(2, 5))
        frozen = [None if x is None else x.detach() for x in (*leaves, with_bias)]
        backward = torch.ops.minillm.linear_cross_entropy_backward.default
        torch.library.opcheck(backward, (*frozen, targets, *kept, g, *tail))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compiles_without_a_graph_break(reduction):
    hidden, weight, bias, targets, _ = draw(9, 3, 4, torch.float32)

    def f(hidden: Tensor, weight: Tensor) -> Tensor:
        loss, stats = linear_cross_entropy(
            hidden * 2, weight, targets, bias=bias, reduction=reduction, chunk_rows=4, return_stats=True
        )
        return loss.sum() + stats.entropy.mean()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    leaves = hidden, weight
    torch.testing.assert_close(torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(f(*leaves), leaves))
