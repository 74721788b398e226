"""What makes generation fast: a copy of the model made ready for it, and the cache of what has been read.

The copy has the same forward code, with every layer replaced by the bare function it computes. A small model spends
more time on calling modules than on arithmetic: hooks that nobody set, casts that change nothing, gradients that nobody
wants. On a CPU there is a second cost: the ordinary product lays its weight out anew in every call, which takes longer
than the product itself where there are few rows. Both are paid once, here.

The cache keeps the keys and values of all tokens, so that a new one costs one token.

Letters: N rows or new tokens (packed), I inputs, O outputs; B sequences, S room for tokens, H query heads, G key/value
heads, D head dim.
"""

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import Packing, attention
from kernels.backend import implementation
from kernels.cpu.attention import Step, laid_out
from minillm.layers import MLP, Attend, LayerNorm, Linear, RMSNorm
from minillm.quantized import FORMS, OF_OUTPUTS, WORTH_QUANTISING, Layer, quantized_linear

# Below so many weights, finding the packed product costs more than it saves: in float32 128 × 512 does not pay, 384 ×
# 384 does; in bfloat16, whose ordinary product is slow, 128 × 128 does.
WORTH_PACKING = {torch.float32: 100_000, torch.bfloat16: 16_000}
# Activations within a product, as oneDNN calls them.
FUSED = {"gelu": ("gelu", "tanh"), "gelu-erf": ("gelu", "none"), "relu": ("relu", "")}
AHEAD = 32  # tokens, at least, that a cache grows by; a quarter of its tokens where that is more

# ---- a model made ready ------------------------------------------------------------------------------


def ready(model: nn.Module, quantize: str | None = None) -> nn.Module:
    """A copy of the model to generate with, in the dtype it computes in; what need not change is shared with it.

    It lives outside of autograd and may or may not follow later changes of the weights. A ready model is returned as it
    is.

    quantize   "int8" or "int4" keeps the weights of large products in so many bits, see quantized.py, and computes in
               bfloat16.
    """
    if quantize not in (None, *FORMS):
        raise ValueError(f"quantize={quantize!r} is none of {', '.join(FORMS)}")
    if getattr(model, "is_ready", False):
        return model
    dtype = getattr(model, "compute_dtype", None) or next(model.parameters()).dtype
    dtype = torch.bfloat16 if quantize else dtype
    twin = _Converter(dtype, quantize).module(model)
    twin.is_ready, twin.compute_dtype = True, dtype
    twin.num_parameters = sum(parameter.numel() for parameter in model.parameters())
    return twin


class _Converter:
    def __init__(self, dtype: torch.dtype, quantize: str | None):
        self.dtype, self.quantize = dtype, quantize
        self.cast: dict[nn.Parameter, Tensor] = {}  # those converted so far, so that tied ones stay tied

    def module(self, module: nn.Module) -> nn.Module:
        """A twin whose children stand among its ordinary attributes, where Python finds them first."""
        twin = copy.copy(module)
        twin._parameters = {name: self.parameter(p) for name, p in module._parameters.items()}
        twin._modules = {}
        for name, child in module.named_children():
            twin.__dict__[name] = self.layer(child, is_output=name == "output")
        twin.__dict__["training"] = False
        return twin

    def layer(self, module: nn.Module, is_output: bool = False) -> Any:
        match module:
            case Linear():
                return self.linear(module.merged(), OF_OUTPUTS if self.quantize and is_output else self.quantize)
            case LayerNorm() | RMSNorm():
                norm = torch.layer_norm if isinstance(module, LayerNorm) else torch.rms_norm
                parameters = {name: self.parameter(p) for name, p in module._parameters.items()}
                return partial(norm, normalized_shape=module.normalized_shape, eps=module.eps, **parameters)
            case nn.ModuleList():
                return [self.layer(child) for child in module]
            case nn.Embedding():
                return self.module(module)
            case MLP() if not self.quantize and _can_pack(module.up.weight, self.dtype):
                return self.mlp(module)
            case _:
                return self.module(module).forward

    def mlp(self, module: MLP) -> Layer:
        """The activation is computed within the first product, while its results are at hand."""
        first = module.up.merged()
        weight, bias = first.weight.detach().to(self.dtype), self.parameter(first.bias)
        up, down = packed_linear(weight, bias, *FUSED[module.activation]), self.layer(module.down)
        return lambda x: down(up(x))

    def linear(self, module: Linear, quantize: str | None) -> Layer:
        bias = self.parameter(module.bias)
        if quantize and module.weight.numel() >= WORTH_QUANTISING:
            return quantized_linear(module.weight.detach(), bias, quantize)
        if _can_pack(module.weight, self.dtype):
            return packed_linear(module.weight.detach().to(self.dtype), bias)
        return partial(F.linear, weight=self.parameter(module.weight), bias=bias)

    def parameter(self, parameter: nn.Parameter | None) -> Tensor | None:
        if parameter is None or parameter.dtype == self.dtype:
            return parameter
        if parameter not in self.cast:
            self.cast[parameter] = nn.Parameter(parameter.detach().to(self.dtype), requires_grad=False)
        return self.cast[parameter]


def packed_linear(weight: Tensor, bias: Tensor | None, activation: str = "none", approximate: str = "") -> Layer:
    """x (N,I) → activation(x Wᵀ + b) (N,O) over a copy of the weight (O,I) laid out for oneDNN: up to three times as
    fast as the ordinary product. The activation is "none", "relu", or "gelu" with PyTorch's `approximate`.
    """
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    product = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: product(x, packed, bias, activation, [], approximate)


