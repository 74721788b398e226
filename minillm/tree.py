"""What has been read of texts that share their beginnings: the cache of a beam search.

The beams of a prompt are paths in one tree, whose root is the prompt. Each token is kept once, behind all others of its
prompt, in the order in which they were read; a mask says which of them lie on the path to a beam. So nothing is copied
where beams fork, and a prompt's keys are read once for all of its beams: that their queries are compared with tokens
off their path, too, costs less. Now and then, tokens on no path are thrown out.

Letters: B prompts, W beams of each, S room for tokens, n tokens kept (holes included), H query heads, G key/value
heads, R = H/G, D head dim.
"""

from functools import partial

import torch
from torch import Tensor

from kernels import Packing
from minillm.inference import AHEAD, KVCache
from minillm.layers import Attend


class Tree(KVCache):
    """A cache of B prompts, read as in any other, until `branch` lets beams grow behind them; `lengths` and `capacity`
    stay those of the prompts."""

    visible: Tensor | None = None  # (B,W,n) bool: what each beam sees, once there are beams
    depth = 0  # tokens of a beam

    def branch(self) -> None:
        """From now on beams grow: so far one of each prompt, without a token."""
        places = torch.arange(self.max_len, device=self.layers[0][0].device)
        self.prompt_lengths = torch.tensor(self.lengths, device=places.device)
        self.visible = (places < self.prompt_lengths[:, None])[:, None]

    def fork(self, parents: Tensor) -> None:
        """The beams go on from these (B,W) of the beams there are."""
        self.visible = self.visible.gather(1, parents[:, :, None].expand(-1, -1, self.visible.shape[2]))

    def extend(self, packing: Packing) -> "KVCache | Tree":
        """Room for a token of each beam, once there are beams; `packing` says so: W of each prompt in a row."""
        if self.visible is None:
            return super().extend(packing)
        B, W, n = self.visible.shape
        if n + W > self.layers[0][0].shape[2]:
            self._keep_paths(None, W)
        self.depth += 1
        own = torch.eye(W, dtype=torch.bool, device=self.visible.device).expand(B, W, W)
        self.visible = torch.cat([self.visible, own], dim=2)
        hidden = torch.zeros(self.visible.shape, dtype=self.layers[0][0].dtype, device=own.device)
        self.mask = hidden.masked_fill_(~self.visible, float("-inf"))
        self.positions = (self.prompt_lengths + (self.depth - 1)).repeat_interleave(W)
        return self

    @property
    def max_len(self) -> int:
        return super().max_len + self.depth

    def attend(self, layer: int) -> Attend:
        return partial(self._attend, *self.layers[layer])

    def _attend(self, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B·W,H,D), k and v (B·W,G,D) of the new tokens → (B·W,H,D). The heads of a group and the beams of a prompt
        are rows of one product with their keys."""
        B, W, n = self.mask.shape
        (H, D), G = q.shape[1:], k.shape[1]
        new = slice(n - W, n)
        keys[:, :, new], values[:, :, new] = (x.view(B, W, G, D).transpose(1, 2) for x in (k, v))
        rows = (q * D**-0.5).view(B, W, G, H // G, D).permute(0, 2, 3, 1, 4).reshape(B * G, -1, D)
        mask = self.mask[:, None, None].expand(B, G, H // G, W, n).reshape(B * G, -1, n)
        scores = torch.baddbmm(mask, rows, keys[:, :, :n].flatten(0, 1).mT)
        probs = torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype)
        out = torch.bmm(probs, values[:, :, :n].flatten(0, 1))
        return out.view(B, G, H // G, W, D).permute(0, 3, 1, 2, 4).reshape(B * W, H, D)

    def select(self, rows: list[int]) -> None:
        """Keep these prompts, in this order, with their beams."""
        index = torch.tensor(rows, device=self.visible.device)
        self.visible, self.prompt_lengths = self.visible[index], self.prompt_lengths[index]
        self.lengths = tuple(self.lengths[row] for row in rows)
        self._keep_paths(index, self.visible.shape[1])

    def _keep_paths(self, prompts: Tensor | None, more: int) -> None:
        """Throw out what lies on no path, of these prompts (all: None), and make room for `more` tokens and others."""
        on_path = self.visible.any(dim=1)
        n = int(on_path.sum(dim=1).max())
        room = n + max(AHEAD, n // 4, more)
        places = (~on_path).sort(dim=1, stable=True).indices[:, :n]  # the oldest first, as before
        self.visible = self.visible.gather(2, places[:, None].expand(-1, self.visible.shape[1], -1))
        for layer, buffers in enumerate(self.layers):
            self.layers[layer] = tuple(_moved(buffer, prompts, places, room) for buffer in buffers)


def _moved(buffer: Tensor, prompts: Tensor | None, places: Tensor, room: int) -> Tensor:
    """Of a buffer (B,G,S,D) the rows of these prompts and, of each, of these places (B',n), with room for `room`."""
    B, G, S, D = buffer.shape
    prompts = torch.arange(B, device=buffer.device) if prompts is None else prompts
    heads = (prompts[:, None] * G + torch.arange(G, device=buffer.device)) * S
    rows = (heads[:, :, None] + places[:, None]).flatten()
    # Zeros and not garbage: what is hidden is weighted 0, and 0 · NaN would be NaN.
    moved = buffer.new_zeros(len(prompts), G, room, D)
    moved[:, :, : places.shape[1]] = buffer.reshape(-1, D).index_select(0, rows).view(len(prompts), G, -1, D)
    return moved
