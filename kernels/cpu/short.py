"""Attention over packed sequences that are short: padded for attention alone, so that few calls do it all.

Up to SHORT tokens attention is a small part of a layer, and what it costs is the number of calls: one for each length,
as blocks.py has it, takes longer than computing the padding. Softmax is the library's, in the dtype of the
activations; its output is kept for the backward:

    p = softmax(scale q kᵀ + mask)    dp = do vᵀ      ds = p (dp − Σ p dp)
    dv = pᵀ do                        dq = scale ds k   dk = scale dsᵀ q

Letters: B sequences, N tokens in all, T the padded length, H heads, D head dim.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.arguments import AttentionOptions as Options
from kernels.cpu.blocks import draw_dropout, generator_of
from kernels.packing import Packing

SHORT = 128
LEAST = 64  # PyTorch's softmax of shorter rows of bfloat16 is 3 to 15 times slower than that of float32


def suits(q: Tensor, k: Tensor, packing: Packing, options: Options) -> bool:
    """Whether this is the way for sequences that attend to themselves."""
    is_half_on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    is_short = 0 < packing.max_len <= SHORT and q.shape == k.shape
    return is_half_on_cpu and is_short and options.window is None and options.softcap is None


def attention_short(q: Tensor, k: Tensor, v: Tensor, packing: Packing, options: Options) -> Tensor:
    """q, k and v (N,H,D) → (N,H,D)."""
    B, T = packing.num_sequences, max(packing.max_len, LEAST)
    slots = packing.sequence * T + packing.positions  # of each token in the padded rows
    return _Attention.apply(q, k, v, slots, _mask(packing, T, bool(options.causal), q), (B, T), options)


def _mask(packing: Packing, T: int, causal: bool, like: Tensor) -> Tensor:
    """(B, 1 or T, T), −inf where a key is padding or lies ahead, else 0. Padded queries see what is there."""
    place = torch.arange(T, device=like.device)
    hidden = (place >= packing.lengths_tensor.clamp_min(1)[:, None])[:, None]
    if causal:
        hidden = hidden | (place > place[:, None])
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, slots, mask, shape, options):
        q, k, v = (_pad(x, slots, shape) for x in (q, k, v))
        rows = mask[:, None].expand(-1, len(q) // shape[0], -1, -1).flatten(0, 1)
        scores = torch.baddbmm(rows, q, k.transpose(1, 2), alpha=options.scale)
        probs = torch.softmax(scores, dim=-1, out=scores)
        kept = draw_dropout(probs, options.dropout_p, generator_of(options, q.device))
        ctx.save_for_backward(q, k, v, slots, probs, kept)
        ctx.shape, ctx.scale = shape, options.scale
        return _unpad(torch.bmm(probs if kept is None else probs * kept, v), slots, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, slots, probs, kept = ctx.saved_tensors
        grad = _pad(grad, slots, ctx.shape)
        dv = torch.bmm((probs if kept is None else probs * kept).transpose(1, 2), grad)
        dprobs = torch.bmm(grad, v.transpose(1, 2))
        if kept is not None:
            dprobs *= kept
        dscores = torch._softmax_backward_data(dprobs, probs, -1, probs.dtype, grad_input=dprobs)
        dq = torch.bmm(dscores, k).mul_(ctx.scale)
        dk = torch.bmm(dscores.transpose(1, 2), q).mul_(ctx.scale)
        return *(_unpad(x, slots, ctx.shape) for x in (dq, dk, dv)), None, None, None, None


def _pad(x: Tensor, slots: Tensor, shape: tuple[int, int]) -> Tensor:
    """(N,H,D) → (B·H,T,D), zeros where there is no token."""
    B, T = shape
    padded = x.new_zeros(B * T, *x.shape[1:]).index_copy_(0, slots, x)
    return padded.unflatten(0, shape).transpose(1, 2).reshape(-1, T, x.shape[-1])


def _unpad(x: Tensor, slots: Tensor, shape: tuple[int, int]) -> Tensor:
    """The reverse."""
    return x.unflatten(0, (shape[0], -1)).transpose(1, 2).flatten(0, 1).index_select(0, slots)