def _can_pack(weight: Tensor, dtype: torch.dtype) -> bool:
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.numel() < WORTH_PACKING.get(dtype, float("inf")):
        return False
    return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


# ---- what has been read ------------------------------------------------------------------------------


class KVCache:
    """Buffers (B, G, S, D) for keys and for values of each layer, filled from the left. They grow up to a capacity."""

    def __init__(
        self,
        num_layers: int,
        batch: int,
        capacity: int,
        num_heads: int,
        kv_heads: int,
        head_dim: int,
        like: Tensor,
    ):
        """Empty, in the dtype and on the device of `like`, for that many heads that ask and that hold keys."""
        self.num_heads, self.capacity = num_heads, capacity
        self.lengths = (0,) * batch  # tokens held of each sequence
        empty = like.new_empty(batch, kv_heads, 0, head_dim)
        self.layers = [(empty, empty)] * num_layers

    @classmethod
    def of(cls, model: nn.Module, batch: int, capacity: int) -> "KVCache":
        """An empty cache for `batch` sequences of up to `capacity` tokens of this GPT."""
        config, weight = model.config, model.tokens.weight
        like = weight.new_empty(0, dtype=model.compute_dtype or weight.dtype)
        heads = config.num_heads, config.num_kv_heads, config.head_dim
        return cls(config.num_layers, batch, capacity, *heads, like)

    @property
    def max_len(self) -> int:
        return max(self.lengths, default=0)

    def extend(self, packing: Packing) -> "Extension":
        """Room for new tokens behind each sequence; every layer then files its keys and values there.

        Raises ValueError, and stays as it was, when a sequence outgrows the capacity.
        """
        extension = Extension(self, packing)
        if extension.max_len > self.capacity:
            raise ValueError(f"a sequence has {extension.max_len} tokens but the cache holds {self.capacity}")
        if extension.max_len > self.layers[0][0].shape[2]:
            self._grow(min(self.capacity, extension.max_len + max(AHEAD, extension.max_len // 4)))
        self.lengths = extension.lengths
        return extension

    def keep(self, length: int) -> None:
        """Forget what each sequence has behind its first `length` tokens."""
        self.lengths = tuple(min(length, held) for held in self.lengths)

    def _grow(self, room: int) -> None:
        """Room for more tokens. One layer after the other, so that only one of them is held twice."""
        for layer, (keys, values) in enumerate(self.layers):
            # Zeros and not garbage: what lies behind a sequence is weighted 0, and 0 · NaN would be NaN.
            more = (0, 0, 0, room - keys.shape[2])
            self.layers[layer] = laid_out(F.pad(keys, more), self.num_heads), F.pad(values, more)

    def select(self, rows: list[int]) -> None:
        """Keep these sequences, in this order; a row may be named more than once."""
        index = torch.tensor(rows, device=self.layers[0][0].device)
        self.layers = [(laid_out(keys[index], self.num_heads), values[index]) for keys, values in self.layers]
        self.lengths = tuple(self.lengths[row] for row in rows)


class Extension:
    """One pass of new tokens over a cache: what all layers share."""

    def __init__(self, cache: KVCache, packing: Packing):
        self.cache, self.packing = cache, packing
        self.before = cache.lengths
        self.lengths = tuple(old + new for old, new in zip(cache.lengths, packing.lengths, strict=True))
        self.max_len = max(self.lengths, default=0)
        self.is_even = packing.is_rectangular and len(set(self.lengths)) <= 1
        device = packing.cu_seqlens.device
        if self.is_even:
            self.k_lengths = self.visible = None
            self.positions = packing.positions + (self.max_len - packing.max_len)
        else:
            self.k_lengths = torch.tensor(self.lengths, device=device)
            self.positions = packing.positions + (self.k_lengths - packing.lengths_tensor)[packing.sequence]
            self.visible = (torch.arange(self.max_len, device=device) < self.k_lengths[:, None])[:, None, None]
        one_each = set(packing.lengths) == {1}
        is_torch = implementation(device, None, cache.layers[0][0].dtype) == "torch"
        is_step = one_each and is_torch and not torch.is_grad_enabled()
        self.step = Step(self.max_len, self.visible) if is_step else None

    def attend(self, layer: int) -> Attend:
        """The attention of one layer: files the new keys and values, then looks at all of them."""
        return partial(self._step if self.step else self._attend, *self.cache.layers[layer])

    def _step(self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One new token a sequence, without gradients: the inner loop of generation on a CPU."""
        n = self.max_len
        if self.is_even:  # a slice costs less than an index, which counts in small models
            keys[:, :, n - 1], values[:, :, n - 1] = k, v
        else:
            self._file(keys, k)
            self._file(values, v)
        return self.step.attend(q, keys, values)

    def _attend(self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self._file(keys, k)
        self._file(values, v)
        if not any(self.before):  # the new tokens are all there is
            return attention(q, k, v, causal=True, packing=self.packing)
        out = attention(
            self.packing.pad(q),
            keys[:, :, : self.max_len].transpose(1, 2),
            values[:, :, : self.max_len].transpose(1, 2),
            causal=True,
            q_lengths=None if self.is_even else self.packing.lengths_tensor,
            k_lengths=self.k_lengths,
        )
        return self.packing.unpad(out)

    def _file(self, buffer: Tensor, new: Tensor) -> None:
        """Copy new keys or values (N,G,D) into a buffer (B,G,S,D)."""
        buffer.transpose(1, 2)[self.packing.sequence, self.positions] = new
