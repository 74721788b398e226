"""The Triton kernels against float64. The yardstick is the error of PyTorch, same formula and dtype."""

import random
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernels import Packing, attention, reference
from kernels import attention_triton as operators
from tests.kernels.interpreter import (
    GuardBands,
    recorded_addresses,
    reversed_programs,
    right_bfloat16,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="needs the interpreter")


@dataclass(frozen=True)
class Case:
    """Lengths of the queries and keys of each sequence; everything else by name."""

    q_lengths: tuple[int, ...]
    k_lengths: tuple[int, ...]
    H: int = 2
    G: int = 1
    D: int = 16
    dtype: torch.dtype = torch.float32
    packed: bool = False
    size: float = 1.0  # of the queries: large makes the softmax hard
    options: dict = field(default_factory=dict)

    def tensors(self) -> tuple[list[Tensor], dict]:
        """q, k, v in float64, but with values that the dtype can hold, and the arguments for their layout."""
        generator = torch.Generator().manual_seed(len(self.q_lengths) + 7 * sum(self.q_lengths) + self.D)
        if self.packed:
            q_packing, k_packing = (Packing.from_lengths(x, DEVICE) for x in (self.q_lengths, self.k_lengths))
            shapes = [(q_packing.num_tokens, self.H), (k_packing.num_tokens, self.G)]
            layout = {"packing": q_packing, "k_packing": k_packing}
        else:
            B, T, S = len(self.q_lengths), max(self.q_lengths), max(self.k_lengths)
            shapes = [(B, T, self.H), (B, S, self.G)]
            full = set(self.q_lengths) == {T} and set(self.k_lengths) == {S}
            lengths = {"q_lengths": torch.tensor(self.q_lengths), "k_lengths": torch.tensor(self.k_lengths)}
            layout = {} if full else {name: x.to(DEVICE) for name, x in lengths.items()}
        drawn = [torch.randn(*shapes[i > 0], self.D, generator=generator, dtype=torch.float64) for i in range(3)]
        drawn[0] *= self.size
        return [x.to(self.dtype).double().to(DEVICE) for x in drawn], layout

    def __str__(self) -> str:
        lengths = "·".join(f"{n}:{m}" for n, m in zip(self.q_lengths, self.k_lengths, strict=True))
        dtype = str(self.dtype).removeprefix("torch.")
        options = "".join(f",{key}={value}" for key, value in self.options.items())
        return f"{'packed ' if self.packed else ''}{lengths},H{self.H}G{self.G}D{self.D},{dtype}{options}"


def run(case: Case, dtype: torch.dtype, impl: str) -> list[Tensor]:
    """Output and the gradients of q, k, v, in float64."""
    inputs, layout = case.tensors()
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = attention(*leaves, **layout, **case.options, impl=impl)
    generator = torch.Generator().manual_seed(1)
    out.backward(torch.randn(out.shape, generator=generator).bfloat16().to(out))
    return [x.detach().double() for x in (out, *(leaf.grad for leaf in leaves))]


def check(case: Case) -> None:
    truth = run(case, torch.float64, "eager")
    plain = run(case, case.dtype, "eager")
    with right_bfloat16() if DEVICE == "cpu" and case.dtype == torch.bfloat16 else nullcontext():
        ours = run(case, case.dtype, "triton")
    for name, a, b, c in zip(("out", "dq", "dk", "dv"), truth, plain, ours, strict=True):
        assert torch.isfinite(c).all(), f"{name} is not finite"
        if not a.numel():
            continue
        # δ is summed in another order than dp, and from an output that was rounded, so that ds is slightly off even
        # where p is exactly 0 or 1 and PyTorch's ds exactly 0; dq and dk multiply it by k and q.
        scale = abs(case.options.get("scale", case.D**-0.5)) * case.D**0.5
        rounding = 3 * torch.finfo(case.dtype).eps * scale if name in ("dq", "dk") else 0.0
        allowed = 2 * (b - a).abs().max() + rounding + 2e-6 * max(1, a.abs().max(), abs(case.size))
        assert (c - a).abs().max() <= allowed, f"{name}: error {(c - a).abs().max():.2e}, allowed {allowed:.2e}"


