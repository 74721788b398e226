"""The Triton cross-entropy against float64. The yardstick is the error of PyTorch, same formula and dtype."""

from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from kernels import cross_entropy, linear_cross_entropy
from kernels.arguments import CrossEntropyOptions as Options
from kernels.gpu import cross_entropy as operators
from tests.kernels.interpreter import GuardBands, recorded_addresses, reversed_programs, right_bfloat16

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy computes both sides of where
interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="needs the interpreter")

IGNORED = -100
OPTIONS = {
    "plain": {},
    "smooth": {"label_smoothing": 0.1},
    "z": {"z_loss": 1e-2},
    "cold": {"temperature": 0.6},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "temperature": 1.7},
}
LOGITS = {
    "normal": lambda x: 3.0 * x,
    "equal": torch.zeros_like,
    "huge": lambda x: 1e4 * x.sign(),  # ±1e4: exp overflows, lse is all rounding
    "shifted": lambda x: x + 1e4,
    "confident": lambda x: torch.where(x == x.amax(-1, keepdim=True), 30.0, x),
    "hidden": lambda x: torch.where(x > 0.5, -float("inf"), x),  # words that are ruled out
}


@dataclass(frozen=True)
class Case:
    V: int
    N: int = 4
    dtype: torch.dtype = torch.float32
    logits: str = "normal"
    options: dict = field(default_factory=dict)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Logits in float64 but with values that the dtype can hold, targets, and gradients of the loss."""
        generator = torch.Generator().manual_seed(self.V + self.N)
        drawn = torch.randn(self.N, self.V, generator=generator, dtype=torch.float64)
        logits = LOGITS[self.logits](drawn).to(self.dtype).double()
        targets = torch.randint(0, self.V, (self.N,), generator=generator)
        if self.logits == "hidden":  # a target that is ruled out has an infinite loss, here and in the reference
            targets = logits.argmax(-1)
        targets[-1] = IGNORED
        g = torch.randn(self.N, generator=generator)
        g[0] = 0.0
        return logits.to(DEVICE), targets.to(DEVICE), g.to(DEVICE)

    def __str__(self) -> str:
        options = "".join(f",{key}={value}" for key, value in self.options.items())
        return f"V{self.V},N{self.N},{str(self.dtype).removeprefix('torch.')},{self.logits}{options}"


def run(case: Case, dtype: torch.dtype, impl: str) -> dict[str, Tensor]:
    logits, targets, g = case.tensors()
    logits = logits.to(dtype).requires_grad_()
    loss, stats = cross_entropy(logits, targets, return_stats=True, impl=impl, **case.options)
    loss.backward(g.to(loss.dtype))
    values = {"loss": loss, **stats._asdict(), "gradient": logits.grad}
    return {name: x.detach().double() for name, x in values.items()}


def check(case: Case) -> None:
    truth = run(case, torch.float64, "eager")
    plain = run(case, case.dtype, "eager")
    with right_bfloat16() if DEVICE == "cpu" and case.dtype == torch.bfloat16 else nullcontext():
        ours = run(case, case.dtype, "triton")
    for name, right in truth.items():
        assert_as_exact(name, ours[name], plain[name], right)


def assert_as_exact(name: str, ours: Tensor, plain: Tensor, right: Tensor) -> None:
    """At most twice the error of PyTorch in the same dtype, or three roundings (one is that of 1/τ) of the largest."""
    assert ours.isfinite().all(), f"{name} is not finite"
    floor = 3 * torch.finfo(torch.float32).eps * max(1.0, float(right.abs().max()))
    allowed = max(2 * float((plain - right).abs().max()), floor)
    error = float((ours - right).abs().max())
    assert error <= allowed, f"{name}: error {error:.2e}, PyTorch's {(plain - right).abs().max():.2e}"


CASES = [Case(V, options=OPTIONS[name]) for V, name in product((1, 2, 3, 70, 128, 1000, 5000), OPTIONS)]
CASES += [Case(70, logits=name, options=OPTIONS["plain"]) for name in LOGITS]
CASES += [Case(70, logits=name, options={"temperature": 2.0, "z_loss": 1e-4}) for name in LOGITS]
CASES += [Case(V, dtype=dtype) for V in (3, 129) for dtype in (torch.bfloat16, torch.float16)]
CASES += [Case(70, dtype=torch.bfloat16, logits=name) for name in LOGITS]
CASES += [Case(V, N=2, options=OPTIONS["all"]) for V in (16384, 16385, 50257)]
CASES += [Case(50257, N=3, logits=name) for name in LOGITS]
CASES += [Case(262144, N=2, dtype=torch.bfloat16)]
LONG = [
    Case(V, 5, dtype, logits, OPTIONS[name])
    for V, dtype, logits, name in product(
        (1, 3, 65, 4097, 40000), (torch.float32, torch.bfloat16, torch.float16), LOGITS, OPTIONS
    )
    if not (logits == "hidden" and ("label_smoothing" in OPTIONS[name] or V == 1))  # infinite by definition
    and not (logits in ("huge", "shifted") and dtype == torch.float16 and "z_loss" in OPTIONS[name])
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", LONG, ids=str)
def test_long_grid(case):
    check(case)


@pytest.mark.parametrize("V", [5, 40000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_chunk_kernel_forms_the_gradient_of_the_backward_kernel(V, dtype):
    """`linear_cross_entropy` gets loss and gradient from one kernel, in the place of the logits."""
    case = Case(V, 3, dtype)
    logits, targets, g = case.tensors()
    logits, options = logits.to(dtype), Options(IGNORED, 0.1, 1e-3, 1.5)
    with right_bfloat16() if DEVICE == "cpu" and dtype == torch.bfloat16 else nullcontext():
        rows = operators.forward(logits, targets, options, stats=True)
        expected = operators.backward(logits, targets, rows.norm, g, options)
        buffer = torch.full((3, V + 7), 9.0, dtype=dtype, device=DEVICE)
        buffer[:, :V] = logits
        chunk = operators.forward_chunk(buffer, targets, options, V, grad=True, g=g)
    assert (buffer[:, V:] == 9.0).all()  # padding is not touched
    torch.testing.assert_close(buffer[:, :V], expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(chunk.loss, rows.loss)


def test_two_losses_on_one_logits_tensor():
    """The first backward pass must leave the logits for the second (Liger issue 272)."""
    logits, targets, _ = Case(300).tensors()
    leaf = logits.float().requires_grad_()
    before = leaf.detach().clone()
    first = cross_entropy(leaf, targets, impl="triton", reduction="sum")
    second = cross_entropy(leaf, targets.roll(1), impl="triton", reduction="mean", z_loss=0.1)
    first.backward()
    second.backward()
    assert torch.equal(leaf.detach(), before)
    twin = logits.clone().requires_grad_()
    total = cross_entropy(twin, targets, impl="eager", reduction="sum")
    (total + cross_entropy(twin, targets.roll(1), impl="eager", reduction="mean", z_loss=0.1)).backward()
    torch.testing.assert_close(leaf.grad.double(), twin.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", ["rows", "columns", "transposed", "expanded"])
def test_non_contiguous_logits(layout):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(12, 40, generator=generator).to(DEVICE)
    views = {
        "rows": base[::3],
        "columns": base[:4, ::2],
        "transposed": base.t()[:4],
        "expanded": base[:1].expand(4, -1),
    }
    view = views[layout]
    targets = torch.tensor([0, 3, IGNORED, 7], device=DEVICE)
    results = []
    for impl, x in (("triton", view), ("eager", view.double())):
        leaf = x.detach().requires_grad_()
        loss = cross_entropy(leaf, targets, impl=impl)
        loss.backward(torch.tensor([1.0, 0.0, 2.0, -3.0], device=DEVICE).to(loss.dtype))
        results.append((loss.detach().double(), leaf.grad.double()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


def test_everything_ignored():
    logits = torch.randn(3, 9, device=DEVICE, requires_grad=True)
    targets = torch.full((3,), IGNORED, device=DEVICE)
    loss, stats = cross_entropy(logits, targets, impl="triton", return_stats=True, reduction="mean")
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()
    assert not torch.stack(stats).any()


def test_no_rows():
    logits = torch.randn(0, 9, device=DEVICE, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(0, dtype=torch.int64, device=DEVICE), impl="triton")
    loss.sum().backward()
    assert loss.shape == (0,)
    assert logits.grad.shape == (0, 9)


def test_label_near_certainty_keeps_its_gradient():
    """p = 0.9995: rounding p to bfloat16 before the label comes off would give 0 or 4e-3 (fla issue 1231)."""
    logits = torch.tensor([[7.625, 0.0]], dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    with right_bfloat16() if DEVICE == "cpu" else nullcontext():
        cross_entropy(logits, torch.tensor([0], device=DEVICE), impl="triton").sum().backward()
    expected = -1 / (1 + torch.tensor(7.625, dtype=torch.float64).exp())
    assert logits.grad[0, 0].item() == pytest.approx(expected.item(), rel=4e-3)


# ---- memory and races ----------------------------------------------------------------------------


def launch_everything(logits: Tensor, targets: Tensor, g: Tensor) -> list[Tensor]:
    options = Options(IGNORED, 0.1, 1e-3, 1.5)
    rows = operators.forward(logits, targets, options, stats=True)
    grad = operators.backward(logits, targets, rows.norm, g, options)
    buffer = torch.empty_like(logits).copy_(logits)
    chunk = operators.forward_chunk(buffer, targets, options, logits.shape[1], grad=True, g=g)
    return [rows.loss, rows.stats, rows.norm, grad, chunk.loss, buffer]


@interpreted
@pytest.mark.parametrize("V", [1, 3, 70, 4100, 33000])
def test_stays_inside_its_tensors(V):
    tensors = Case(V, 3).tensors()
    logits, targets, g = tensors[0].float(), tensors[1], tensors[2]
    expected = launch_everything(logits, targets, g)
    bands = GuardBands()
    guarded = [bands.guard(x) for x in (logits, targets, g)]
    with bands.outputs():
        got = launch_everything(*guarded)
    bands.check()
    for ours, right in zip(got, expected, strict=True):
        assert torch.equal(ours, right)  # and no NaN came in from the margins


@interpreted
@pytest.mark.parametrize("V", [70, 33000])
def test_order_of_programs_does_not_matter(V):
    tensors = Case(V, 3).tensors()
    arguments = tensors[0].float(), tensors[1], tensors[2]
    expected = launch_everything(*arguments)
    with reversed_programs():
        got = launch_everything(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


PLAIN = operators.Loss(IGNORED, 1.0, 0.0, 0.0)


@interpreted
def test_offsets_need_64_bits():
    """Row 2 of rows that are 2³⁰ + 64 long begins beyond 2³¹ elements."""
    stride = 2**30 + 64
    logits, grad = torch.zeros(1), torch.zeros(1)
    targets, small = torch.zeros(3, dtype=torch.int64), torch.zeros(2, 3)
    with recorded_addresses() as addresses:
        operators.forward_kernel[(3,)](
            logits, targets, None, small, None, small, grad, stride, stride, 3, 5, PLAIN,
            SMOOTH=False, IN_REGISTERS=True, BLOCK=8,
        )  # fmt: skip
        operators.backward_kernel[(3, 1)](logits, targets, small, small, grad, stride, stride, 1, 3, 5, PLAIN, BLOCK=8)
    last = 4 * (2 * stride + 4)
    assert logits.data_ptr() + last in addresses["load"]
    assert grad.data_ptr() + last in addresses["store"]
    owners = [logits.data_ptr(), grad.data_ptr(), targets.data_ptr(), small.data_ptr()]
    everything = addresses["load"] | addresses["store"]
    assert all(any(0 <= a - owner <= last for owner in owners) for a in everything)


@interpreted
def test_a_wrong_target_reads_nothing():
    """The error is the caller's; the kernel itself must not follow such a target."""
    logits, targets, outputs = torch.zeros(2, 4), torch.tensor([-1, 4]), torch.zeros(2, 2)
    with recorded_addresses(targets) as addresses:
        operators.forward_kernel[(2,)](
            logits, targets, None, outputs, None, outputs, None, 4, 0, 2, 4, PLAIN,
            SMOOTH=False, IN_REGISTERS=True, BLOCK=4,
        )  # fmt: skip
    assert addresses["load"] == {logits.data_ptr() + 4 * i for i in range(8)}


