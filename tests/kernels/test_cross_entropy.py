"""Cross-entropy in plain PyTorch: the definition against PyTorch's own, the fast form against the definition."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from kernels import cross_entropy, reference

IGNORED = -100
OPTIONS = {
    "plain": {},
    "smooth": {"label_smoothing": 0.1},
    "z": {"z_loss": 1e-2},
    "cold": {"temperature": 0.6},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "temperature": 1.7},
}
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


def draw(N: int, V: int, dtype: torch.dtype = torch.float64, size: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits and targets, the second of which is ignored."""
    generator = torch.Generator().manual_seed(N + V)
    logits = size * torch.randn(N, V, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, V, (N,), generator=generator)
    if N > 1:
        targets[1] = IGNORED
    return logits.requires_grad_(), targets


# ---- the definition ------------------------------------------------------------------------------


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
def test_definition_is_pytorchs(label_smoothing):
    logits, targets = draw(6, 5)
    loss, *_ = reference.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    right = F.cross_entropy(logits, targets, label_smoothing=label_smoothing, reduction="none")
    torch.testing.assert_close(loss, right)


def test_definition_of_the_statistics():
    logits, targets = draw(6, 5)
    _, logprob, lse, entropy = reference.cross_entropy(logits, targets, temperature=0.5)
    counted = targets != IGNORED
    distribution = torch.distributions.Categorical(logits=(logits / 0.5)[counted])
    torch.testing.assert_close(logprob[counted], distribution.log_prob(targets[counted]), check_dtype=False)
    torch.testing.assert_close(entropy[counted], distribution.entropy())
    torch.testing.assert_close(lse[counted], (logits / 0.5).logsumexp(-1)[counted])
    assert not torch.stack([logprob, lse, entropy])[:, ~counted].any()


@all_options
def test_definition_has_the_right_gradient(options):
    logits, targets = draw(4, 5)
    assert torch.autograd.gradcheck(lambda x: reference.cross_entropy(x, targets, **options)[0], logits)


def test_z_loss_is_the_square_of_the_lse():
    logits, targets = draw(4, 5)
    targets[1] = 0
    plain, stats = cross_entropy(logits, targets, return_stats=True)
    torch.testing.assert_close(cross_entropy(logits, targets, z_loss=0.3) - plain, 0.3 * stats.lse**2)


# ---- the fast form in PyTorch --------------------------------------------------------------------


@all_options
def test_gradcheck(options):
    logits, targets = draw(4, 5)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, impl="torch", **options), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("V", [1, 3, 70, 50257])
@pytest.mark.parametrize("size", [2.0, 1e4])
@all_options
def test_error_is_that_of_the_definition(V, dtype, size, options):
    """Against float64, at most twice the error of the plain formula in the same dtype."""
    logits, targets = draw(3, V, dtype, size)
    g = torch.tensor([1.0, 5.0, -0.5])

    def run(impl: str, dtype: torch.dtype) -> list[Tensor]:
        leaf = logits.detach().to(dtype).requires_grad_()
        loss, stats = cross_entropy(leaf, targets, return_stats=True, impl=impl, **options)
        loss.backward(g.to(loss.dtype))
        return [x.detach().double() for x in (loss, *stats, leaf.grad)]

    for ours, plain, right in zip(run("torch", dtype), run("eager", dtype), run("eager", torch.float64), strict=True):
        floor = 3 * torch.finfo(torch.float32).eps * right.abs().max().clamp_min(1)
        assert (ours - right).abs().max() <= torch.maximum(2 * (plain - right).abs().max(), floor)


def test_ruled_out_words():
    """−inf logits, as a sampler's top-k leaves them."""
    logits = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf, -math.inf, 2.0]], requires_grad=True)
    targets = torch.tensor([2, 2])
    loss, stats = cross_entropy(logits, targets, return_stats=True, impl="torch")
    loss.sum().backward()
    p = torch.tensor([0.0, 1.0]).softmax(0)
    torch.testing.assert_close(loss, torch.stack([-p[1].log(), torch.tensor(0.0)]))
    torch.testing.assert_close(stats.entropy, torch.stack([-(p * p.log()).sum(), torch.tensor(0.0)]))
    torch.testing.assert_close(logits.grad, torch.tensor([[p[0], 0.0, p[1] - 1], [0.0, 0.0, 0.0]]))


# ---- the interface, whatever computes it ---------------------------------------------------------

both = pytest.mark.parametrize("impl", ["torch", "eager"])


