"""A step of generation in Triton against float64: every number of shares, every layout, nothing touched outside."""

import random
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton")

from kernels import Packing, attention, reference
from kernels.gpu import attention_launch as operators
from kernels.gpu import decode as kernels
from kernels.gpu.attention import Block, Scores, Strides
from tests.kernels.attention_cases import DEVICE, HALF, Case, check_decode, run_decode, run_triton
from tests.kernels.interpreter import GuardBands, recorded_addresses, reversed_programs

interpreted = pytest.mark.skipif(DEVICE == "cuda", reason="needs the interpreter")
CAUSAL = {"causal": True}
NARROW = (16, 16)  # the tile of a single query for each sequence

CASES = [
    (Case((1,), (77,), tile=NARROW, options=CAUSAL), 3),
    (Case((1,), (77,), tile=NARROW, options=CAUSAL), 1),
    (Case((1,), (77,), dtype=HALF, D=64, tile=NARROW, options=CAUSAL), 2),
    (Case((1,), (1,), dtype=HALF, options=CAUSAL), 4),
    (Case((1, 1, 1, 1), (0, 1, 77, 16), H=8, G=2, options=CAUSAL), 3),  # ragged: no key, one, many
    (Case((1, 1, 1, 1), (0, 1, 77, 16), H=8, G=2, options=CAUSAL), 1),
    (Case((1, 0, 1), (50, 9, 33), H=4, G=4, dtype=torch.float16, options=CAUSAL), 2),
    (Case((1,), (90,), H=8, G=1, D=128, dtype=HALF, options=CAUSAL), 5),
    (Case((1,), (60,), H=3, G=1, D=80, dtype=HALF, options=CAUSAL), 2),
    (Case((1,), (40,), H=7, G=1, D=100, options=CAUSAL), 2),
    (Case((1,), (40,), H=2, G=2, D=256, dtype=HALF, options=CAUSAL), 3),
    (Case((1,), (40,), H=40, G=2, options=CAUSAL), 2),  # more heads in a group than rows in the narrowest tile
    (Case((2, 2), (70, 30), H=4, G=2, views=True, options=CAUSAL), 3),
    (Case((5,), (70,), H=8, G=2, tile=NARROW, options=CAUSAL), 3),  # a tile begins amid the heads of a query
    (Case((16,), (70,), H=6, G=2, dtype=HALF, options=CAUSAL), 2),
    (Case((16,), (16,), H=1, G=1, options=CAUSAL), 2),
    (Case((5,), (3,), options=CAUSAL), 2),  # the first queries see nothing
    (Case((5, 3, 0), (70, 2, 5), options=CAUSAL), 3),
    (Case((3, 3), (40, 40)), 2),  # bidirectional
    (Case((1,), (90,), options=CAUSAL | {"window": 1}), 3),
    (Case((1, 1), (90, 20), H=4, options=CAUSAL | {"window": 40}), 3),
    (Case((6,), (90,), H=4, tile=NARROW, options=CAUSAL | {"window": 33}), 2),
    (Case((6,), (90,), options={"window": 7}), 2),
    (Case((6,), (40,), options={"window": 50}), 3),
    (Case((9,), (4,), options={"window": 3}), 2),
    (Case((1,), (40,), options=CAUSAL | {"softcap": 5.0}), 3),
    (Case((1,), (40,), options=CAUSAL | {"softcap": 1000.0, "scale": 0.01}), 3),
    (Case((1,), (40,), options=CAUSAL | {"scale": -1.0}), 3),
    (Case((1,), (60,), size=3e4, options=CAUSAL), 3),  # logits around ±1e4: another share's may vanish
    (Case((1,), (60,), size=3e4, dtype=HALF, options=CAUSAL), 3),
    (Case((3, 1), (40, 7), H=4, G=2, options=CAUSAL | {"dropout_p": 0.3, "dropout_seed": 2**63 - 1}), 3),
    (Case((1,) * 5, (1, 9, 33, 0, 2), packed=True, H=4, G=2, options=CAUSAL), 2),
    (Case((2, 1, 0, 7), (50, 1, 3, 0), packed=True, dtype=HALF, options=CAUSAL), 3),
    (Case((5, 1, 16), (5, 1, 16), packed=True, views=True, options=CAUSAL), 1),
]


