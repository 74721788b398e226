"""The block-by-block form, with blocks so small that every length crosses several, and grouping by length."""

import pytest
import torch

from kernels import Packing, attention, reference
from kernels.cpu import blocks
from kernels.packing import Groups

OPTIONS = [
    {"window": 3},
    {"causal": True, "window": 3},
    {"window": 5, "q_lengths": torch.tensor([13, 20]), "k_lengths": torch.tensor([17, 0])},
    {"causal": True, "softcap": 1.5, "k_lengths": torch.tensor([3, 17])},
    {"softcap": 1.5, "scale": 0.7},
    {"causal": True, "window": 100, "q_lengths": torch.tensor([20, 1])},
]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)
    monkeypatch.setattr(blocks, "PIECE", 50)


def draw(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def gradients(out, inputs):
    weight = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, inputs, weight.to(out.dtype))]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("T", "S"), [(20, 20), (20, 17), (20, 31)])
@pytest.mark.usefixtures("small_blocks")
def test_against_the_definition(options, T, S):
    inputs = draw(2, T, 4, 8), draw(2, S, 2, 8), draw(2, S, 2, 8)
    ours = gradients(attention(*inputs, impl="torch", **options), inputs)
    truth = gradients(reference.attention(*inputs, **options), inputs)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.usefixtures("small_blocks")
def test_dropout_gradient(causal):
    """The backward draws the numbers of the forward again, piece by piece, else this fails."""
    inputs = draw(1, 9, 2, 4), draw(1, 9, 1, 4), draw(1, 9, 1, 4)
    options = {"causal": causal, "dropout_p": 0.4, "dropout_seed": 5, "impl": "torch"}
    assert torch.autograd.gradcheck(lambda *x: attention(*x, **options), inputs)


@pytest.mark.usefixtures("small_blocks")
def test_dropout_gradient_of_groups():
    """The generator goes on from one group of equal lengths to the next, in the backward too."""
    packing = Packing.from_lengths([3, 5])
    inputs = draw(8, 1, 4), draw(8, 1, 4), draw(8, 1, 4)
    options = {"packing": packing, "dropout_p": 0.5, "dropout_seed": 5, "impl": "torch"}
    assert torch.autograd.gradcheck(lambda *x: attention(*x, **options), inputs)


