"""What makes Triton's interpreter a fair judge: right bfloat16, guard bands, reversed programs, addresses."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

# ---- bfloat16 ------------------------------------------------------------------------------------------


@contextmanager
def right_bfloat16() -> Iterator[None]:
    """Repair the interpreter inside this block: compute in float32 and round.

    It keeps bfloat16 as its 16 bits, multiplies these bits as integers, and truncates where a GPU rounds to
    nearest even (Triton issue 11584).
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    handle = interpreter.TensorHandle

    def is_bfloat16(x) -> bool:
        return x.dtype.scalar == tl.bfloat16

    def widen(x):
        if not is_bfloat16(x):
            return x
        return handle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def narrow(x):
        bits = np.ascontiguousarray(x.data, dtype=np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        nan = (bits & 0x7FFFFFFF) > 0x7F800000
        return handle(np.where(nan, 0x7FC0, rounded).astype(np.uint16), tl.bfloat16)

    def wrap(original, fields: int):
        """Operands in float32; the result in bfloat16 again if the first operand was."""

        def operation(self, *args):
            out = original(self, *(widen(x) for x in args[:fields]), *args[fields:])
            if is_bfloat16(args[0]) and out.dtype.scalar == tl.float32:
                return narrow(out)
            return out

        return operation

    def dot(self, a, b, d, *options):
        return originals["create_dot"](self, widen(a), widen(b), d, *options)

    def cast(self, src, dst_type):
        if dst_type.scalar == tl.bfloat16 and not is_bfloat16(src):
            return narrow(originals["cast_impl"](self, src, tl.float32))
        return originals["cast_impl"](self, widen(src), dst_type)

    def convert(self, src, dst_type, rounding_mode):
        return cast(self, src, dst_type)

    originals = {name: getattr(builder, name) for name in ("create_dot", "cast_impl", "create_fp_to_fp")}
    originals |= {name: getattr(builder, name) for name in ("binary_op", "unary_op", "ternary_op")}
    repaired = {"create_dot": dot, "cast_impl": cast, "create_fp_to_fp": convert}
    repaired |= {f"{kind}_op": wrap(originals[f"{kind}_op"], n) for kind, n in (("unary", 1), ("binary", 2))}
    repaired["ternary_op"] = wrap(originals["ternary_op"], 3)
    try:
        for name, function in repaired.items():
            setattr(builder, name, function)
        yield
    finally:
        for name, function in originals.items():
            setattr(builder, name, function)


# ---- NumPy ---------------------------------------------------------------------------------------------


def accept_new_numpy() -> None:
    """Triton 3.6 turns arrays of one element into integers as NumPy 2.4 and later forbid: loop bounds fail."""
    from triton.runtime import interpreter

    original = interpreter._patch_lang_tensor

    def patched(tensor, *scope) -> None:
        original(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patched


# ---- memory and races ----------------------------------------------------------------------------------


@contextmanager
def reversed_programs() -> Iterator[None]:
    """Run every grid from its last program to its first, so that programs that share results differ."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    original = builder.set_grid_idx

    def mirrored(self, x, y, z):
        original(self, *(size - 1 - i for size, i in zip(self.grid_dim, (x, y, z), strict=True)))

    builder.set_grid_idx = mirrored
    try:
        yield
    finally:
        builder.set_grid_idx = original


@contextmanager
def recorded_addresses(*real: Tensor) -> Iterator[dict[str, set[int]]]:
    """Load zeros and store nothing, but write down every address, so that strides may exceed any memory. Only the
    tensors in `real` are truly read."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    originals = builder.create_masked_load, builder.create_masked_store
    addresses: dict[str, set[int]] = {"load": set(), "store": set()}

    def load(self, ptrs, mask, other, *options):
        if any(x.data_ptr() <= ptrs.data.min() and ptrs.data.max() < x.data_ptr() + x.nbytes for x in real):
            return originals[0](self, ptrs, mask, other, *options)
        addresses["load"].update(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)].tolist())
        dtype = ptrs.dtype.scalar.element_ty
        zeros = np.zeros_like(ptrs.data, dtype=interpreter._get_np_dtype(dtype))
        return interpreter.TensorHandle(zeros, dtype)

    def store(self, ptrs, value, mask, *options):
        addresses["store"].update(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)].tolist())

    builder.create_masked_load, builder.create_masked_store = load, store
    try:
        yield addresses
    finally:
        builder.create_masked_load, builder.create_masked_store = originals


class GuardBands:
    """Inputs between NaNs, outputs between sentinels: a read or write outside a tensor shows.

    `guard(x)` copies an input into the middle of NaNs, or of integers that are no target, length or row. Inside
    `with bands.outputs():` torch.empty and empty_like hand out the middle of a larger buffer, whose margins
    `check()` looks at.
    """

    MARGIN = 4096  # elements on each side; more than a tile of any test
    SENTINEL = 77.0

    def __init__(self) -> None:
        self._buffers: list[tuple[Tensor, int]] = []

    def guard(self, x: Tensor) -> Tensor:
        outside = float("nan") if x.is_floating_point() else -999
        buffer = torch.full((x.numel() + 2 * self.MARGIN,), outside, dtype=x.dtype)
        middle = buffer[self.MARGIN : self.MARGIN + x.numel()].view(x.shape)
        return middle.copy_(x)

    @contextmanager
    def outputs(self) -> Iterator[None]:
        originals = torch.empty, torch.empty_like

        def empty(*shape, dtype=None, device=None, **_):
            shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
            numel = int(np.prod(shape))
            buffer = originals[0](numel + 2 * self.MARGIN, dtype=dtype, device=device).fill_(self.SENTINEL)
            self._buffers.append((buffer, numel))
            return buffer[self.MARGIN : self.MARGIN + numel].view(*shape)

        def empty_like(x, dtype=None, **_):
            return empty(*x.shape, dtype=dtype or x.dtype, device=x.device)

        torch.empty, torch.empty_like = empty, empty_like
        try:
            yield
        finally:
            torch.empty, torch.empty_like = originals

    def check(self) -> None:
        assert self._buffers, "no output was allocated inside outputs()"
        for buffer, numel in self._buffers:
            margins = torch.cat([buffer[: self.MARGIN], buffer[self.MARGIN + numel :]])
            assert bool((margins == self.SENTINEL).all()), "a kernel wrote outside its output"
