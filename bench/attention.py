"""Attention: eager PyTorch, torch.compile, every backend of SDPA, FlexAttention and ours, side by side.

    python bench/attention.py            # on a GPU if there is one, else on the CPU (two minutes)
    python bench/attention.py --all      # on a CPU: also the providers that take long there
    python bench/attention.py --quick    # does everything run?

Work is 4·T·T·D floating-point operations a head forward, 2.5 times that backward, half of it if causal; in a batch
of different lengths that of the real tokens. The ceiling is the rate of a large matrix product here. The ratio is
the time of SDPA as PyTorch chooses it over the provider's.

Letters: B batch, T queries and keys, H query heads, D head dim, N tokens of a packed row.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial

import harness  # first: puts the repository root on the path
import report
import torch
from harness import BACKWARD, BOTH, FORWARD, Call, Case
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from kernels import Packing, attention, reference

BASELINE = "SDPA"
Function = Callable[..., Tensor]
BACKENDS = {
    "SDPA math": SDPBackend.MATH,
    "SDPA efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
}
STORE_SCORES = ("eager", "torch.compile", "SDPA math")


def cases(device: torch.device, quick: bool = False, slow: bool = False) -> Iterator[Case]:
    """On a GPU the shapes that papers report, the targets first; on a CPU what fits in two minutes."""
    half, single = torch.bfloat16, torch.float32
    if quick:
        yield dense(1, 64, 2, 32, single, device, True, slow)
        yield ragged([8, 33, 64], 2, 32, single, device, False, slow)
    elif device.type == "cuda":
        for D in (128, 64):
            for causal in (True, False):
                for T in (8192, 4096, 16384, 2048, 512):
                    yield dense(16384 // T, T, 2048 // D, D, half, device, causal, slow)
            yield ragged(range(128, 2049, 128), 2048 // D, D, half, device, True, slow)
    else:
        for dtype in (single, half):
            for T in (512, 2048):
                yield dense(4, T, 12, 64, dtype, device, True, slow)
            for lengths in (range(8, 65, 2), range(64, 513, 64)):
                yield ragged(lengths, 12, 64, dtype, device, False, slow)


def dense(
    B: int, T: int, H: int, D: int, dtype: torch.dtype, device: torch.device, causal: bool, slow: bool = False
) -> Case:
    """Sequences of one length."""
    inputs = [torch.randn(B, T, H, D, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]
    grad = torch.randn(B, T, H, D, dtype=dtype, device=device)
    functions = rivals({"is_causal": causal}, partial(reference.attention, causal=causal))
    functions["FlexAttention"] = flexible(lambda b, h, i, j: i >= j, 1, T, device) if causal else flexible()
    functions["ours"] = partial(attention, causal=causal)
    absent = left_out(functions, T, B * H * T * T, device, slow)
    calls = {name: Call(function, inputs, grad) for name, function in functions.items() if name not in absent}
    name = f"B={B} H={H} D={D} T={T} {describe(causal, dtype)}"
    gflop = 4e-9 * B * H * T * T * D / (2 if causal else 1)
    return case(name, dtype, gflop, calls, absent, [T] * B, causal)


def ragged(lengths, H: int, D: int, dtype: torch.dtype, device: torch.device, causal: bool, slow: bool = False) -> Case:
    """Different lengths, padded for those that need it (the padding itself is not on their bill), or packed."""
    packing = Packing.from_lengths(list(lengths), device)
    B, T, N = len(lengths), packing.max_len, packing.num_tokens
    *packed, packed_grad = (torch.randn(N, H, D, dtype=dtype, device=device) for _ in range(4))
    padded, padded_grad = [packing.pad(x).requires_grad_() for x in packed], packing.pad(packed_grad)
    packed = [x.requires_grad_() for x in packed]
    lens = packing.lengths_tensor
    mask = (torch.arange(T, device=device) < lens[:, None])[:, None, None]
    if causal:
        mask = mask & torch.ones(T, T, dtype=torch.bool, device=device).tril()
    batch = {"causal": causal, "q_lengths": lens, "k_lengths": lens}
    on_padded = rivals({"attn_mask": mask}, partial(reference.attention, **batch))
    on_padded["FlexAttention"] = flexible(lambda b, h, i, j: (j < lens[b]) & ((i >= j) | (not causal)), B, T, device)
    on_padded["ours, padded"] = partial(attention, **batch)
    row = packing.sequence
    same = flexible(lambda b, h, i, j: (row[i] == row[j]) & ((i >= j) | (not causal)), 1, N, device)
    on_packed = {"FlexAttention, packed": lambda q, k, v: same(q[None], k[None], v[None])[0]}
    on_packed["varlen_attn"] = variable_lengths(packing, causal)
    on_packed["ours"] = partial(attention, packing=packing, causal=causal)
    absent = left_out(on_padded | on_packed, T, B * H * T * T, device, slow)
    calls = {name: Call(function, padded, padded_grad) for name, function in on_padded.items() if name not in absent}
    calls |= {name: Call(function, packed, packed_grad) for name, function in on_packed.items() if name not in absent}
    name = f"{B} of {min(lengths)}–{T} H={H} D={D} {describe(causal, dtype)}"
    gflop = 4e-9 * H * D * sum(n * n for n in lengths) / (2 if causal else 1)
    return case(name, dtype, gflop, calls, absent, list(lengths), causal)


def describe(causal: bool, dtype: torch.dtype) -> str:
    return f"{'causal' if causal else 'full'} {str(dtype).removeprefix('torch.')}"


def case(
    name: str, dtype: torch.dtype, gflop: float, calls: dict[str, Call], absent: dict, lengths: list[int], causal: bool
) -> Case:
    work = {FORWARD: gflop, BACKWARD: 2.5 * gflop, BOTH: 3.5 * gflop}
    sample = partial(two_heads, lengths=lengths)
    return Case(name, dtype, "FLOP/s", work, calls, sample, partial(truth, calls["ours"], lengths, causal), absent)


# ---- rivals --------------------------------------------------------------------------------------------


def rivals(sdpa_options: dict, eager: Function) -> dict[str, Function]:
    """Functions of q, k, v (B,T,H,D): what PyTorch has for dense tensors."""

    def backend(choice: SDPBackend) -> Function:
        def forced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(choice):
                return sdpa(q, k, v, **sdpa_options)

        return forced

    functions = {"eager": eager, "torch.compile": torch.compile(eager, dynamic=False)}
    functions |= {name: backend(choice) for name, choice in BACKENDS.items()}
    return functions | {BASELINE: partial(sdpa, **sdpa_options)}


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def flexible(visible: Callable | None = None, B: int = 1, T: int = 0, device: torch.device | None = None) -> Function:
    """FlexAttention, compiled; the mask is built at the first call, and so not on its bill."""
    compiled = torch.compile(flex_attention, dynamic=False)
    masks = []

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if visible and not masks:
            masks.append(create_block_mask(visible, B if B > 1 else None, None, T, T, device))
        return compiled(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=masks[0] if masks else None).transpose(1, 2)

    return run


def variable_lengths(packing: Packing, causal: bool) -> Function:
    """FlashAttention for packed rows, which newer PyTorch ships."""
    bounds = packing.cu_seqlens, packing.cu_seqlens, packing.max_len, packing.max_len

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        return varlen_attn(q, k, v, *bounds, window_size=(-1, 0 if causal else -1))

    return run


def left_out(functions: dict, T: int, scores: int, device: torch.device, slow: bool) -> dict[str, str]:
    """Why some providers are not asked: too much memory on a GPU, too slow or unknown on a CPU."""
    if device.type == "cuda":
        reason = f"left out: each copy of its scores would take {2e-9 * scores:.0f} GB"
        return {name: reason for name in STORE_SCORES if T > 8192}
    absent = dict.fromkeys(("SDPA efficient", "SDPA cuDNN", "varlen_attn"), "needs a GPU")
    absent["SDPA flash"] = f"it is what {BASELINE} chooses on a CPU"
    if not slow:
        compiled = ("torch.compile", "FlexAttention", "FlexAttention, packed")
        absent |= dict.fromkeys(compiled, "compiling takes longer than the rest of the benchmark: --all")
        absent |= {name: "too slow from 1,024 tokens on: --all" for name in ("eager", "SDPA math") if T >= 1024}
    return {name: reason for name, reason in absent.items() if name in functions}


# ---- check ---------------------------------------------------------------------------------------------


def two_heads(call: Call, lengths: list[int]) -> list[Tensor]:
    """Output and the gradients of q, k, v: the first head of the first sequence and the last head of the last."""
    return [part for x in harness.output_and_gradients(call) for part in corners(x, lengths)]


def corners(x: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Each (n, D), of x (B,T,H,D) or (N,H,D)."""
    if x.dim() == 3:
        return x[: lengths[0], 0], x[-lengths[-1] :, -1]
    return x[0, : lengths[0], 0], x[-1, : lengths[-1], -1]


def truth(call: Call, lengths: list[int], causal: bool) -> list[Tensor]:
    """The same in float64; heads know nothing of each other."""
    results = []
    for tensors in zip(*(corners(x.detach(), lengths) for x in (*call.inputs, call.grad)), strict=True):
        *inputs, grad = (x.double()[None, :, None] for x in tensors)
        inputs = [x.requires_grad_() for x in inputs]
        found = harness.output_and_gradients(Call(partial(reference.attention, causal=causal), inputs, grad))
        results.append([x[0, :, 0] for x in found])
    return [part for pair in zip(*results, strict=True) for part in pair]


def main() -> int:
    return report.compare(__doc__, cases, BASELINE, "attention", "Attention")


if __name__ == "__main__":
    sys.exit(main())