def test_pieces_of_several_sequences(monkeypatch):
    """Three sequences of seven at a time: the last piece is smaller."""
    monkeypatch.setattr(blocks, "PIECE", 48)
    inputs = draw(7, 4, 1, 8), draw(7, 4, 1, 8), draw(7, 4, 1, 8)
    options = {"causal": True, "window": 3}
    ours = gradients(attention(*inputs, impl="torch", **options), inputs)
    for a, b in zip(ours, gradients(reference.attention(*inputs, **options), inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_keeps_the_mean_and_follows_the_seed():
    q, k = torch.zeros(1, 256, 2, 4), torch.zeros(1, 256, 2, 4)
    v = torch.ones(1, 256, 2, 4)
    first, again, other = (attention(q, k, v, dropout_p=0.25, dropout_seed=seed, impl="torch") for seed in (3, 3, 4))
    assert abs(first.mean().item() - 1) < 0.01  # 131,072 draws: standard deviation 0.0016
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [(300,), (5, 63, 64, 200), (1, 1, 3, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_no_less_exact_than_pytorch(dtype, lengths, causal):
    """In every dtype at most twice the error of the plain formula, as for the Triton kernels."""
    packing = Packing.from_lengths(lengths)
    shapes = [(packing.num_tokens, heads, 32) for heads in (4, 2, 2)]
    inputs = [draw(*shape, dtype=dtype) for shape in shapes]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    options = {"packing": packing, "causal": causal}
    ours = gradients(attention(*inputs, **options, impl="torch"), inputs)
    plain = gradients(attention(*inputs, **options, impl="eager"), inputs)
    truth = gradients(attention(*wide, **options, impl="eager"), wide)
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), ours, plain, truth, strict=True):
        allowed = 2 * (b - c).abs().max() + 2e-6 * max(1, c.abs().max())
        assert (a - c).abs().max() <= allowed, f"{name}: {(a - c).abs().max():.2e}, allowed {allowed:.2e}"


def test_extreme_scores():
    inputs = [draw(1, 200, 2, 16, dtype=torch.bfloat16) for _ in range(3)]
    out = attention(inputs[0] * 3e4, *inputs[1:], causal=True, impl="torch")
    assert all(torch.isfinite(x).all() for x in gradients(out, inputs))


def test_hidden_scores_may_overflow():
    """In float16 the last query's key, which the others may not see, gives them scores of ∞."""
    q, k, v = (draw(1, 100, 2, 16, dtype=torch.float16) for _ in range(3))
    with torch.no_grad():
        q.abs_(), k[:, -1].fill_(6e4), q[:, -1].zero_()
    assert q[0, 0, 0].float() @ k[0, -1, 0].float() / 4 > torch.finfo(torch.float16).max
    out = attention(q, k, v, causal=True, impl="torch")
    assert all(torch.isfinite(x).all() for x in gradients(out, (q, k, v)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("T", "S"), [(1, 9), (1, 1), (3, 9), (9, 9)])
@pytest.mark.parametrize("k_lengths", [None, (9, 4), (0, 1)])
@pytest.mark.parametrize("options", [{"causal": True}, {"causal": True, "softcap": 2.0}, {"window": 3}], ids=str)
@torch.no_grad()
def test_decoding(dtype, T, S, k_lengths, options):
    """Without gradients a few queries take a path of their own, unless their scores are capped."""
    q, k, v = draw(2, T, 4, 8, dtype=dtype), draw(2, S, 2, 8, dtype=dtype), draw(2, S, 2, 8, dtype=dtype)
    lengths = None if k_lengths is None else torch.tensor(k_lengths).clamp(max=S)
    ours = attention(q, k, v, k_lengths=lengths, impl="torch", **options)
    truth = reference.attention(q.double(), k.double(), v.double(), k_lengths=lengths, **options)
    torch.testing.assert_close(ours.double(), truth, atol=0.03 if dtype == torch.bfloat16 else 1e-6, rtol=0.01)


def test_groups():
    """Sequences of equal lengths lie together, and rows that lie right already are not moved."""
    packing = Packing.from_lengths([2, 3, 0, 2])
    groups = packing.groups_with(packing)
    assert groups.shapes == ((2, 2, 2), (1, 3, 3))
    assert groups.q_rows.tolist() == [0, 1, 5, 6, 2, 3, 4]
    assert packing.groups_with(packing) is groups
    in_order = Packing.from_lengths([2, 2, 3])
    assert in_order.groups_with(in_order) == Groups(((2, 2, 2), (1, 3, 3)), None, None)
    keys = Packing.from_lengths([4, 0, 5, 1])
    crossed = packing.groups_with(keys)
    assert crossed.shapes == ((1, 2, 1), (1, 2, 4))
    assert crossed.q_rows.tolist() == [5, 6, 0, 1]
    assert crossed.k_rows.tolist() == [9, 0, 1, 2, 3]


def test_hidden_pairs_are_not_computed(monkeypatch):
    """Causal: the scores of 4 blocks are those of 4 + 3 + 2 + 1 of the 16 squares."""
    monkeypatch.setattr(blocks, "BLOCK", 8)
    counted = []
    scores = blocks._probabilities
    monkeypatch.setattr(
        blocks,
        "_probabilities",
        lambda q, k, *rest: counted.append(q.shape[1] * k.shape[1]) or scores(q, k, *rest),
    )
    attention(*(draw(1, 32, 1, 8).detach().bfloat16() for _ in range(3)), causal=True, impl="torch")
    assert sum(counted) == 10 * 8 * 8


@pytest.mark.parametrize("rows", [None, torch.tensor([3, 4, 5, 0, 1, 2])])
def test_opcheck(rows):
    q, k, v = draw(6, 4, 8), draw(6, 2, 8), draw(6, 2, 8)
    arguments = (q, k, v, rows, rows, [2, 3, 3], True, 2, 0.3, None, 0.0, 0)
    torch.library.opcheck(blocks.attention_blocks, arguments)
    grad, *inputs = (x.detach() for x in (q, q, k, v))
    torch.library.opcheck(blocks.attention_blocks_backward, (grad, *inputs, *arguments[3:]))


def test_no_second_derivative():
    q, k, v = (draw(1, 20, 1, 16) for _ in range(3))
    out = attention(q, k, v, window=3, impl="torch")
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dq.sum().backward()
