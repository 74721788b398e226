"""Cases of attention: shapes, layouts and options, drawn or hand-picked, and what "as exact as PyTorch" means.

Letters: B batch, T queries, S keys, H query heads, G key/value heads, D head dim.
"""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from kernels import Packing, attention, reference
from kernels.gpu import attention_launch as operators
from kernels.gpu import launch_table
from tests.kernels.interpreter import right_bfloat16

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = "out", "dq", "dk", "dv"


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
    views: bool = False  # k and v, and q if it is as long, are views of one projection
    sparse: bool = False  # many tokens take no part in the loss
    size: float = 1.0  # of the queries: large makes the softmax hard
    tile: tuple[int, int] = (32, 16)  # queries, keys; of the interpreter only
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

    def gradient(self, out: Tensor) -> Tensor:
        """Of the output, in its dtype, with values that every dtype can hold."""
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(out.shape, generator=generator).bfloat16().to(out)
        if self.sparse:
            grad[torch.rand(out.shape[:-2], generator=generator).to(DEVICE) < 0.7] = 0
        return grad

    def __str__(self) -> str:
        lengths = "·".join(f"{n}:{m}" for n, m in zip(self.q_lengths, self.k_lengths, strict=True))
        words = [name for name in ("packed", "views", "sparse") if getattr(self, name)]
        words += [lengths, f"H{self.H}G{self.G}D{self.D}", f"{self.tile[0]}×{self.tile[1]}"]
        words += [str(self.dtype).removeprefix("torch."), *(f"{key}={value}" for key, value in self.options.items())]
        return ",".join(words)


# ---- the yardstick ---------------------------------------------------------------------------------------


def check(case: Case) -> None:
    """Output and each gradient: at most twice PyTorch's error in the same dtype.

    PyTorch means the worse of its formula and its fused kernel. The formula alone would be no fair measure: for a
    query that sees one key it finds ds = p (dp − Σ p dp) = 0 exactly, where every fused kernel, PyTorch's too,
    takes δ = do·o for the sum, from an output that was rounded. (A window of one key, 90 queries, float32: the
    formula's error in dq is 0, that of SDPA and ours 8.6e-7.)
    """
    truth = gradients(case, torch.float64, formula)
    plain = gradients(case, case.dtype, formula)
    fused = gradients(case, case.dtype, sdpa) if has_sdpa(case) else with_rounded_delta(case, truth[0], plain)
    for name, *results in zip(NAMES, truth, plain, fused, run_triton(case), strict=True):
        judge(name, case, *results)


def judge(name: str, case: Case, truth: Tensor, plain: Tensor, fused: Tensor, ours: Tensor) -> None:
    """Ours may be twice as far from the truth as the worse of PyTorch's two."""
    assert torch.isfinite(ours).all(), f"{name} is not finite"
    pytorch, error = max(largest(plain - truth), largest(fused - truth)), largest(ours - truth)
    # Sums of float32 in another order, of the size of the result, of a typical score or of the queries in dk.
    score = abs(case.options.get("scale", case.D**-0.5)) * case.D**0.5
    allowed = 2 * pytorch + 2e-6 * max(1, largest(truth), abs(case.size), score)
    assert error <= allowed, f"{name}: error {error:.2e}, PyTorch's {pytorch:.2e}, allowed {allowed:.2e}"


def largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def with_rounded_delta(case: Case, truth: Tensor, plain: list[Tensor]) -> list[Tensor]:
    """What PyTorch's fused kernel would find under dropout, where SDPA draws another mask than ours.

    With δ from the formula's output instead of the true one, δ_i is off by e_i and ds_ij by −p_ij e_i: that is the
    negative gradient of Σ e_i lse_i, on top of the formula's own rounding. (One query, one key, bfloat16, p = 0.1:
    v/0.9 is rounded, and ours is off by 1.8e-2 in dq where the formula finds 0.)
    """
    out, dq, dk, dv = plain
    (q, k, _), layout = case.tensors()
    q, k = (x.requires_grad_() for x in (q, k))
    e = (case.gradient(out) * (out - truth)).sum(-1)  # (..., H)
    lse = log_sum_exp(case, q, k, layout)
    by_delta = torch.autograd.grad((e * lse).sum(), (q, k))
    return [out, dq - by_delta[0], dk - by_delta[1], dv]


