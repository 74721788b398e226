"""How attention is launched: tiles, warps and pipelines by architecture.

Letters: D head dim.
"""

from functools import cache
from typing import NamedTuple

import torch


class Launch(NamedTuple):
    block_m: int  # queries a tile; of a step of generation rows at most, a row for each head
    block_n: int  # keys a tile
    warps: int
    stages: int  # depth of the software pipeline
    descriptors: bool = False  # whether the forward has the copy engine move its tiles: see descriptors.py


class Launches(NamedTuple):
    forward: Launch
    backward_q: Launch
    backward_kv: Launch
    decode: Launch


# By architecture and largest head dim, for two-byte types. Chosen by compiling (`python bench/machine_code.py`): the
# largest tiles that keep everything in registers when causal, when packed and grouped too, and under dropout;
# "regs" is the range over these and over Triton 3.6 and 3.9. EXCUSES there has what spills all the same. No choice
# was timed on a GPU yet. The last of each four is for few queries, which wait for the memory: tiles of 16 KB of keys
# and of values, two of each on their way while one is worked on (fewer on gfx942), and 32 rows, because 64 spill.
LAUNCHES = {
    # Every tile fits the 99 KB of shared memory of sm_86 and sm_89, which use these rows too. Older cards have less:
    # kernels/backend.py sends them to PyTorch.
    ("sm_80", 64): Launches(
        Launch(128, 64, 8, 3),  # 177–248 regs
        Launch(128, 64, 8, 2),  # 236–248 regs; 64 × 64 with 4 warps spills
        Launch(32, 128, 8, 2),  # 215–244 regs
        Launch(32, 128, 4, 3),
    ),
    ("sm_80", 128): Launches(
        Launch(128, 64, 8, 2),  # 231–255 regs
        Launch(64, 64, 8, 2),  # 176–239 regs
        Launch(32, 64, 8, 2),  # 178–244 regs
        Launch(32, 64, 4, 3),
    ),
    ("sm_80", 256): Launches(
        Launch(64, 32, 8, 2),  # 205–255 regs
        Launch(64, 32, 8, 1),  # 228–255 regs
        Launch(32, 32, 8, 1),  # 139–190 regs
        Launch(32, 32, 4, 3),
    ),
    # Every product is an asynchronous wgmma (HGMMA), which wants 64 rows a tile for each 4 warps: queries in the
    # first two kernels, keys in the third. With fewer, both halves of the warps compute the same scores.
    ("sm_90", 64): Launches(
        Launch(128, 128, 8, 3),  # 182–255 regs
        Launch(128, 64, 8, 3),  # 145–176 regs
        Launch(64, 128, 8, 2),  # 236–255 regs
        Launch(32, 128, 4, 3),
    ),
    ("sm_90", 128): Launches(
        Launch(128, 64, 8, 3),  # 167–255 regs; with 4 warps it spills
        Launch(128, 64, 8, 2),  # 238–255 regs
        Launch(32, 128, 8, 2),  # 223–254 regs; 64 queries spill 7 times under Triton 3.6, 58 times under 3.9
        Launch(32, 64, 4, 3),
    ),
    ("sm_90", 256): Launches(
        Launch(64, 32, 8, 2),  # 170–249 regs
        Launch(64, 16, 8, 2),  # 196–255 regs; 32 keys spill 70 times under dropout
        Launch(32, 32, 8, 1),  # 143–186 regs; 64 keys, as wgmma wants, spill 38 times even with 16 queries
        Launch(32, 32, 4, 3),
    ),
    # Products accumulate in tensor memory (tcgen05), of which there are 512 columns.
    ("sm_100", 64): Launches(
        Launch(128, 64, 8, 3),  # 122–255 regs, 256 columns
        Launch(128, 64, 8, 3),  # 128–211 regs, 256 columns
        Launch(64, 128, 8, 2),  # 180–222 regs, 512 columns
        Launch(32, 128, 4, 3),
    ),
    ("sm_100", 128): Launches(
        Launch(128, 64, 8, 3),  # 178–255 regs, 256 columns; 128 keys spill 82 times
        Launch(128, 64, 8, 2),  # 175–255 regs, 512 columns
        Launch(64, 64, 8, 2),  # 120–152 regs, 256 columns
        Launch(32, 64, 4, 3),
    ),
    ("sm_100", 256): Launches(
        Launch(64, 32, 8, 2),  # 128–181 regs, 512 columns
        Launch(64, 32, 8, 1),  # 158–237 regs, 512 columns
        Launch(16, 64, 8, 2),  # 126–166 regs, 512 columns; with 32 keys the tensor memory stays unused
        Launch(32, 32, 4, 3),
    ),
    # sm_80's instructions with 99 KB: the same tiles, but for the forward of 128, where 64 keys spill under dropout.
    ("sm_120", 64): Launches(
        Launch(128, 64, 8, 3),  # 140–204 regs
        Launch(128, 64, 8, 2),  # 180–248 regs
        Launch(32, 128, 8, 2),  # 212–243 regs
        Launch(32, 128, 4, 3),
    ),
    ("sm_120", 128): Launches(
        Launch(128, 32, 8, 2),  # 190–228 regs
        Launch(64, 64, 8, 2),  # 169–230 regs
        Launch(32, 64, 8, 2),  # 180–251 regs
        Launch(32, 64, 4, 3),
    ),
    ("sm_120", 256): Launches(
        Launch(64, 32, 8, 2),  # 174–251 regs
        Launch(64, 32, 8, 1),  # 207–255 regs
        Launch(32, 32, 8, 1),  # 144–176 regs
        Launch(32, 32, 4, 3),
    ),
    # 512 vector registers a thread with 4 warps, 64 KB of shared memory.
    ("gfx942", 64): Launches(
        Launch(128, 64, 4, 2),  # 210–366 regs
        Launch(128, 64, 4, 1),  # 253–385 regs
        Launch(64, 64, 4, 1),  # 255–364 regs
        Launch(32, 64, 4, 2),
    ),
    ("gfx942", 128): Launches(
        Launch(128, 32, 4, 2),  # 202–336 regs; 64 keys with 8 warps spill
        Launch(64, 64, 4, 1),  # 326–447 regs; 128 queries with 8 warps spill 80 times
        Launch(32, 64, 4, 1),  # 273–296 regs
        Launch(32, 32, 4, 2),
    ),
    ("gfx942", 256): Launches(
        Launch(64, 32, 4, 1),  # 273–376 regs
        Launch(32, 32, 4, 1),  # 326–380 regs
        Launch(16, 32, 4, 1),  # 236–288 regs
        Launch(32, 32, 4, 2),
    ),
}
# float32 products run on the ordinary units, because TF32 is too coarse, and alike everywhere: a thread needs whole
# rows of both factors, so the tiles shrink as the head dim grows.
FLOAT32 = {
    64: Launches(Launch(32, 32, 8, 1), Launch(32, 16, 8, 1), Launch(16, 32, 8, 1), Launch(32, 32, 4, 1)),
    128: Launches(Launch(32, 32, 8, 1), Launch(16, 16, 8, 1), Launch(16, 16, 8, 1), Launch(32, 16, 4, 1)),
    256: Launches(Launch(16, 16, 8, 1), Launch(16, 16, 8, 1), Launch(16, 16, 8, 1), Launch(16, 16, 4, 1)),
}
INTERPRETER = Launches(*[Launch(32, 16, 4, 1)] * 4)  # sides that differ, so that the tests notice a mix-up


def architecture(device: torch.device) -> str:
    """The row of the table for a GPU."""
    if torch.version.hip:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100", 11: "sm_100", 12: "sm_120"}.get(major, "sm_80")


@cache
def processors(device: torch.device) -> int:
    """That run programs side by side; in the interpreter they take turns."""
    return 4 if device.type == "cpu" else torch.cuda.get_device_properties(device).multi_processor_count


@cache
def launches(device: torch.device, dtype: torch.dtype, D: int) -> Launches:
    if device.type == "cpu":
        return INTERPRETER
    return choose(architecture(device), dtype, D)


def choose(architecture: str, dtype: torch.dtype, D: int) -> Launches:
    limit = next(limit for limit in (64, 128, 256) if limit >= D)
    return FLOAT32[limit] if dtype == torch.float32 else LAUNCHES[architecture, limit]
