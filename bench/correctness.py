"""Every kernel against float64 on the card itself, and fifty runs that must agree bit for bit.

Our output, and each gradient alone, may be at most twice as far from float64 as eager PyTorch is in the same dtype.
For attention that is the worse of its formula and of SDPA: only fused kernels take δ = do·o from a rounded output.

Letters: B batch, T queries and keys, H query heads, G key/value heads, D head dim, N rows, C width, V vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import harness  # first: puts the repository root on the path
import torch
from harness import Call
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import Packing, attention, cross_entropy, linear_cross_entropy

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
RUNS = 50
EAGER, FUSED = "eager", "SDPA"  # the yardsticks; every other name is an `impl`


@dataclass(frozen=True)
class Check:
    """A call to make in any dtype by any implementation, from inputs that are the same every time."""

    name: str
    build: Callable[[torch.dtype, str, torch.device], Call]
    names: tuple[str, ...]  # of what comes out: output and gradients
    fused: bool = False  # SDPA can do it


# ---- attention -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Lengths of the sequences; everything else by name."""

    lengths: tuple[int, ...]
    k_lengths: tuple[int, ...] | None = None
    H: int = 4
    G: int = 4
    D: int = 64
    packed: bool = False
    step: bool = False  # of generation: without gradients
    options: dict = field(default_factory=dict)

    def __str__(self) -> str:
        words = ["step" if self.step else "attention", *(["packed"] if self.packed else [])]
        words += ["·".join(map(str, self.lengths))]
        words += [f"over {'·'.join(map(str, self.k_lengths))}"] if self.k_lengths else []
        return " ".join([*words, f"H{self.H}G{self.G}D{self.D}", *(f"{k}={v}" for k, v in self.options.items())])

    def call(self, dtype: torch.dtype, impl: str, device: torch.device) -> Call:
        generator = torch.Generator().manual_seed(7 * sum(self.lengths) + self.D)
        k_lengths = self.k_lengths or self.lengths
        packings = Packing.from_lengths(self.lengths, device), Packing.from_lengths(k_lengths, device)

        def draw(i: int, heads: int) -> Tensor:
            n = (packings[i].num_tokens,) if self.packed else (len(self.lengths), packings[i].max_len)
            x = torch.randn(*n, heads, self.D, generator=generator)  # rounded to values that every dtype holds
            return x.bfloat16().to(dtype).to(device)

        inputs = [draw(0, self.H), draw(1, self.G), draw(1, self.G)]
        grad = draw(0, self.H)
        layout = {"packing": packings[0], "k_packing": packings[1]}
        if not self.packed:
            ragged = len({*self.lengths}) > 1 or len({*k_lengths}) > 1
            tensors = {"q_lengths": packings[0].lengths_tensor, "k_lengths": packings[1].lengths_tensor}
            layout = tensors if ragged else {}

        def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if impl == FUSED:
                return scaled_dot_product_attention(
                    *(x.transpose(1, 2) for x in (q, k, v)), is_causal="causal" in self.options
                ).transpose(1, 2)
            return attention(q, k, v, **layout, **self.options, impl=impl)

        if self.step:
            return Call(torch.no_grad()(function), [], grad, tuple(inputs))
        return Call(function, [x.requires_grad_() for x in inputs], grad)

    @property
    def names(self) -> tuple[str, ...]:
        return ("out",) if self.step else ("out", "dq", "dk", "dv")

    @property
    def has_fused(self) -> bool:
        square = self.k_lengths is None and len({*self.lengths}) == 1 and not self.packed and self.H == self.G
        return square and not self.step and {*self.options} <= {"causal"}


CAUSAL = {"causal": True}
SHAPES = [
    Shape((1000, 1000), options=CAUSAL),
    Shape((515, 515), H=8, G=2, D=128, options=CAUSAL),
    Shape((777, 777)),
    Shape((640,), D=128),
    Shape((1, 300, 513)),
    Shape((1, 5, 700, 64, 257), packed=True, options=CAUSAL),
    Shape((130, 1, 383), H=8, G=1, D=128, packed=True, options=CAUSAL),
    Shape((600,), options=CAUSAL | {"window": 100}),
    Shape((300,), D=128, options={"window": 33}),
    Shape((3, 3), (700, 700), D=128, options=CAUSAL),
    Shape((70,), (3,), options=CAUSAL),
    Shape((400,), options=CAUSAL | {"softcap": 20.0}),
    Shape((400,), options=CAUSAL | {"dropout_p": 0.1, "dropout_seed": 2**40}),
    Shape((400,), options=CAUSAL | {"scale": 30.0}),
    Shape((200,), D=80, options=CAUSAL),
    Shape((200,), D=96, options=CAUSAL),
    Shape((200,), D=256, options=CAUSAL),
    Shape((100,), D=16),
    Shape((1,), options=CAUSAL),
    Shape((1,), (9000,), H=8, G=2, D=128, step=True, options=CAUSAL),
    Shape((1,) * 5, (0, 1, 5000, 300, 17), H=8, G=1, D=128, step=True, options=CAUSAL),
    Shape((1,) * 40, (600,) * 40, H=12, G=12, step=True, options=CAUSAL),
    Shape((1, 1), (3000, 70), D=256, step=True, options=CAUSAL),
    Shape((1, 1), (3000, 70), H=6, G=2, D=80, step=True, options=CAUSAL | {"softcap": 20.0}),
    Shape((5, 16, 0), (3000, 700, 4), H=16, G=2, D=128, step=True, options=CAUSAL | {"window": 1000}),
    Shape((7, 1), (900, 2000), H=8, G=8, packed=True, step=True, options=CAUSAL),
]
TINY = [
    Shape((33,), H=2, G=2, D=16, options=CAUSAL),
    Shape((1, 20), H=2, G=1, D=16, packed=True),
    Shape((1, 1), (0, 600), H=2, G=1, D=16, step=True, options=CAUSAL),
]


