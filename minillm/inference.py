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

from minillm.layers import LayerNorm, Linear, RMSNorm

Layer = Callable[[Tensor], Tensor]

# Below so many weights, finding the packed product costs more than it saves (measured: 128 × 384 does not pay in
# float32, 384 × 384 does).
WORTH_PACKING = 100_000


def ready(model: nn.Module) -> nn.Module:
    """A copy of the model to generate with, in the dtype it computes in; what need not change is shared with it.

    It lives outside of autograd and may or may not follow later changes of the weights. A ready model is returned as it
    is.
    """
    if getattr(model, "is_ready", False):
        return model
    dtype = getattr(model, "compute_dtype", None) or next(model.parameters()).dtype
    twin = _Converter(dtype).module(model)
    twin.is_ready, twin.training = True, False
    return twin


class _Converter:
    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
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
            case _:
                return self.module(module).forward

    def linear(self, module: Linear) -> Layer:
        bias = self.parameter(module.bias)
        if _can_pack(module.weight, self.dtype):
            return packed_linear(module.weight.detach().to(self.dtype), bias)
        return partial(F.linear, weight=self.parameter(module.weight), bias=bias)

    def parameter(self, parameter: nn.Parameter | None) -> Tensor | None:
        if parameter is None or parameter.dtype == self.dtype:
            return parameter
        if id(parameter) not in self.cast:
            self.cast[id(parameter)] = nn.Parameter(parameter.detach().to(self.dtype), requires_grad=False)
        return self.cast[id(parameter)]


def packed_linear(weight: Tensor, bias: Tensor | None) -> Layer:
    """x (N,I) → x Wᵀ + b (N,O) over a copy of the weight (O,I) laid out for oneDNN: up to three times as fast."""
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, packed, bias, "none", [], "")


def _can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    if weight.device.type != "cpu" or weight.numel() < WORTH_PACKING or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32
