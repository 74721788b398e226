"""Attention: eager PyTorch, PyTorch's SDPA and ours, side by side; on a GPU every rival that PyTorch has.

    python bench/attention.py            # on a GPU if there is one, else on the CPU
    python bench/attention.py --quick    # does everything run?

Work is 4·T·T·D floating-point operations a head forward, 2.5 times that backward, half of it if causal; in a
batch of different lengths that of the real tokens. The ratio is SDPA's time over the provider's.

Letters: B batch, T queries and keys, H query heads, D head dim.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import harness  # first: puts the repository root on the path
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from kernels import Packing, attention, choose

BASELINE = {"cpu": "SDPA", "cuda": "SDPA as chosen"}  # what PyTorch picks by itself


class Case(NamedTuple):
    name: str
    gflop: float  # forward
    providers: dict[str, tuple[Callable[..., Tensor], list[Tensor]]]  # function and its arguments q, k, v


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """On a GPU the shapes that papers report; on a CPU what fits in two minutes."""
    half, single = torch.bfloat16, torch.float32
    if quick:
        yield dense(1, 64, 2, 32, single, device, causal=True)
        yield ragged([8, 33, 64], 2, 32, single, device, causal=False)
    elif device.type == "cuda":
        for D in (64, 128):
            for causal in (True, False):
                for T in (512, 2048, 8192, 16384):
                    yield dense(max(1, 16384 // T), T, 2048 // D, D, half, device, causal)
            yield ragged(range(64, 2048, 32), 2048 // D, D, half, device, causal=True)
    else:
        for dtype in (single, half):
            for T in (512, 2048):
                yield dense(4, T, 12, 64, dtype, device, causal=True)
            for lengths in (range(8, 65, 2), range(64, 513, 64)):
                yield ragged(lengths, 12, 64, dtype, device, causal=False)


def dense(B: int, T: int, H: int, D: int, dtype: torch.dtype, device: torch.device, causal: bool) -> Case:
    inputs = [torch.randn(B, T, H, D, dtype=dtype, device=device, requires_grad=True) for _ in range(3)]
    functions = {"ours": partial(attention, causal=causal), BASELINE[device.type]: partial(sdpa, is_causal=causal)}
    if device.type == "cuda" or T <= 512:  # on a CPU it would take longer than everything else together
        functions["eager"] = partial(attention, causal=causal, impl="eager")
    if device.type == "cuda":
        functions |= gpu_rivals(T, device, causal)
    name = f"B={B} H={H} D={D} T={T} {'causal' if causal else 'full'} {str(dtype).removeprefix('torch.')}"
    gflop = 4e-9 * B * H * T * T * D / (2 if causal else 1)
    return Case(name, gflop, {provider: (function, inputs) for provider, function in functions.items()})


def gpu_rivals(T: int, device: torch.device, causal: bool) -> dict[str, Callable[..., Tensor]]:
    """Each backend of SDPA by itself, and what torch.compile makes of plain and of flexible attention."""

    def backend(choice: SDPBackend) -> Callable[..., Tensor]:
        def run(q, k, v):
            with sdpa_kernel(choice):
                return sdpa(q, k, v, is_causal=causal)

        return run

    names = ("math", SDPBackend.MATH), ("efficient", SDPBackend.EFFICIENT_ATTENTION)
    names += ("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)
    rivals = {f"SDPA {name}": backend(choice) for name, choice in names}
    rivals["compile"] = torch.compile(partial(attention, causal=causal, impl="eager"))
    flex = torch.compile(flex_attention)
    mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, T, T, device) if causal else None

    def flexible(q, k, v):
        return flex(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=mask).transpose(1, 2)

    return rivals | {"Flex": flexible}


def ragged(lengths, H: int, D: int, dtype: torch.dtype, device: torch.device, causal: bool) -> Case:
    """Different lengths: SDPA and eager get them padded (padding is not on their bill), ours packed."""
    packing = Packing.from_lengths(list(lengths), device)
    B, T = len(lengths), packing.max_len
    packed = [torch.randn(packing.num_tokens, H, D, dtype=dtype, device=device) for _ in range(3)]
    padded = [packing.pad(x).requires_grad_() for x in packed]
    packed = [x.requires_grad_() for x in packed]
    lens = packing.lengths_tensor
    mask = (torch.arange(T, device=device) < lens[:, None])[:, None, None]
    if causal:
        mask = mask & torch.ones(T, T, dtype=torch.bool, device=device).tril()
    eager = partial(attention, q_lengths=lens, k_lengths=lens, causal=causal, impl="eager")
    providers = {
        "ours": (partial(attention, packing=packing, causal=causal), packed),
        BASELINE[device.type]: (partial(sdpa, attn_mask=mask), padded),
        "eager": (eager, padded),
    }
    shape = f"{B} of {min(lengths)}–{T} H={H} D={D}"
    name = f"{shape} {'causal' if causal else 'full'} {str(dtype).removeprefix('torch.')}"
    gflop = 4e-9 * H * D * sum(n * n for n in packing.lengths) / (2 if causal else 1)
    return Case(name, gflop, providers)


def sdpa(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), **options).transpose(1, 2)


def forward(function: Callable[..., Tensor], inputs: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return function(*inputs)


def forward_and_backward(function: Callable[..., Tensor], inputs: list[Tensor]) -> tuple[Tensor, ...]:
    out = function(*inputs)
    return torch.autograd.grad(out, inputs, torch.ones_like(out))


def main() -> None:
    args = harness.argument_parser(__doc__).parse_args()
    device = harness.device_of(args)
    print(f"ours is {choose(device).impl}: {choose(device).reason}")
    rows = []
    for case in cases(device, args.quick):
        for mode, run, work in (("forward", forward, 1), ("forward + backward", forward_and_backward, 3.5)):
            calls = {name: lambda run=run, p=p: run(*p) for name, p in case.providers.items()}
            print(f"{case.name}, {mode} …", flush=True)
            rows += harness.compare(
                *(case.name, mode, calls, device, BASELINE[device.type], work * case.gflop),
                *(args.rounds, args.seconds),
            )
    print()
    environment = harness.environment(device)
    harness.print_table(rows, "GFLOP/s", environment)
    harness.save(rows, "attention", "Attention", args.out, environment)


if __name__ == "__main__":
    main()
