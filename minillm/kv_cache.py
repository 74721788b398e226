"""Keys and values of what has been read, so that a new token costs one token.

Letters: B sequences, N new tokens (packed), S room for tokens, H query heads, G key/value heads, D head dim.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from kernels import Packing, attention, choose
from kernels.cpu.attention import Step, laid_out
from minillm.layers import Attend

AHEAD = 32  # tokens, at least, that a cache grows by; a quarter of its tokens where that is more


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

    def _grow(self, room: int) -> None:
        """Room for more tokens. One layer after the other, so that only one of them is held twice."""
        for layer, (keys, values) in enumerate(self.layers):
            # Zeros and not garbage: what lies behind a sequence is weighted 0, and 0 · NaN would be NaN.
            more = (0, 0, 0, room - keys.shape[2])
            self.layers[layer] = laid_out(pad(keys, more), self.num_heads), pad(values, more)

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
        is_step = one_each and choose(device).impl == "torch" and not torch.is_grad_enabled()
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