@both
def test_leading_shape(impl):
    logits, targets = draw(6, 5)
    flat, flat_stats = cross_entropy(logits, targets, return_stats=True, impl=impl)
    loss, stats = cross_entropy(logits.view(2, 3, 5), targets.view(2, 3), return_stats=True, impl=impl)
    assert torch.equal(loss, flat.view(2, 3))
    assert torch.equal(stats.entropy, flat_stats.entropy.view(2, 3))


@both
def test_reductions(impl):
    logits, targets = draw(6, 5)
    loss = cross_entropy(logits, targets, impl=impl)
    torch.testing.assert_close(cross_entropy(logits, targets, reduction="sum", impl=impl), loss.sum())
    torch.testing.assert_close(cross_entropy(logits, targets, reduction="mean", impl=impl), loss.sum() / 5)


@both
def test_mean_over_no_targets_is_zero(impl):
    """PyTorch gives NaN, which one batch without targets spreads over the whole model (nanochat issue 590)."""
    logits, targets = draw(3, 5)
    loss = cross_entropy(logits, torch.full_like(targets, IGNORED), reduction="mean", impl=impl)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


@both
def test_ignore_index_may_be_a_word(impl):
    logits, targets = draw(4, 5)
    targets = torch.tensor([0, 2, 2, 4])
    loss = cross_entropy(logits, targets, ignore_index=2, impl=impl)
    torch.testing.assert_close(
        loss, F.cross_entropy(logits, targets, ignore_index=2, reduction="none"), check_dtype=False
    )


@both
def test_logits_are_not_written_to(impl):
    logits, targets = draw(6, 5, torch.float32)
    before = logits.detach().clone()
    cross_entropy(logits, targets, temperature=2.0, impl=impl).sum().backward()
    assert torch.equal(logits, before)


@both
def test_statistics_are_detached(impl):
    logits, targets = draw(6, 5, torch.float32)
    loss, stats = cross_entropy(logits, targets, return_stats=True, impl=impl)
    assert loss.requires_grad
    assert not any(x.requires_grad for x in stats)


@both
@pytest.mark.parametrize("target", [5, -1, -99, 2**40])
def test_target_outside_the_vocabulary(impl, target):
    logits, targets = draw(4, 5)
    targets[2] = target
    with pytest.raises(ValueError, match=f"target {target} is neither in 0 … 4 nor ignore_index=-100"):
        cross_entropy(logits, targets, impl=impl)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
        ({"z_loss": -1.0}, "z_loss=-1.0"),
        ({"z_loss": math.nan}, "z_loss=nan"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": 1e-36}, "temperature=1e-36 makes logits overflow; at least 1e-30 does not"),
        ({"reduction": "average"}, "reduction='average' is not one of none, sum, mean"),
        ({"impl": "cuda"}, "impl='cuda' is not one of"),
    ],
)
def test_bad_options(options, message):
    logits, targets = draw(4, 5)
    with pytest.raises(ValueError, match=message):
        cross_entropy(logits, targets, **options)


def test_bad_tensors():
    logits, targets = draw(4, 5)
    with pytest.raises(ValueError, match=r"targets \(3,\) don't fit logits \(4, 5\)"):
        cross_entropy(logits, targets[:3])
    with pytest.raises(ValueError, match=r"targets are torch.int32, not torch.int64"):
        cross_entropy(logits, targets.int())


def test_double_backward_says_no():
    logits, targets = draw(4, 5)
    (first,) = torch.autograd.grad(cross_entropy(logits, targets, impl="torch").sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="cross_entropy has no second derivative"):
        first.sum().backward()


# ---- torch.compile -------------------------------------------------------------------------------


@all_options
def test_opcheck(options):
    logits, targets = draw(4, 5, torch.float32)
    values = {"label_smoothing": 0.0, "z_loss": 0.0, "temperature": 1.0} | options
    for stats in (False, True):
        arguments = (logits, targets, stats, False, IGNORED, *values.values())
        torch.library.opcheck(torch.ops.minillm.cross_entropy.default, arguments)
    norm, g = torch.zeros(2, 4), torch.ones(4)
    arguments = (logits.detach(), targets, norm, g, False, IGNORED, *values.values())
    torch.library.opcheck(torch.ops.minillm.cross_entropy_backward.default, arguments)


def test_compiles_without_a_graph_break():
    logits, targets = draw(4, 5, torch.float32)

    def f(x: Tensor) -> Tensor:
        loss, stats = cross_entropy(x * 2, targets, reduction="mean", label_smoothing=0.1, return_stats=True)
        return loss + stats.entropy.mean()

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(f(logits), logits)
    torch.testing.assert_close(torch.autograd.grad(compiled(logits), logits), expected)