# ---- cases -----------------------------------------------------------------------------------------------

HALF = torch.bfloat16
ADVERSARIAL = [
    Case((1,), (1,)),
    Case((1,), (77,), options={"causal": True}),  # a decoding step
    Case((3,), (70,), options={"causal": True}),  # a few tokens against a cache
    Case((70,), (3,), options={"causal": True}),  # most queries see nothing
    Case((65, 33), (65, 33), options={"causal": True}),
    Case((32,), (33,), options={"causal": True}),  # the last key of the last query alone in its tile
    Case((0, 40), (17, 0)),  # no query, no key
    Case((1,) * 9, (1,) * 9, packed=True, options={"causal": True}),  # one-token documents
    Case((5, 0, 70, 1), (5, 0, 70, 1), packed=True, options={"causal": True}),
    Case((2, 1, 0, 40), (50, 1, 3, 0), packed=True, options={"causal": True}),
    Case((40,), (40,), size=3e4, options={"causal": True}),  # logits around ±1e4
    Case((40,), (40,), size=3e4, dtype=HALF),
    Case((40,), (40,), size=-3e4, options={"causal": True, "window": 3}),
    Case((37,), (37,), D=80, H=3, G=3, dtype=HALF, options={"causal": True}),
    Case((37,), (37,), D=96, H=4, G=1, dtype=torch.float16),
    Case((20,), (20,), D=100, options={"causal": True}),
    Case((20,), (20,), D=256, dtype=HALF, options={"causal": True}),
    Case((20,), (20,), D=8),
    Case((50,), (50,), H=6, G=2, dtype=HALF, options={"causal": True}),
    Case((90,), (90,), options={"causal": True, "window": 1}),
    Case((90,), (90,), options={"causal": True, "window": 40}),
    Case((90,), (90,), options={"window": 40}),
    Case((90,), (50,), options={"window": 7}),
    Case((50,), (90,), options={"causal": True, "window": 33}),
    Case((50,), (50,), options={"causal": True, "window": 1000}),
    Case((40,), (40,), options={"softcap": 5.0}),
    Case((40,), (40,), options={"softcap": 30.0, "scale": 0.001, "causal": True}),  # tanh near 0
    Case((40,), (40,), size=100.0, options={"softcap": 0.5}),  # tanh saturated
    Case((40, 7), (40, 7), packed=True, options={"dropout_p": 0.5, "dropout_seed": 2**63 - 1}),
    Case((40, 7), (40, 7), H=4, G=2, options={"dropout_p": 0.1, "dropout_seed": 0, "causal": True}),
    Case((40,), (40,), options={"scale": -1.0}),
]


def draw_case(index: int) -> Case:
    """A case from all options at once."""
    r = random.Random(index)
    B = r.choice((1, 1, 2, 3))
    longest = r.choice((3, 20, 40, 70, 128))
    q_lengths = tuple(r.randint(0, longest) for _ in range(B))
    k_lengths = q_lengths if r.random() < 0.5 else tuple(r.randint(0, longest) for _ in range(B))
    G = r.choice((1, 1, 2, 3))
    options: dict = {"causal": r.random() < 0.6}
    if r.random() < 0.3:
        options["window"] = r.choice((1, 5, 16, 17, 50))
    if r.random() < 0.2:
        options["softcap"] = r.choice((1.0, 20.0))
    if r.random() < 0.2:
        options["scale"] = r.choice((0.01, 0.5))
    if r.random() < 0.2:
        options |= {"dropout_p": r.choice((0.1, 0.5)), "dropout_seed": r.getrandbits(63)}
    dtype = r.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    D = r.choice((16, 16, 24, 32, 64, 80))
    return Case(q_lengths, k_lengths, G * r.choice((1, 2, 3)), G, D, dtype, r.random() < 0.4, 1.0, options)


