"""The Triton kernels against float64. The yardstick is the error of PyTorch, same formula and dtype."""

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

from kernels import Packing, attention, reference
from kernels.gpu import attention_launch as operators
from kernels.gpu.attention import Strides
from kernels.gpu.launch_table import INTERPRETER
from tests.kernels.attention_cases import ADVERSARIAL, DEVICE, Case, check, draw_case, run_triton
from tests.kernels.interpreter import GuardBands, recorded_addresses, reversed_programs

interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="needs the interpreter")
DRAWN = [draw_case(i) for i in range(400)]

# ---- values and gradients --------------------------------------------------------------------------------


def test_the_cases_hold_every_option():
    """What a proof by cases is worth shows in the cases."""
    cases = ADVERSARIAL + DRAWN
    kinds = Counter(kind for case in cases for kind in kinds_of(case))
    assert len(cases) >= 400
    assert min(kinds.values()) >= 10, kinds
    assert len(kinds) == 29, kinds


def kinds_of(case: Case) -> set[str]:
    """What is special about a case."""
    pairs = set(zip(case.q_lengths, case.k_lengths, strict=True))
    causal, window = case.options.get("causal", False), case.options.get("window")
    properties = {
        "causal" if causal else "bidirectional": True,
        "window": window is not None,
        "scale": "scale" in case.options,
        "soft cap": "softcap" in case.options,
        "dropout": case.options.get("dropout_p", 0.0) > 0,
        "packed" if case.packed else "padded" if len(pairs) > 1 else "dense": True,
        "keys of another length": case.q_lengths != case.k_lengths,
        "decoding": any(n == 1 < m for n, m in pairs) and causal,
        "queries that see nothing": any(n > m for n, m in pairs) and causal,
        "no keys": any(m == 0 < n for n, m in pairs),
        "one token": (1, 1) in pairs,
        "multi-query": case.G == 1 < case.H,
        "grouped": 1 < case.G < case.H,
        "views": case.views,
        "sparse gradient": case.sparse,
    }
    properties[f"D = {case.D}"] = case.D not in (8, 100)  # these are adversarial
    return {name for name, holds in properties.items() if holds} | {str(case.dtype)}


@pytest.mark.parametrize("case", ADVERSARIAL, ids=str)
def test_adversarial(case):
    check(case)


