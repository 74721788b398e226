"""Keys and values of what has been read, so that a new token costs one token.

Letters: B sequences, N new tokens (packed), S capacity, H query heads, G key/value heads, D head dim.
"""

from functools import partial

import torch
from torch import Tensor

from kernels import Packing, attention
from minillm.layers import Attend


class KVCache:
    """Buffers (B, S, G, D) for keys and for values of each layer, filled from the left."""

    def __init__(self, num_layers: int, batch: int, capacity: int, kv_heads: int, head_dim: int, like: Tensor):
        """Empty, in the dtype and on the device of `like`."""
        # Zeros and not garbage: what lies behind a sequence is weighted 0, and 0 · NaN would be NaN.
        shape = (batch, capacity, kv_heads, head_dim)
        self.layers = [(like.new_zeros(shape), like.new_zeros(shape)) for _ in range(num_layers)]
        self.lengths = (0,) * batch  # tokens held of each sequence

    @property
    def max_len(self) -> int:
        return max(self.lengths, default=0)

    def extend(self, packing: Packing) -> "Extension":
        """Room for new tokens behind each sequence; every layer then files its keys and values there."""
        extension = Extension(self, packing)
        self.lengths = extension.lengths
        return extension

    def select(self, rows: list[int]) -> None:
        """Keep these sequences, in this order; a row may be named more than once."""
        index = torch.tensor(rows, device=self.layers[0][0].device)
        self.layers = [(keys[index], values[index]) for keys, values in self.layers]
        self.lengths = tuple(self.lengths[row] for row in rows)


class Extension:
    """One pass of new tokens over a cache: what all layers share."""

    def __init__(self, cache: KVCache, packing: Packing):
        self.cache, self.packing = cache, packing
        self.is_first = cache.max_len == 0
        self.lengths = tuple(old + new for old, new in zip(cache.lengths, packing.lengths, strict=True))
        self.max_len = max(self.lengths, default=0)
        device = packing.cu_seqlens.device
        self.positions = packing.positions + torch.tensor(cache.lengths, device=device)[packing.sequence]
        ragged = not packing.is_rectangular or len(set(self.lengths)) > 1
        self.q_lengths = packing.lengths_tensor if ragged else None
        self.k_lengths = torch.tensor(self.lengths, device=device) if ragged else None

    def attend(self, layer: int) -> Attend:
        """The attention of one layer: files the new keys and values, then looks at all of them."""
        return partial(self._attend, *self.cache.layers[layer])

    def _attend(self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[self.packing.sequence, self.positions] = k
        values[self.packing.sequence, self.positions] = v
        if self.is_first:  # the new tokens are all there is
            return attention(q, k, v, causal=True, packing=self.packing)
        out = attention(
            self.packing.pad(q),
            keys[:, : self.max_len],
            values[:, : self.max_len],
            causal=True,
            q_lengths=self.q_lengths,
            k_lengths=self.k_lengths,
        )
        return self.packing.unpad(out)
