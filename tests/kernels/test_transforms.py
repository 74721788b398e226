"""What all kernels share: within torch.func they are the definition, whose every step it knows."""

import pytest
import torch

from kernels import Packing, attention, choose, cross_entropy, linear_cross_entropy


def losses():
    """Of all three kernels: a function of one tensor, and that tensor for each of two samples."""
    torch.manual_seed(0)
    targets, weight = torch.tensor([0, 3, -100, 4]), torch.randn(5, 8)
    yield lambda x: attention(x, x, x, causal=True, window=3).sin().sum(), torch.randn(2, 1, 20, 2, 8)
    yield lambda x: attention(x, x, x, packing=Packing.from_lengths([12, 8])).sin().sum(), torch.randn(2, 20, 2, 8)
    yield lambda x: cross_entropy(x, targets, reduction="mean", label_smoothing=0.1), torch.randn(2, 4, 5)
    yield lambda x: linear_cross_entropy(x, weight, targets, token_weights=0.3), torch.randn(2, 4, 8)
    yield lambda x: linear_cross_entropy(x, weight, targets).square().sum(), torch.randn(2, 4, 8)


def test_torch_func_sees_through_all_kernels():
    for loss, samples in losses():
        leaves = samples.clone().requires_grad_()
        (expected,) = torch.autograd.grad(sum(map(loss, leaves)), leaves)
        torch.testing.assert_close(torch.func.grad(loss)(samples[0]), expected[0])
        torch.testing.assert_close(torch.func.jacrev(loss)(samples[1]), expected[1])
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(samples), expected)
        tangent = torch.func.jvp(loss, (samples[0],), (samples[0],))[1]
        torch.testing.assert_close(tangent, (expected[0] * samples[0]).sum())


def test_gradients_of_single_samples():
    """vmap over targets, too, at which nobody may look: a wrong one is refused all the same."""
    logits, targets = torch.randn(6, 3, 5), torch.randint(5, (6, 3))
    targets[1, 2] = -100
    got = torch.func.vmap(torch.func.grad(lambda x, y: cross_entropy(x, y).sum()))(logits, targets)
    leaf = logits.clone().requires_grad_()
    torch.testing.assert_close(got, *torch.autograd.grad(cross_entropy(leaf, targets).sum(), leaf))
    for wrong in (5, -1):
        targets[2, 0] = wrong
        with pytest.raises(RuntimeError, match=f"index {wrong} is out of bounds"):
            torch.func.vmap(cross_entropy)(logits, targets)


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_what_torch_func_cannot_see_through_says_so(impl):
    q = torch.randn(1, 5, 1, 8)
    with pytest.raises(ValueError, match=f"impl='{impl}' is closed to the transforms of torch.func; use impl='eager'"):
        torch.func.grad(lambda x: attention(x, x, x, impl=impl).sum())(q)
    assert choose(torch.device("cpu")).impl == "torch"  # as before, outside