@pytest.mark.parametrize("case", DRAWN[:12], ids=str)
def test_drawn(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", DRAWN[12:], ids=str)
def test_many_drawn(case):
    check(case)


# ---- layouts ---------------------------------------------------------------------------------------------


def test_packed_equals_padded_equals_one_by_one():
    """To the last bit, dropout included: where a sequence lies has no influence."""
    lengths, options = (33, 1, 50), {"causal": True, "dropout_p": 0.2, "dropout_seed": 5}
    case = Case(lengths, lengths, packed=True, options=options)
    packed = run_triton(case)
    packing = Packing.from_lengths(lengths, DEVICE)
    (q, k, v), _ = case.tensors()
    padded = [packing.pad(x.float()) for x in (q, k, v)]
    n = torch.tensor(lengths, device=DEVICE)
    out = attention(*padded, q_lengths=n, k_lengths=n, impl="triton", **options)
    assert torch.equal(packing.unpad(out).double(), packed[0])
    first = attention(*(x[:1, :33] for x in padded), impl="triton", **options)
    assert torch.equal(first[0].double(), packed[0][:33])


def test_one_fused_projection_is_read_in_place():
    """No copy of views of one (B,T,(H+2G)·D) projection, nor of a slice of a longer cache."""
    qkv = torch.randn(2, 20, 8, 16, device=DEVICE)
    q, k, v = qkv.split((4, 2, 2), dim=2)
    assert [x.data_ptr() for x in operators._readable(q, k, v)] == [x.data_ptr() for x in (q, k, v)]
    ours = attention(q, k, v, causal=True, impl="triton")
    torch.testing.assert_close(ours, reference.attention(q, k, v, causal=True), atol=1e-5, rtol=1e-5)
    cache = torch.randn(2, 2, 64, 2, 16, device=DEVICE)
    k, v = cache[0][:, :20], cache[1][:, :20]
    assert operators._readable(q, k, v)[1].data_ptr() == k.data_ptr()
    ours = attention(q, k, v, causal=True, impl="triton")
    torch.testing.assert_close(ours, reference.attention(q, k, v, causal=True), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("known", ["q_lengths", "k_lengths"])
def test_lengths_of_one_side_alone(known):
    """The other side is as long as its tensor."""
    (q, k, v), _ = Case((20, 20), (33, 33)).tensors()
    lengths = {known: torch.tensor([7, 20], device=DEVICE)}
    ours = attention(*(x.float() for x in (q, k, v)), **lengths, causal=True, impl="triton")
    expected = reference.attention(q, k, v, **lengths, causal=True)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("S", [40, 33])
@pytest.mark.parametrize("causal", [True, False])
def test_a_window_wider_than_32_bits_hides_nothing(causal, S):
    case = Case((40,), (S,), options={"causal": causal})
    for window in (2**31 - 1, 2**40):
        windowed = Case((40,), (S,), options={"causal": causal, "window": window})
        for a, b in zip(run_triton(case), run_triton(windowed), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def test_a_soft_cap_of_0_is_no_other_number():
    """`kernels.attention` refuses it; one that came here all the same must become neither 1 nor none."""
    q, launch = torch.zeros(1, 20, 2, 16), INTERPRETER.forward
    arguments = operators._arguments(q, q, "", 20, 20, 20, False, None, 0.25, 0.0, 0.0, 0, launch)
    assert operators.kernels.Scores(0.25, 0.0, None) in arguments


def test_any_other_strides_are_copied_not_misread():
    q, k, v = (torch.randn(2, 2, 16, 20, device=DEVICE).permute(0, 3, 1, 2) for _ in range(3))  # heads broken up
    ours = attention(q, k, v, impl="triton")
    torch.testing.assert_close(ours, reference.attention(q, k, v), atol=1e-5, rtol=1e-5)
    expanded = torch.randn(1, 20, 1, 16, device=DEVICE).expand(2, 20, 2, 16)  # strides 0
    ours = attention(q, expanded, v, impl="triton")
    torch.testing.assert_close(ours, reference.attention(q, expanded, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("broken", ["expanded", "transposed", "strided"])
def test_gradients_of_the_output_with_any_strides(broken):
    """`out.sum().backward()` hands over one number with strides 0."""
    (q, k, v), _ = Case((20,), (20,)).tensors()
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    drawn = torch.randn(1, 2, 20, 32, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    grad = {
        "expanded": drawn[:, :1, :1, :1].expand(1, 20, 2, 16),
        "transposed": drawn[..., :16].transpose(1, 2),
        "strided": drawn[..., ::2].transpose(1, 2),
    }[broken]
    ours = torch.autograd.grad(attention(*leaves, impl="triton"), leaves, grad)
    expected = torch.autograd.grad(attention(*leaves, impl="eager"), leaves, grad)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_each_gradient_alone_is_that_of_all():
    (q, k, v), _ = Case((20,), (20,)).tensors()
    together = run_triton(Case((20,), (20,)))[1:]
    for i, expected in enumerate(together):
        leaves = [x.float().requires_grad_(i == j) for j, x in enumerate((q, k, v))]
        out = attention(*leaves, impl="triton")
        out.backward(Case((20,), (20,)).gradient(out))
        assert torch.equal(leaves[i].grad.double(), expected)
        assert sum(x.grad is not None for x in leaves) == 1


@pytest.mark.filterwarnings("ignore:invalid value")  # of the interpreter: ∞ − ∞
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("row", [0, 3])
def test_queries_that_are_not_finite_show(row, value):
    """As in the definition: NaN, but 0 where all scores that row 0 has are −∞, as if it saw nothing."""
    (q, k, v), _ = Case((20,), (20,), H=4, G=2).tensors()
    q, k, v = (x.float() for x in (q, k, v))
    q[0, row, :, 0] = value
    ours = attention(q, k, v, causal=True, impl="triton")
    expected = reference.attention(q, k, v, causal=True)
    assert bool(expected[0, row].isnan().any())
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5, equal_nan=True)
    q.requires_grad_()
    attention(q, k, v, causal=True, impl="triton").sum().backward()
    assert torch.equal(q.grad.isnan(), expected.isnan())


def test_inputs_are_not_written_to():
    (q, k, v), _ = Case((20,), (20,)).tensors()
    before = [x.float() for x in (q, k, v)]
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    attention(*leaves, causal=True, impl="triton").sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, leaves, strict=True))


# ---- memory and races ------------------------------------------------------------------------------------


GUARDED = [
    Case((37,), (45,), H=4, G=2, D=24, options={"causal": True}),
    Case((37, 0, 5), (45, 3, 5), D=24, options={"window": 9}),
    Case((37, 0, 5), (45, 3, 5), D=24, packed=True, options={"causal": True, "dropout_p": 0.2}),
]


@interpreted
@pytest.mark.parametrize("case", GUARDED, ids=str)
def test_guard_bands(case):
    """NaN around the inputs, and in their padding, must not be read; sentinels around outputs must survive."""
    expected = run_triton(case)
    bands = GuardBands()
    inputs, layout = case.tensors()
    if "q_lengths" in layout:
        for x, lengths in zip(inputs, (case.q_lengths, case.k_lengths, case.k_lengths), strict=True):
            for row, length in zip(x, lengths, strict=True):
                row[length:] = float("nan")
        layout = {name: bands.guard(x) for name, x in layout.items()}
    elif case.packed:
        layout = {name: Packing(bands.guard(x.cu_seqlens), x.lengths) for name, x in layout.items()}
    leaves = [bands.guard(x.float()).requires_grad_() for x in inputs]
    with bands.outputs():
        out = attention(*leaves, **layout, **case.options, impl="triton")
        grads = torch.autograd.grad(out, leaves, bands.guard(case.gradient(out)))
    bands.check()
    for a, b in zip(expected, (out, *grads), strict=True):
        assert torch.equal(a, b.double())


@interpreted
def test_lengths_that_promise_too_much_read_nothing():
    (q, k, v), _ = Case((20, 20), (30, 30)).tensors()
    bands = GuardBands()
    lengths = {"q_lengths": torch.tensor([99, 20]), "k_lengths": torch.tensor([30, 99])}
    ours = attention(*(bands.guard(x.float()) for x in (q, k, v)), **lengths, impl="triton")
    torch.testing.assert_close(ours.double(), reference.attention(q, k, v), atol=1e-5, rtol=1e-5)


@interpreted
@pytest.mark.parametrize("case", GUARDED, ids=str)
def test_order_of_programs_does_not_matter(case):
    expected = run_triton(case)
    with reversed_programs():
        got = run_triton(case)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_the_same_bits_every_time():
    case = Case((50, 33), (50, 33), H=4, G=1, packed=True, options={"causal": True})
    first, *others = (run_triton(case) for _ in range(3))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def raw_arguments(strides: Strides, T: int, H: int, N: int, D: int, bounds: str) -> tuple:
    """What a kernel takes behind its pointers, without any option."""
    launch = INTERPRETER.forward
    block = operators.kernels.Block(launch.block_m, launch.block_n, D)
    scores = operators.kernels.Scores(1.0, None, None)
    return strides, strides, T, T, H, N, scores, None, 0, D, 1, bounds, False, block


@interpreted
def test_offsets_beyond_32_bits():
    """Strides so large that offsets of batch, token and head all overflow: every address must be right."""
    B, T, H, D = 2, 40, 2, 16
    strides = 2**35, 2**28 + 16, 2**33 + 8
    x = torch.zeros(16)
    arguments = raw_arguments(Strides(*strides), T, H, B * T, D, "")
    b, t, h, d = (torch.arange(n) for n in (B, T, H, D))
    offsets = (b[:, None] * strides[0] + t * strides[1])[..., None] + h * strides[2]
    expected = {x.data_ptr() + 4 * i for i in (offsets[..., None] + d).flatten().tolist()}
    assert max(expected) - x.data_ptr() > 2**37
    small = [torch.zeros(B * T * H * D) for _ in range(6)]
    near = {y.data_ptr() + 4 * i for y in small for i in range(y.numel())}
    forward, backward_q, backward_kv = (
        (operators.kernels.forward_kernel, (x, x, x, *small[:2], None, None), 2 * H * B),
        (operators.kernels.backward_q_kernel, (x, x, x, *small[:5], None, None), 2 * H * B),
        (operators.kernels.backward_kv_kernel, (x, x, x, *small[:5], None, None), 3 * H * B),
    )
    for kernel, pointers, programs in (forward, backward_q, backward_kv):
        with recorded_addresses() as addresses:
            kernel[(programs,)](*pointers, *arguments)
        assert addresses["load"] - near == expected
        assert addresses["store"] <= near


@interpreted
def test_rows_beyond_32_bits():
    """Packed rows so far down that offsets in every contiguous tensor overflow: outputs, gradients, sums of rows."""
    n, H, D, start = 16, 2, 16, 2**31 - 40
    N, bounds = start + n, torch.tensor([start, start + n], dtype=torch.int32)
    arguments = raw_arguments(Strides(0, H * D, D), n, H, N, D, "packed")
    wide, narrow = torch.zeros(1), torch.zeros(1)  # (N, H, D) and (H, N)
    rows, heads = torch.arange(start, N), torch.arange(H)
    of_wide = {wide.data_ptr() + 4 * i for i in range(start * H * D, N * H * D)}
    of_narrow = {narrow.data_ptr() + 4 * i for i in (heads[:, None] * N + rows).flatten().tolist()}
    forward = operators.kernels.forward_kernel, (wide, wide, wide, wide, narrow)
    backward_q = operators.kernels.backward_q_kernel, (wide, wide, wide, wide, wide, narrow, narrow, wide)
    backward_kv = operators.kernels.backward_kv_kernel, (wide, wide, wide, wide, narrow, narrow, wide, wide)
    for kernel, pointers in (forward, backward_q, backward_kv):
        with recorded_addresses(bounds) as addresses:
            kernel[(H,)](*pointers, bounds, bounds, *arguments)
        assert addresses["load"] == of_wide | (set() if kernel is forward[0] else of_narrow)
        assert addresses["store"] == of_wide | (set() if kernel is backward_kv[0] else of_narrow)


# ---- operators -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["", "lengths", "packed"])
def test_opcheck(bounds):
    shape = (14, 2, 16) if bounds == "packed" else (2, 9, 2, 16)
    q, k, v = (torch.randn(shape, device=DEVICE, requires_grad=True) for _ in range(3))
    numbers = {"": None, "lengths": torch.tensor([5, 9]), "packed": torch.tensor([0, 5, 14])}[bounds]
    numbers = None if numbers is None else numbers.int().to(DEVICE)
    bounds = numbers, numbers, bounds
    arguments = (q, k, v, *bounds, 9, 9, True, None, 0.25, None, 0.0, 0)
    torch.library.opcheck(operators.attention_forward, arguments)
    with torch.no_grad():
        out, lse = operators.attention_forward(*arguments)
        q, k, v = (x.detach() for x in (q, k, v))
    torch.library.opcheck(operators.attention_backward, (out, q, k, v, out, lse, *arguments[3:]))


def test_torch_compile_sees_one_graph():
    q, k, v = (torch.randn(2, 9, 2, 16, device=DEVICE, requires_grad=True) for _ in range(3))

    def model(q, k, v):
        return attention(q * 2, k, v, causal=True, impl="triton").sin()

    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for f in (compiled, model):
        f(q, k, v).sum().backward()
    torch.testing.assert_close(compiled(q, k, v), model(q, k, v))


def test_no_second_derivative():
    q, k, v = (torch.randn(1, 5, 1, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, impl="triton")
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dq.sum().backward()


def test_float64_goes_to_pytorch():
    q = torch.randn(1, 5, 1, 16, dtype=torch.float64, device=DEVICE)
    attention(q, q, q)
    with pytest.raises(ValueError, match="float64"):
        attention(q, q, q, impl="triton")


def test_empty_batch():
    q = torch.randn(0, 5, 2, 16, device=DEVICE, requires_grad=True)
    attention(q, q, q, impl="triton").sum().backward()
    assert q.grad.shape == q.shape
