"""A model made ready to generate: the same forward code, with every layer replaced by the bare function it computes.

A small model spends more time on calling modules than on arithmetic: hooks that nobody set, casts that change nothing,
gradients that nobody wants. On a CPU there is a second cost: the ordinary product lays its weight out anew in every
call, which takes longer than the product itself where there are few rows. Both are paid once, here.

Letters: N rows, I inputs, O outputs.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.layers import MLP, LayerNorm, Linear, RMSNorm

Layer = Callable[[Tensor], Tensor]

# Below so many weights, finding the packed product costs more than it saves: in float32 128 × 512 does not pay, 384 ×
# 384 does; in bfloat16, whose ordinary product is slow, 128 × 128 does.
WORTH_PACKING = {torch.float32: 100_000, torch.bfloat16: 16_000}
WORTH_QUANTISING = 100_000  # weights of a product; smaller ones gain nothing
# PyTorch's product with int8 weights takes time for every row; from here on, decoding the weights once is faster.
FEW_ROWS = 16


def ready(model: nn.Module, quantize: str | None = None) -> nn.Module:
    """A copy of the model to generate with, in the dtype it computes in; what need not change is shared with it.

    It lives outside of autograd and may or may not follow later changes of the weights. A ready model is returned as it
    is.

    quantize   "int8" keeps the weights of large products as 8-bit integers with one scale for each output (weight-only
               quantisation; Dettmers et al. 2022, arXiv:2208.07339, section 2), and computes in bfloat16.
    """
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize={quantize!r} is not 'int8'")
    if getattr(model, "is_ready", False):
        return model
    dtype = getattr(model, "compute_dtype", None) or next(model.parameters()).dtype
    dtype = torch.bfloat16 if quantize else dtype
    twin = _Converter(dtype, quantize is not None).module(model)
    twin.is_ready, twin.compute_dtype = True, dtype
    twin.num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return twin


class _Converter:
    def __init__(self, dtype: torch.dtype, to_int8: bool):
        self.dtype, self.to_int8 = dtype, to_int8
        self.cast: dict[int, Tensor] = {}  # parameters converted so far, by identity, so that tied ones stay tied

    def module(self, module: nn.Module) -> nn.Module:
        """A twin whose children stand among its ordinary attributes, where Python finds them first."""
        twin = copy.copy(module)
        twin._parameters = {name: self.parameter(p) for name, p in module._parameters.items()}
        twin._modules = {}
        for name, child in module.named_children():
            twin.__dict__[name] = self.layer(child)
        twin.__dict__["training"] = False
        return twin

    def layer(self, module: nn.Module) -> Any:
        match module:
            case Linear():
                return self.linear(module)
            case LayerNorm() | RMSNorm():
                norm = torch.layer_norm if isinstance(module, LayerNorm) else torch.rms_norm
                parameters = {name: self.parameter(p) for name, p in module._parameters.items()}
                return partial(norm, normalized_shape=module.normalized_shape, eps=module.eps, **parameters)
            case nn.ModuleList():
                return [self.layer(child) for child in module]
            case nn.Embedding():
                return self.module(module)
            case MLP() if not self.to_int8 and _can_pack(module.up.weight, self.dtype):
                return self.mlp(module)
            case _:
                return self.module(module).forward

    def mlp(self, module: MLP) -> Layer:
        """The activation is computed within the first product, while its results are at hand."""
        weight, bias = module.up.weight.detach().to(self.dtype), self.parameter(module.up.bias)
        up, down = packed_linear(weight, bias, "gelu", module.approximate), self.layer(module.down)
        return lambda x: down(up(x))

    def linear(self, module: Linear) -> Layer:
        bias = self.parameter(module.bias)
        if self.to_int8 and module.weight.numel() >= WORTH_QUANTISING:
            return int8_linear(module.weight.detach(), bias, self.dtype)
        if _can_pack(module.weight, self.dtype):
            return packed_linear(module.weight.detach().to(self.dtype), bias)
        return partial(F.linear, weight=self.parameter(module.weight), bias=bias)

    def parameter(self, parameter: nn.Parameter | None) -> Tensor | None:
        if parameter is None or parameter.dtype == self.dtype:
            return parameter
        if id(parameter) not in self.cast:
            self.cast[id(parameter)] = nn.Parameter(parameter.detach().to(self.dtype), requires_grad=False)
        return self.cast[id(parameter)]


def packed_linear(weight: Tensor, bias: Tensor | None, activation: str = "none", approximate: str = "") -> Layer:
    """x (N,I) → activation(x Wᵀ + b) (N,O) over a copy of the weight (O,I) laid out for oneDNN: up to three times as
    fast as the ordinary product. The activation is "none", or "gelu" with PyTorch's `approximate`.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, packed, bias, activation, [], approximate)


def int8_linear(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Layer:
    """x (N,I) → x Wᵀ + b (N,O) over W (O,I) as integers of −127 to 127 times a scale (O,): a quarter of float32."""
    scales = (weight.abs().amax(dim=1).float() / 127).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (weight / scales[:, None]).round().to(torch.int8)
    scales = scales.to(dtype)
    has_kernel = weight.device.type == "cpu" and weight.shape[1] % 16 == 0  # others it reads beyond their end

    def product(x: Tensor) -> Tensor:
        if has_kernel and x.shape[0] <= FEW_ROWS:
            y = torch._weight_int8pack_mm(x.contiguous(), codes, scales)
        else:
            y = F.linear(x, codes.to(dtype)) * scales
        return y if bias is None else y + bias

    return product


def _can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.numel() < WORTH_PACKING.get(dtype, float("inf")):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