@pytest.mark.parametrize("case", ADVERSARIAL, ids=str)
def test_adversarial(case):
    check(case)


@pytest.mark.parametrize("case", [draw_case(i) for i in range(12)], ids=str)
def test_drawn(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [draw_case(i) for i in range(12, 400)], ids=str)
def test_many_drawn(case):
    check(case)


# ---- layouts ---------------------------------------------------------------------------------------------


def test_packed_equals_padded_equals_one_by_one():
    """To the last bit, dropout included: where a sequence lies has no influence."""
    lengths, options = (33, 1, 50), {"causal": True, "dropout_p": 0.2, "dropout_seed": 5}
    case = Case(lengths, lengths, packed=True, options=options)
    packed = run(case, torch.float32, "triton")
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


def test_any_other_strides_are_copied_not_misread():
    q, k, v = (torch.randn(2, 2, 16, 20, device=DEVICE).permute(0, 3, 1, 2) for _ in range(3))  # heads broken up
    ours = attention(q, k, v, impl="triton")
    torch.testing.assert_close(ours, reference.attention(q, k, v), atol=1e-5, rtol=1e-5)
    expanded = torch.randn(1, 20, 1, 16, device=DEVICE).expand(2, 20, 2, 16)  # strides 0
    ours = attention(q, expanded, v, impl="triton")
    torch.testing.assert_close(ours, reference.attention(q, expanded, v), atol=1e-5, rtol=1e-5)


def test_inputs_are_not_written_to():
    (q, k, v), _ = Case((20,), (20,)).tensors()
    before = [x.float() for x in (q, k, v)]
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    attention(*leaves, causal=True, impl="triton").sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, leaves, strict=True))


# ---- memory and races ------------------------------------------------------------------------------------


@interpreted
@pytest.mark.parametrize(
    "case",
    [
        Case((37,), (45,), H=4, G=2, D=24, options={"causal": True}),
        Case((37, 0, 5), (45, 3, 5), D=24, options={"window": 9}),
        Case((37, 0, 5), (45, 3, 5), D=24, packed=True, options={"causal": True}),
    ],
    ids=str,
)
def test_guard_bands_and_reversed_programs(case):
    """NaN around inputs must not be read, sentinels around outputs must survive, order must not matter."""
    expected = run(case, torch.float32, "triton")
    bands = GuardBands()
    inputs, layout = case.tensors()
    leaves = [bands.guard(x.float()).requires_grad_() for x in inputs]
    with bands.outputs(), reversed_programs():
        out = attention(*leaves, **layout, **case.options, impl="triton")
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
        grads = torch.autograd.grad(out, leaves, bands.guard(grad))
    bands.check()
    for a, b in zip(expected, (out, *grads), strict=True):
        assert torch.equal(a, b.double())


@interpreted
def test_offsets_beyond_32_bits():
    """Strides so large that offsets of batch, token and head all overflow: every address must be right."""
    B, T, H, D = 2, 40, 2, 16
    strides = 2**35, 2**28 + 16, 2**33 + 8
    x = torch.zeros(16)
    launch = operators.INTERPRETER.forward
    arguments = (
        *(*strides, *strides, T, T, H, B * T, 1.0, 1.0, 0, 0, 0, 1.0),
        *(1, D, D, launch.block_m, launch.block_n, "", False, False, False, False),
    )
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


# ---- operators -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"q_lengths": torch.tensor([5, 9])}])
def test_opcheck(options):
    q, k, v = (torch.randn(2, 9, 2, 16, device=DEVICE, requires_grad=True) for _ in range(3))
    bounds = options.get("q_lengths")
    bounds = (None, None, "") if bounds is None else (bounds.to(DEVICE), bounds.to(DEVICE), "lengths")
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
    with pytest.raises(TypeError, match="float64"):
        attention(q, q, q, impl="triton")


def test_empty_batch():
    q = torch.randn(0, 5, 2, 16, device=DEVICE, requires_grad=True)
    attention(q, q, q, impl="triton").sum().backward()
    assert q.grad.shape == q.shape