def draw_case(index: int) -> tuple[Case, int]:
    r = random.Random(index)
    B = r.choice((1, 2, 3))
    q_lengths = (1,) * B if r.random() < 0.5 else tuple(r.randint(0, r.choice((3, 16))) for _ in range(B))
    k_lengths = (r.choice((20, 90)),) * B if r.random() < 0.3 else tuple(r.randint(0, 90) for _ in range(B))
    options: dict = {"causal": r.random() < 0.8}
    if r.random() < 0.3:
        options["window"] = r.choice((1, 5, 17, 50))
    if r.random() < 0.2:
        options["softcap"] = r.choice((1.0, 20.0))
    if r.random() < 0.1:
        options |= {"dropout_p": 0.5, "dropout_seed": r.getrandbits(63)}
    H, G = r.choice(((1, 1), (3, 3), (4, 2), (8, 1), (6, 2), (16, 2)))
    case = Case(
        *(q_lengths, k_lengths, H, G),
        D=r.choice((16, 16, 24, 64, 96, 128, 256)),
        dtype=r.choice((torch.float32, torch.bfloat16, torch.float16)),
        packed=r.random() < 0.3,
        views=r.random() < 0.3,
        tile=r.choice(((16, 16), (16, 32), (32, 16), (64, 32))),
        options=options,
    )
    return case, r.choice((1, 1, 2, 3, 5, 8))


DRAWN = [draw_case(i) for i in range(200)]

# ---- values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "shares"), CASES + DRAWN[:8], ids=str)
def test_against_float64(case, shares):
    check_decode(case, shares)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "shares"), DRAWN[8:], ids=str)
def test_many_drawn(case, shares):
    check_decode(case, shares)


@pytest.mark.parametrize("window", [None, 37])
def test_every_number_of_shares(window):
    """Five tiles of keys in one to nine shares, the last of them empty, and in as many as a merge takes."""
    options = CAUSAL if window is None else CAUSAL | {"window": window}
    for shares in (*range(1, 10), 128):
        check_decode(Case((1, 1), (77, 3), H=2, G=1, tile=NARROW, options=options), shares)


@pytest.mark.parametrize("group", range(1, 9))
def test_every_size_of_a_group(group):
    check_decode(Case((1,), (40,), H=2 * group, G=2, tile=NARROW, options=CAUSAL), 2)


@pytest.mark.parametrize("shares", [1, 3])
def test_is_the_last_row_of_the_whole(shares):
    """A token read alone over its cache answers as it does amid all."""
    (q, k, v), _ = Case((40,), (40,), H=4, G=2).tensors()
    whole = attention(*(x.float() for x in (q, k, v)), causal=True, impl="triton")
    with patch.object(kernels, "count_shares", lambda *_: shares):
        step = attention(*(x.float() for x in (q[:, -1:], k, v)), causal=True, impl="triton")
    torch.testing.assert_close(step, whole[:, -1:], atol=2e-6, rtol=2e-6)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
@pytest.mark.parametrize("where", ["q", "k", "v"])
def test_what_is_not_finite_shows(where):
    """NaN in one share is not lost among the others."""
    (q, k, v), layout = Case((1, 1), (70, 70), options=CAUSAL).tensors()
    q, k, v = (x.float() for x in (q, k, v))
    {"q": q, "k": k, "v": v}[where][0, 0] = float("nan")
    with patch.object(kernels, "count_shares", lambda *_: 3):
        out = attention(q, k, v, **layout, causal=True, impl="triton")
    assert bool(out[0].isnan().all())
    assert bool(out[1].isfinite().all())


# ---- when ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("T", "trains", "expected"), [(1, False, True), (16, False, True), (17, False, False), (1, True, False)]
)
def test_when_it_is_a_step(T, trains, expected, monkeypatch):
    """Few queries without a gradient."""
    calls, original = [], operators.attention_decode
    monkeypatch.setattr(operators, "attention_decode", lambda *args: calls.append(1) or original(*args))
    q, k = torch.randn(1, T, 2, 16, device=DEVICE, requires_grad=trains), torch.randn(1, 20, 1, 16, device=DEVICE)
    attention(q, k, k, impl="triton")
    assert bool(calls) == expected
    with torch.no_grad():
        attention(q, k, k, impl="triton")
    assert bool(calls) == (T <= 16)