def log_sum_exp(case: Case, q: Tensor, k: Tensor, layout: dict) -> Tensor:
    """(..., H) over the keys that a query sees; 0 where it sees none."""
    if case.packed:
        q, k = layout["packing"].pad(q), layout["k_packing"].pad(k)
    scores = torch.einsum("bthd,bshd->bths", q, k.repeat_interleave(case.H // case.G, 2))
    scores = scores * case.options.get("scale", case.D**-0.5)
    if (cap := case.options.get("softcap")) is not None:
        scores = cap * torch.tanh(scores / cap)
    visible = visible_keys(case, q, k)[:, :, None]
    blind = ~visible.any(-1, keepdim=True)
    lse = scores.masked_fill(~(visible | blind), -float("inf")).logsumexp(-1).masked_fill(blind[..., 0], 0.0)
    return layout["packing"].unpad(lse) if case.packed else lse


def visible_keys(case: Case, q: Tensor, k: Tensor) -> Tensor:
    """(B, T, S) bool."""
    lengths = (torch.tensor(x, device=q.device) for x in (case.q_lengths, case.k_lengths))
    options = {name: case.options[name] for name in ("causal", "window") if name in case.options}
    return reference.attention_mask(q.shape[1], k.shape[1], *lengths, **options)


def formula(case: Case, q: Tensor, k: Tensor, v: Tensor, layout: dict) -> Tensor:
    return attention(q, k, v, **layout, **case.options, impl="eager")


def triton(case: Case, q: Tensor, k: Tensor, v: Tensor, layout: dict) -> Tensor:
    if case.views:
        k, v = torch.cat((k, v), -2).chunk(2, -2)
        if q.shape[:-2] == k.shape[:-2]:
            q, k, v = torch.cat((q, k, v), -2).split((case.H, case.G, case.G), -2)
    return attention(q, k, v, **layout, **case.options, impl="triton")


def has_sdpa(case: Case) -> bool:
    return case.options.get("softcap") is None and case.options.get("dropout_p", 0.0) == 0.0


def sdpa(case: Case, q: Tensor, k: Tensor, v: Tensor, layout: dict) -> Tensor:
    """PyTorch's fused kernel with a mask; what sees nothing is 0 afterwards."""
    if case.packed:
        q, k, v = (
            layout[name].pad(x) for name, x in zip(("packing", "k_packing", "k_packing"), (q, k, v), strict=True)
        )
    visible = visible_keys(case, q, k)
    blind = ~visible.any(-1, keepdim=True)
    k, v = (x.repeat_interleave(case.H // case.G, 2) for x in (k, v))
    out = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), (visible | blind)[:, None], scale=case.options.get("scale")
    )
    out = out.transpose(1, 2).masked_fill(blind[..., None], 0.0)
    return layout["packing"].unpad(out) if case.packed else out


def gradients(case: Case, dtype: torch.dtype, function) -> list[Tensor]:
    """Output and the gradients of q, k, v, in float64."""
    inputs, layout = case.tensors()
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = function(case, *leaves, layout)
    out.backward(case.gradient(out))
    return [x.detach().double() for x in (out, *(leaf.grad for leaf in leaves))]


def run_triton(case: Case) -> list[Tensor]:
    with launched(case):
        return gradients(case, case.dtype, triton)


@contextmanager
def launched(case: Case, shares: int | None = None) -> Iterator[None]:
    """With the case's tile in the interpreter, and the keys of a step of generation in so many shares."""
    with ExitStack() as stack:
        if DEVICE == "cpu":
            launch = operators.Launch(*case.tile, 4, 1)
            table = launch_table.Launches(*[launch] * 4)
            stack.enter_context(patch.object(operators, "launches", lambda *_: table))
            if case.dtype == torch.bfloat16:
                stack.enter_context(right_bfloat16())
        if shares is not None:
            stack.enter_context(patch.object(operators.decode, "count_shares", lambda *_: shares))
        yield


# ---- a step of generation, without gradients ---------------------------------------------------------------


def check_decode(case: Case, shares: int) -> None:
    """As `check`, of the output alone."""
    truth, plain = (decode(case, dtype, formula) for dtype in (torch.float64, case.dtype))
    fused = decode(case, case.dtype, sdpa) if has_sdpa(case) else plain
    judge("out", case, truth, plain, fused, run_decode(case, shares))


def run_decode(case: Case, shares: int) -> Tensor:
    with launched(case, shares):
        return decode(case, case.dtype, triton)


@torch.no_grad()
def decode(case: Case, dtype: torch.dtype, function) -> Tensor:
    """The output, in float64."""
    inputs, layout = case.tensors()
    return function(case, *(x.to(dtype) for x in inputs), layout).double()


# ---- cases -----------------------------------------------------------------------------------------------

HALF = torch.bfloat16
ADVERSARIAL = [
    Case((1,), (1,)),
    Case((1,), (1,), dtype=HALF),
    Case((1,), (1,), dtype=HALF, options={"dropout_p": 0.1, "dropout_seed": 3}),
    Case((1,), (77,), options={"causal": True}),  # a decoding step
    Case((3,), (70,), views=True, options={"causal": True}),  # a few tokens against a cache
    Case((70,), (3,), options={"causal": True}),  # most queries see nothing
    Case((65, 33), (65, 33), options={"causal": True}),
    Case((32,), (33,), options={"causal": True}),  # the last key of the last query alone in its tile
    Case((0, 40), (17, 0)),  # no query, no key
    Case((5, 33), (5, 33)),  # padded keys among full tiles
    Case((1,) * 9, (1,) * 9, packed=True, options={"causal": True}),  # one-token documents
    Case((5, 0, 70, 1), (5, 0, 70, 1), packed=True, views=True, options={"causal": True}),
    Case((2, 1, 0, 40), (50, 1, 3, 0), packed=True, options={"causal": True}),
    Case((40,), (40,), size=3e4, options={"causal": True}),  # logits around ±1e4
    Case((40,), (40,), size=3e4, dtype=HALF),
    Case((40,), (40,), size=-3e4, options={"causal": True, "window": 3}),
    Case((37,), (37,), D=80, H=3, G=3, dtype=HALF, options={"causal": True}),
    Case((37,), (37,), D=96, H=4, G=1, dtype=torch.float16, sparse=True),
    Case((20,), (20,), D=100, options={"causal": True}),
    Case((20,), (20,), D=256, dtype=HALF, options={"causal": True}),
    Case((20,), (20,), D=8),
    Case((50,), (50,), H=6, G=2, dtype=HALF, views=True, options={"causal": True}),
    Case((90,), (90,), options={"causal": True, "window": 1}),
    Case((90,), (90,), options={"causal": True, "window": 40}),
    Case((90,), (90,), options={"window": 40}),
    Case((90,), (50,), options={"window": 7}),
    Case((50,), (90,), options={"causal": True, "window": 33}),
    Case((50,), (50,), options={"causal": True, "window": 1000}),
    Case((90,), (90,), tile=(16, 64), options={"causal": True, "window": 40}),
    Case((90,), (70,), tile=(16, 64), options={"window": 20}),
    Case((40,), (40,), options={"softcap": 5.0}),
    Case((40,), (40,), options={"softcap": 30.0, "scale": 0.001, "causal": True}),  # tanh near 0
    Case((40,), (40,), options={"softcap": 1000.0}),  # wide: an error of tanh is a thousand times that of a score
    Case((40,), (40,), size=100.0, options={"softcap": 0.5}),  # tanh saturated
    Case((40, 7), (40, 7), packed=True, options={"dropout_p": 0.5, "dropout_seed": 2**63 - 1}),
    Case((40, 7), (40, 7), H=4, G=2, options={"dropout_p": 0.1, "dropout_seed": 0, "causal": True}),
    Case((40,), (40,), options={"scale": -1.0}),
    Case((40,), (40,), options={"scale": -1.0, "causal": True}),
    Case((40,), (40,), options={"scale": 0.0, "causal": True}),
]


def draw_case(index: int) -> Case:
    """A case from all options at once."""
    r = random.Random(index)
    longest = r.choice((3, 20, 40, 70, 128))
    B = r.choice((1, 1, 2, 3)) if longest < 100 else 1
    q_lengths = (1,) * B if r.random() < 0.1 else tuple(r.randint(0, longest) for _ in range(B))
    k_lengths = q_lengths if r.random() < 0.5 else tuple(r.randint(0, longest) for _ in range(B))
    H, G = r.choice(((1, 1), (2, 1), (3, 3), (4, 2), (6, 2)) if longest < 50 else ((1, 1), (2, 2), (3, 1)))
    options: dict = {"causal": r.random() < 0.6}
    if r.random() < 0.3:
        options["window"] = r.choice((1, 5, 16, 17, 50))
    if r.random() < 0.2:
        options["softcap"] = r.choice((1.0, 20.0))
    if r.random() < 0.2:
        options["scale"] = r.choice((0.01, 0.5))
    if r.random() < 0.2:
        options |= {"dropout_p": r.choice((0.1, 0.5)), "dropout_seed": r.getrandbits(63)}
    return Case(
        *(q_lengths, k_lengths, H, G),
        D=r.choice((16, 16, 24, 32, 64, 80, 96, 128, 256)),
        dtype=r.choice((torch.float32, torch.bfloat16, torch.float16)),
        packed=r.random() < 0.4,
        views=r.random() < 0.3,
        sparse=r.random() < 0.2,
        tile=r.choice(((32, 16), (16, 32), (64, 32), (32, 64))),
        options=options,
    )
