"""A step of generation: one query a sequence over its cached keys, by every backend of SDPA and ours, side by side.

    python bench/decode.py            # on a GPU if there is one, else on the CPU
    python bench/decode.py --quick    # does everything run?

Work is the bytes of the keys and values, each read once; the ceiling is the rate of a copy here. The ratio is the time
of SDPA as PyTorch chooses it over the provider's. Keys lie as a cache holds them, (B,G,S,D), with room for more.

Letters: B batch, S cached tokens, H query heads, G key/value heads, D head dim.
"""

import sys
from collections.abc import Iterator
from functools import partial

import report
import torch
from attention import BACKENDS, BASELINE, Function
from harness import FORWARD, Call, Case
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from kernels import attention, reference

ROOM = 1.25  # tokens that the buffers have room for, over those there are: minillm.inference.KVCache


def cases(device: torch.device, quick: bool = False, slow: bool = False) -> Iterator[Case]:
    """Shapes of Llama 3 8B (32 heads over 8), of GPT-2 (12 of 64), and of a large cache shared by all heads."""
    del slow
    half = torch.bfloat16
    if quick:
        yield case([40, 40], 4, 2, 16, torch.float32, device)
        yield case([40, 7, 0], 4, 2, 16, torch.float32, device)
    elif device.type == "cuda":
        for B, S in ((1, 8192), (1, 1024), (1, 65536), (8, 8192), (64, 2048)):
            yield case([S] * B, 32, 8, 128, half, device)
        yield case(range(512, 8193, 512), 32, 8, 128, half, device)
        yield case([1024] * 16, 12, 12, 64, half, device)
        yield case([8192], 16, 1, 256, half, device)
    else:
        for B, S in ((1, 1024), (8, 512)):
            yield case([S] * B, 12, 12, 64, half, device)
        yield case(range(64, 513, 64), 12, 4, 64, half, device)


def case(lengths, H: int, G: int, D: int, dtype: torch.dtype, device: torch.device) -> Case:
    lengths = list(lengths)
    B, S, even = len(lengths), max(lengths), len(set(lengths)) == 1
    q = torch.randn(B, 1, H, D, device=device).to(dtype)
    k, v = (torch.randn(B, G, int(ROOM * S), D, device=device).to(dtype)[:, :, :S].transpose(1, 2) for _ in range(2))
    lens = torch.tensor(lengths, device=device)
    mask = None if even else (torch.arange(S, device=device) < lens[:, None])[:, None, None]
    layout = {} if even else {"q_lengths": torch.ones_like(lens), "k_lengths": lens}
    functions = rivals(mask) | {"ours": partial(attention, causal=True, **layout)}
    absent = {} if device.type == "cuda" else dict.fromkeys(("SDPA efficient", "SDPA cuDNN"), "needs a GPU")
    calls = {
        name: Call(torch.no_grad()(function), [], q, (q, k, v))
        for name, function in functions.items()
        if name not in absent
    }
    name = f"step of {B} over {S if even else f'{min(lengths)}–{S}'} H={H} G={G} D={D}"
    name += f" {str(dtype).removeprefix('torch.')}"
    work = {FORWARD: 2e-9 * sum(lengths) * G * D * q.element_size()}
    truth = partial(exact, q, k, v, lens)
    return Case(name, dtype, "B/s", work, calls, partial(sample, lens=lens), truth, absent)


def rivals(mask: Tensor | None) -> dict[str, Function]:
    def backend(choice) -> Function:
        def forced(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            with sdpa_kernel(choice):
                return sdpa(q, k, v, mask)

        return forced

    return {name: backend(choice) for name, choice in BACKENDS.items()} | {BASELINE: partial(sdpa, mask=mask)}


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, mask, enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


# ---- check ---------------------------------------------------------------------------------------------


def sample(call: Call, lens: Tensor) -> list[Tensor]:
    """The first and the last sequence that have a key: of one without, SDPA makes NaN or the mean."""
    out = call.function(*call.inputs, *call.constants)
    seen = lens.nonzero().flatten()
    return [out[seen[0]], out[seen[-1]]]


def exact(q: Tensor, k: Tensor, v: Tensor, lens: Tensor) -> list[Tensor]:
    """The same in float64."""
    rows = lens.nonzero().flatten()[[0, -1]].tolist()
    parts = ((x[b : b + 1].double() for x in (q, k[:, : lens[b]], v[:, : lens[b]])) for b in rows)
    return [reference.attention(*part)[0] for part in parts]


def main() -> int:
    return report.compare(__doc__, cases, BASELINE, "decode", "A step of generation")


if __name__ == "__main__":
    sys.exit(main())