# ---- cross-entropy ----------------------------------------------------------------------------------------


def logits_check(N: int, V: int, **options: float) -> Check:
    """Loss with its statistics, which are added up so that one tensor comes out, and the gradient."""

    def build(dtype: torch.dtype, impl: str, device: torch.device) -> Call:
        generator = torch.Generator().manual_seed(N + V)
        logits = (5 * torch.randn(N, V, generator=generator)).bfloat16().to(dtype).to(device).requires_grad_()
        targets = torch.randint(0, V, (N,), generator=generator)
        targets[::7] = -100
        grad = torch.randn(N, generator=generator).to(device)
        wide = torch.promote_types(dtype, torch.float32)

        def function(logits: Tensor, targets: Tensor) -> Tensor:
            loss, stats = cross_entropy(logits, targets, **options, return_stats=True, impl=impl)
            return torch.stack([loss, *(x.detach() for x in stats)])

        return Call(function, [logits], torch.stack([grad.to(wide)] * 4), (targets.to(device),))

    name = " ".join([f"cross-entropy N={N} V={V}", *(f"{k}={v}" for k, v in options.items())])
    return Check(name, build, ("loss and statistics", "dlogits"))


def hidden_check(N: int, C: int, V: int, reduction: str, chunk_rows: int | None = None) -> Check:
    def build(dtype: torch.dtype, impl: str, device: torch.device) -> Call:
        generator = torch.Generator().manual_seed(N + V)
        hidden = torch.randn(N, C, generator=generator).bfloat16().to(dtype).to(device).requires_grad_()
        weight = (torch.randn(V, C, generator=generator) * C**-0.5).bfloat16().to(dtype).to(device).requires_grad_()
        targets = torch.randint(0, V, (N,), generator=generator)
        targets[::5] = -100
        grad = torch.randn(N if reduction == "none" else (), generator=generator).to(device)

        def function(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
            w = {"none": None, "sum": 1.0, "mean": 1 / (targets != -100).sum()}[reduction]
            options = {"token_weights": w, "chunk_rows": chunk_rows, "impl": impl}
            return linear_cross_entropy(hidden, weight, targets, **options)

        grad = grad.to(torch.promote_types(dtype, torch.float32))
        return Call(function, [hidden, weight], grad, (targets.to(device),))

    name = f"linear cross-entropy N={N} C={C} V={V} {reduction} chunk_rows={chunk_rows}"
    return Check(name, build, ("loss", "dhidden", "dweight"))


def checks(dry: bool = False) -> Iterator[Check]:
    """The fixed list; what training uses most comes first."""
    for shape in TINY if dry else SHAPES:
        yield Check(str(shape), shape.call, shape.names, shape.has_fused)
    if dry:
        yield logits_check(5, 70, label_smoothing=0.1)
        yield hidden_check(33, 16, 50, "mean", 16)
        return
    for V in (3, 70, 32000, 50257, 131072):
        yield logits_check(64, V)
    yield logits_check(64, 1000, label_smoothing=0.1, z_loss=1e-3, temperature=0.7)
    yield logits_check(64, 50257, label_smoothing=0.1, z_loss=1e-3, temperature=0.7)
    for reduction in ("none", "mean"):
        yield hidden_check(1000, 256, 50257, reduction, 300)
        yield hidden_check(1000, 256, 70, reduction)


# ---- judging -------------------------------------------------------------------------------------------


def judge(check: Check, dtype: torch.dtype, impl: str, device: torch.device) -> list[dict]:
    """A record for each output: our error, PyTorch's, and whether ours is small enough."""

    def results(dtype: torch.dtype, impl: str) -> list[Tensor]:
        return [x.double() for x in harness.output_and_gradients(check.build(dtype, impl, device))]

    truth, plain = results(torch.float64, EAGER), results(dtype, EAGER)
    fused = results(dtype, FUSED) if check.fused else plain
    ours = results(dtype, impl)
    records = []
    for name, a, b, c, d in zip(check.names, truth, plain, fused, ours, strict=True):
        pytorch, error = max(distance(b, a), distance(c, a)), distance(d, a)
        floor = 3e-6 * max(1.0, a.abs().max().item())  # sums of float32 in another order
        if dtype != torch.float32 and "dropout_p" in check.name:  # the formula has no δ, and SDPA another mask
            floor += 3 * torch.finfo(dtype).eps
        passed = error <= 2 * pytorch + floor
        record = {"check": check.name, "of": name, "dtype": str(dtype).removeprefix("torch."), "error": error}
        records.append(record | {"pytorch": pytorch, "passed": passed})
    return records


def distance(x: Tensor, truth: Tensor) -> float:
    """The largest; infinite if anything is not finite."""
    return (x - truth).abs().max().item() if x.isfinite().all() else float("inf")


def repeat(check: Check, dtype: torch.dtype, impl: str, device: torch.device, runs: int = RUNS) -> dict:
    """Whether all runs give the bits of the first, whatever was in the memory that they are given."""
    call = check.build(dtype, impl, device)
    first = harness.output_and_gradients(call)
    differ = 0
    for _ in range(runs - 1):
        poison = [torch.full_like(x, float("nan")) for x in (*first, *first)]
        del poison
        again = harness.output_and_gradients(call)
        differ += not all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    name = f"{check.name} {str(dtype).removeprefix('torch.')}"
    return {"check": name, "runs": runs, "differ": differ, "passed": differ == 0}
