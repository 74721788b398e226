"""What Triton would compile for a launch on a GPU, without one: types, constants, alignments."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

pytest.importorskip("triton")

import torch

from bench import machine_code
from kernels.gpu import attention_launch, cross_entropy, decode, launch_table

CAUSAL = "sm_90 attention.forward D64 bf16 causal"
DROPOUT = "sm_90 attention.forward D64 bf16 lengths dropout"
STEP, UNSPLIT = "sm_90 decode.split D64 bf16 one query", "sm_90 decode.split D64 bf16 one query unsplit"


def in_the_compiler(function, *calls: tuple) -> list[tuple]:
    """In a process of its own: this one has Triton in its interpreter."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=machine_code._leave_the_interpreter) as pool:
        return list(pool.map(function, *zip(*calls, strict=True)))


def specialized(kernel, arguments: tuple, constants: dict) -> tuple:
    """Types, constants and attributes by the path to an argument, as `kernel[grid](…)` finds them for sm_90."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import make_backend
    from triton.runtime.jit import create_function_from_signature

    backend = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*arguments, **constants)
    _, types, constants, attributes = kernel._pack_args(backend, {}, bound, specialization, {})
    return types, constants, {path: x for path, x in attributes.items() if x}


def launched_attention(T: int, S: int, causal: bool, dropout_p: float, seed: int) -> tuple:
    """The forward kernel, with lengths if there is dropout."""
    q = torch.empty(2, T, 2, 64, dtype=torch.bfloat16)
    k = torch.empty(2, S, 2, 64, dtype=torch.bfloat16)
    lengths, bounds = (torch.empty(2, dtype=torch.int32), "lengths") if dropout_p else (None, "")
    launch = launch_table.choose("sm_90", q.dtype, 64).forward
    options = bounds, T, S, 2 * T, causal, None, 0.125, None, dropout_p, seed
    arguments = q, k, k, q, torch.empty(2, 2 * T), lengths, lengths
    arguments += attention_launch._arguments(q, k, *options, launch)
    return specialized(attention_launch.kernels.forward_kernel, arguments, {})


def launched_step(B: int, S: int, room: int, ragged: bool) -> tuple:
    """Of one query for each sequence over a cache (B,G,room,D) that holds S tokens; unsplit if not ragged."""
    heads = 8 if ragged else 2
    q = torch.empty(B, 1, heads, 64, dtype=torch.bfloat16)
    k = torch.empty(B, 2, room, 64, dtype=torch.bfloat16)[:, :, :S].transpose(1, 2)
    lengths, bounds = (torch.empty(B, dtype=torch.int32), "lengths") if ragged else (None, "")
    parts, sums = (torch.empty(1), torch.empty(1)) if ragged else (q, None)
    launch = decode.narrowed(launch_table.choose("sm_90", q.dtype, 64).decode, heads // 2)
    options = bounds, 1, S, B, True, None, 0.125, None, 0.0, 0
    arguments = q, k, k, parts, sums, lengths, lengths, *attention_launch._arguments(q, k, *options, launch)
    return specialized(decode.split_kernel, arguments, {})


def launched_merge(rows: int, shares: int) -> tuple:
    parts, out = torch.empty(1), torch.empty(1, dtype=torch.bfloat16)
    return specialized(decode.merge_kernel, (parts, parts, out, rows, shares), {"D": 64, "BLOCK_D": 64})


def launched_cross_entropy(N: int) -> tuple:
    """The forward kernel with its gradient."""
    logits, targets, numbers = torch.empty(N, 16384), torch.empty(N, dtype=torch.int64), torch.empty(3 * N)
    arguments = logits, targets, None, numbers, numbers, numbers, logits, 16384, 16384, N, 16384
    arguments += (cross_entropy._numbers(cross_entropy.Options(label_smoothing=0.1)),)
    return specialized(cross_entropy.forward_kernel, arguments, {"SMOOTH": True, "IN_REGISTERS": True, "BLOCK": 16384})


def inspected(name: str) -> tuple:
    """What bench/machine_code.py compiles under that name."""
    (configuration,) = (c for c in machine_code.configurations() if str(c).split() == name.split())
    source = machine_code._source(configuration)
    return source.signature, source.constants, source.attrs


def test_what_is_inspected_is_what_is_launched():
    launched = in_the_compiler(launched_attention, (128, 128, True, 0.0, 0), (128, 128, False, 0.1, 3))
    assert launched == in_the_compiler(inspected, (CAUSAL,), (DROPOUT,))
    launched = in_the_compiler(launched_step, (4, 300, 512, True), (4, 300, 512, False))
    assert launched == in_the_compiler(inspected, (STEP,), (UNSPLIT,))
    assert in_the_compiler(launched_merge, (8, 3)) == in_the_compiler(inspected, ("sm_90 decode.merge D64 bf16",))


def test_ragged_batches_and_other_seeds_compile_nothing_new():
    """Lengths, rows and seeds of 1 and of multiples of 16 too, which Triton specialises where it may."""
    shapes = (128, 128, True, 0.1, 3), (1, 1, True, 0.1, 1), (37, 64, True, 0.1, 2**63 - 1), (64, 37, True, 0.1, 16)
    first, *others = in_the_compiler(launched_attention, *shapes)
    assert others == [first] * 3
    first, *others = in_the_compiler(launched_cross_entropy, (128,), (1,), (37,))
    assert others == [first] * 2


def test_a_growing_cache_compiles_nothing_new():
    """Another token, other sequences, a cache that grew, another number of shares."""
    steps = (4, 300, 512, True), (1, 1, 32, True), (3, 512, 640, True), (16, 333, 333, True)
    first, *others = in_the_compiler(launched_step, *steps)
    assert others == [first] * 3
    first, *others = in_the_compiler(launched_merge, (8, 3), (1, 1), (128, 16))
    assert others == [first] * 2