# ---- operators -----------------------------------------------------------------------------------


def test_opcheck():
    logits, targets, g = Case(9).tensors()
    logits, options = logits.float().requires_grad_(), (IGNORED, 0.1, 1e-3, 1.5)
    forward, backward = torch.ops.minillm.cross_entropy, torch.ops.minillm.cross_entropy_backward
    for stats in (False, True):
        torch.library.opcheck(forward.default, (logits, targets, stats, True, *options))
    norm = forward(logits.detach(), targets, False, True, *options)[2]
    torch.library.opcheck(backward.default, (logits.detach(), targets, norm, g, True, *options))


def test_no_second_derivative():
    logits, targets, _ = Case(9).tensors()
    leaf = logits.float().requires_grad_()
    (first,) = torch.autograd.grad(cross_entropy(leaf, targets, impl="triton").sum(), leaf, create_graph=True)
    with pytest.raises(NotImplementedError, match="cross_entropy has no second derivative"):
        first.sum().backward()


# ---- from hidden states --------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
@pytest.mark.parametrize("weights", [None, 0.5, [1.0, -2.0, 3.0, 0.0, 0.5, 1.0, 2.0]], ids=str)
@pytest.mark.parametrize("chunk_rows", [3, 100])
@pytest.mark.parametrize("return_stats", [False, True])
def test_linear(options, weights, chunk_rows, return_stats):
    generator = torch.Generator().manual_seed(0)
    shapes = (7, 6), (11, 6), (11,)
    drawn = [torch.randn(shape, generator=generator, dtype=torch.float32).to(DEVICE) for shape in shapes]
    targets = torch.tensor([0, 10, IGNORED, 3, 3, IGNORED, 7], device=DEVICE)
    results = []
    for impl, dtype in (("triton", torch.float32), ("eager", torch.float64)):
        hidden, weight, bias = (x.detach().to(dtype).requires_grad_() for x in drawn)
        w = torch.tensor(weights, device=DEVICE) if isinstance(weights, list) else weights
        how = {"token_weights": w, "bias": bias, "chunk_rows": chunk_rows, "return_stats": return_stats, "impl": impl}
        loss = linear_cross_entropy(hidden, weight, targets, **how, **options)
        loss, stats = loss if return_stats else (loss, ())
        loss.backward(torch.arange(7, device=DEVICE).to(loss) if weights is None else loss.new_tensor(3.0))
        values = (loss.detach(), *stats, hidden.grad, weight.grad, bias.grad)
        results.append([x.double() for x in values])
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)
