"""Products with weights of few bits, in bfloat16: less memory, and fewer bytes to read for a token.

    int8   one scale for each output: w ≈ scale · code, codes from −127 to 127 (Dettmers et al. 2022, arXiv:2208.07339,
           section 2); 8 bits a weight
    int4   a scale and a middle for each GROUP inputs of an output: w ≈ scale · (code − 8) + middle, codes from 0 to 15,
           as GGUF's Q4_1 has them; 5 bits a weight, scales and middles included

Nothing but the weights is rounded: to the nearest code, with scales and middles of bfloat16. Weights that had such
codes before, as in a file of Q4_1, find them again: SmolLM2's perplexity goes from 30.13 to 30.20. Others lose: with
its channels in another order, which changes nothing but who shares a scale, it is 36.1 by int4 and 30.3 by int8
(bench/few_bits.py). Ranges narrower than what a group spans, of the least squared error, helped by no more than 2 %.

For few rows PyTorch has products that read the codes as they are; their time grows with every row, so that for many
rows the weights are decoded once instead. Where PyTorch has none, as on GPUs, they always are: that saves memory, and
no time.

Letters: N rows, I inputs, O outputs; b outputs of a block.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Layer = Callable[[Tensor], Tensor]

WORTH_QUANTISING = 100_000  # weights of a product; smaller ones gain nothing
GROUP = 32  # weights that share a scale and a middle
TINY = torch.finfo(torch.float32).tiny
FEW_ROWS = {"int8": 8, "int4": 64}  # beyond which decoding the weights once is faster
FORMS = tuple(FEW_ROWS)
OF_OUTPUTS = "int8"  # of a model's last product: with four bits SmolLM2's perplexity rises by 1.3 in place of 0.1


def quantized_linear(weight: Tensor, bias: Tensor | None, kind: str) -> Layer:
    """x (N,I) bfloat16 → x Wᵀ + b (N,O) over W (O,I), kept as "int8" or "int4"; as int8 where I is no multiple of
    GROUP."""
    fits = weight.shape[1] % GROUP == 0
    product = _int4_product(weight) if kind == "int4" and fits else _int8_product(weight)
    return product if bias is None else lambda x: product(x) + bias


def _int8_product(weight: Tensor) -> Layer:
    scales = (weight.abs().amax(dim=1).float() / 127).clamp_min(TINY).bfloat16()
    codes = (weight / scales.float()[:, None]).round().clamp_(-127, 127).to(torch.int8)
    has_kernel = weight.device.type == "cpu" and weight.shape[1] % 16 == 0  # others it reads beyond their end

    def product(x: Tensor) -> Tensor:
        if has_kernel and x.shape[0] <= FEW_ROWS["int8"]:
            return torch._weight_int8pack_mm(x.contiguous(), codes, scales)
        return F.linear(x, codes.to(x.dtype)) * scales

    return product


def _int4_product(weight: Tensor) -> Layer:
    outputs = weight.shape[0]
    codes, scales, middles = _int4_codes(F.pad(weight, (0, 0, 0, -outputs % LAYOUTS[0].outputs)).float())
    packed, layout, has_kernel = _packed(codes)
    both = torch.stack([scales, middles], dim=-1)  # (I/GROUP, O, 2), as the kernel reads them

    def product(x: Tensor) -> Tensor:
        if has_kernel and x.shape[0] <= FEW_ROWS["int4"]:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), packed, GROUP, both)
        else:
            y = x @ _decoded(packed, layout, both)
        return y[:, :outputs]

    return product


# ---- four bits ---------------------------------------------------------------------------------------


def _int4_codes(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (O,I) uint8, scales and middles (I/GROUP, O) bfloat16. The least and the largest weight of a group have
    codes 0 and 15; what rounding the scales has moved is heeded by the codes."""
    groups = weight.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / 15).clamp_min(TINY).bfloat16()
    middles = (low + 8 * scales.float()).bfloat16()
    codes = ((groups - middles.float()[..., None]) / scales.float()[..., None]).round() + 8
    return codes.clamp_(0, 15).to(torch.uint8).flatten(1), scales.t().contiguous(), middles.t().contiguous()


class Packed(NamedTuple):
    """How two codes lie in a byte: blocks of outputs, in each the inputs one after the other, (O/b, I, b/2) bytes."""

    outputs: int  # b of a block
    is_halved: bool  # the first half of a block lies in the lower four bits; else every other output does

    def parts(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Of a table (I,O) the places of lower and of upper four bits, both (O/b, I, b/2)."""
        shape, where = ((2, -1), 2) if self.is_halved else ((-1, 2), 3)
        table = table.unflatten(1, (-1, self.outputs)).unflatten(2, shape)
        return tuple(table.select(where, i).transpose(0, 1) for i in range(2))

    def pack(self, codes: Tensor) -> Tensor:
        """(O,I) uint8 → bytes (O/b, I, b/2)."""
        low, high = self.parts(codes.t())
        return (low | high << 4).contiguous()


# Of PyTorch's kernels: AVX-512 and AVX2; those of other processors and compilers, ARM's among them.
LAYOUTS = Packed(64, True), Packed(32, True), Packed(64, False), Packed(32, False), Packed(16, False)


def _packed(codes: Tensor) -> tuple[Tensor, Packed, bool]:
    """The bytes, how they lie, and whether PyTorch's kernel reads them: where it packs them as we know to."""
    if codes.device.type == "cpu":
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        for layout in LAYOUTS:
            if torch.equal(layout.pack(codes).view_as(packed), packed):
                return packed, layout, True
    return LAYOUTS[0].pack(codes), LAYOUTS[0], False


def _decoded(packed: Tensor, layout: Packed, both: Tensor) -> Tensor:
    """The weights (I,O) bfloat16."""
    groups, outputs, _ = both.shape
    found = torch.empty(GROUP * groups, outputs, dtype=both.dtype, device=both.device)
    low, high = layout.parts(found)
    packed = packed.view(low.shape)
    low.copy_((packed & 15).view(torch.int8) - 8)
    high.copy_((packed >> 4).view(torch.int8) - 8)
    scales, middles = (x.contiguous()[:, None] for x in both.unbind(-1))  # strided ones take ten times as long
    return torch.addcmul(middles, found.view(groups, GROUP, outputs), scales).flatten(0, 1)