def test_numbers_of_shares():
    """A card of 132 processors with two programs each."""
    assert kernels.count_shares(264, 100, 132) == 1  # busy as it is
    assert kernels.count_shares(8, 1, 132) == 1  # too few keys
    assert kernels.count_shares(8, 0, 132) == 1
    for programs in (1, 3, 8, 32, 100, 150, 265, 1000):
        for most in (1, 2, 7, 64, 500):
            shares = kernels.count_shares(programs, most, 132)
            assert 1 <= shares <= min(most, 128)
            best = max(busy(programs * n) for n in range(1, min(most, 128) + 1))
            assert busy(programs * shares) >= 0.8 * best
            assert all(busy(programs * n) < 0.8 * best for n in range(1, shares))


def busy(programs: int) -> float:
    """The share of the rounds' places for programs that are taken."""
    return programs / (-(-programs // 264) * 264)


def test_keys_that_a_window_hides_need_no_shares(monkeypatch):
    asked = []
    monkeypatch.setattr(kernels, "count_shares", lambda programs, most, processors: asked.append(most) or 1)
    q, k = torch.randn(1, 1, 2, 16, device=DEVICE), torch.randn(1, 3000, 1, 16, device=DEVICE)
    expected = reference.attention(q, k, k, causal=True, window=300)
    torch.testing.assert_close(attention(q, k, k, causal=True, window=300, impl="triton"), expected)
    attention(q, k, k, causal=True, impl="triton")
    assert asked == [2, 11]


# ---- memory and races ----------------------------------------------------------------------------------

GUARDED = [
    (Case((1, 1), (45, 3), H=6, G=2, D=24, options=CAUSAL), 1),
    (Case((1, 1, 1), (45, 3, 0), H=6, G=2, D=24, options=CAUSAL), 3),
    (Case((5, 0, 2), (45, 3, 50), H=6, G=2, D=24, tile=NARROW, options=CAUSAL | {"window": 9}), 3),
    (Case((5, 0, 2), (45, 3, 50), H=6, G=2, D=24, packed=True, tile=NARROW, options=CAUSAL), 3),
]
each_guarded = pytest.mark.parametrize(("case", "shares"), GUARDED, ids=str)


@interpreted
@torch.no_grad()
@each_guarded
def test_guard_bands(case, shares):
    """NaN around the inputs, and in their padding, must not be read; sentinels around outputs must survive."""
    expected, bands = run_decode(case, shares), GuardBands()
    inputs, layout = case.tensors()
    if case.packed:
        layout = {name: Packing(bands.guard(x.cu_seqlens), x.lengths) for name, x in layout.items()}
    else:
        for x, lengths in zip(inputs, (case.q_lengths, case.k_lengths, case.k_lengths), strict=True):
            for row, length in zip(x, lengths, strict=True):
                row[length:] = float("nan")
        layout = {name: bands.guard(x) for name, x in layout.items()}
    guarded = [bands.guard(x.float()) for x in inputs]
    with bands.outputs(), patch.object(kernels, "count_shares", lambda *_: shares):
        out = attention(*guarded, **layout, **case.options, impl="triton")
    bands.check()
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-6)


@interpreted
@each_guarded
def test_order_of_programs_does_not_matter(case, shares):
    expected = run_decode(case, shares)
    with reversed_programs():
        assert torch.equal(run_decode(case, shares), expected)


def test_the_same_bits_every_time():
    case = Case((1, 1), (50, 33), H=4, G=1, options=CAUSAL)
    first, *others = (run_decode(case, 3) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def test_a_cache_is_read_in_place():
    """Buffers (B,G,S,D) with more room than tokens, as `minillm.inference.KVCache` hands them over."""
    buffers = torch.randn(2, 2, 3, 64, 16, device=DEVICE)  # keys and values of two sequences
    k, v = (x[:, :, :40].transpose(1, 2) for x in buffers)
    q = torch.randn(2, 1, 6, 16, device=DEVICE)
    assert operators._readable(q, k, v)[1].data_ptr() == k.data_ptr()
    lengths = torch.tensor([40, 7], device=DEVICE)
    ours = attention(q, k, v, causal=True, k_lengths=lengths, impl="triton")
    expected = reference.attention(q, k, v, causal=True, k_lengths=lengths)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@interpreted
def test_offsets_beyond_32_bits():
    """Strides and numbers of rows so large that offsets overflow: every address must be right."""
    B, T, H, G, D, S, N = 2, 12, 4, 2, 16, 40, 2**31 - 1
    strides = 2**35, 2**28 + 16, 2**33 + 8
    q, k, o, sums = (torch.zeros(1) for _ in range(4))
    arguments = Strides(*strides), Strides(*strides), T, S, H, N, Scores(1.0, None, None), None, 0
    arguments += (D, H // G, "", False, Block(16, 16, D))
    with recorded_addresses() as addresses:
        kernels.split_kernel[(2 * G * B, 3)](q, k, k, o, sums, None, None, *arguments)
    b, d = torch.arange(B), torch.arange(D)

    def inputs(x, tokens: int, heads: int) -> set[int]:
        t, h = torch.arange(tokens), torch.arange(heads)
        offsets = (b[:, None] * strides[0] + t * strides[1])[..., None] + h * strides[2]
        return {x.data_ptr() + 4 * i for i in (offsets[..., None] + d).flatten().tolist()}

    assert addresses["load"] == inputs(q, T, H) | inputs(k, S, G)
    rows = ((torch.arange(3)[:, None] * N + torch.arange(T * B))[..., None] * H + torch.arange(H)).flatten()
    stored = {o.data_ptr() + 4 * i for i in (rows[:, None] * D + d).flatten().tolist()}
    assert addresses["store"] == stored | {sums.data_ptr() + 4 * i for r in rows.tolist() for i in (2 * r, 2 * r + 1)}


@interpreted
def test_parts_beyond_32_bits():
    rows, D = 2**31 - 1, 16
    parts, sums, out = (torch.zeros(1) for _ in range(3))
    with recorded_addresses() as addresses:
        kernels.merge_kernel[(2,)](parts, sums, out, rows, 3, D=D, BLOCK_D=D)
    at = (torch.arange(3)[:, None] * rows + torch.arange(2)).flatten()
    loaded = {parts.data_ptr() + 4 * i for i in (at[:, None] * D + torch.arange(D)).flatten().tolist()}
    assert addresses["load"] == loaded | {sums.data_ptr() + 4 * i for a in at.tolist() for i in (2 * a, 2 * a + 1)}
    assert addresses["store"] == {out.data_ptr() + 4 * i for i in range(2 * D)}


# ---- operators -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", ["", "lengths", "packed"])
def test_opcheck(bounds):
    shape = (14, 2, 16) if bounds == "packed" else (2, 9, 2, 16)
    q, k, v = (torch.randn(shape, device=DEVICE) for _ in range(3))
    numbers = {"": None, "lengths": torch.tensor([5, 9]), "packed": torch.tensor([0, 5, 14])}[bounds]
    numbers = None if numbers is None else numbers.int().to(DEVICE)
    arguments = q, k, v, numbers, numbers, bounds, 9, 9, True, None, 0.25, None, 0.0, 0
    torch.library.opcheck(operators.attention_decode, arguments)


@torch.no_grad()
def test_torch_compile_sees_one_graph():
    q, k, v = (torch.randn(2, 9, 2, 16, device=DEVICE) for _ in range(3))

    def step(q, k, v):
        return attention(q[:, -1:] * 2, k, v, causal=True, impl="triton").sin()

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(q, k, v), step(q, k, v))


def test_nothing_to_attend_to():
    q, none = torch.randn(2, 1, 2, 16, device=DEVICE), torch.randn(2, 0, 2, 16, device=DEVICE)
    assert torch.equal(attention(q, none, none, impl="triton"), torch.zeros_like(q))
    assert attention(q[:0], q[:0], q[:0], impl="triton").shape == (0, 1, 2, 16)
    assert run_triton(Case((1,), (0,)))[0].abs().max() == run_decode(Case((1,), (0,)), 1).abs().max() == 0
