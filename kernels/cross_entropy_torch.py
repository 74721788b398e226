"""Cross-entropy of rows of logits in PyTorch: few passes, in place where the caller lends its buffer.

The same two functions as in cross_entropy_triton.py; the formula stands in cross_entropy.py.

Letters: N rows, V vocabulary; p = softmax(s), s = logits / τ, y the target, g the gradient of the loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor

ENTROPY_BLOCK = 1 << 18  # elements: a block and its logarithm stay in a core's cache


class Options(NamedTuple):
    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    temperature: float = 1.0


class Rows(NamedTuple):
    loss: Tensor  # (N,) in float32 or float64, and so are the others
    stats: Tensor | None  # (3, N) logprob, lse, entropy
    norm: Tensor | None  # (2, N) max_j s_j and log Σ_j exp(s_j − max), which lse, their sum, would round away
    grad: Tensor | None  # (N, V) ∂(Σ g · loss)/∂logits


def forward(logits: Tensor, targets: Tensor, options: Options, *, stats: bool) -> Rows:
    """logits (N, V) in any floating dtype, which stay as they are; targets (N,) may be ignored ones."""
    counted = targets != options.ignore_index
    rows = forward_chunk(logits, targets.where(counted, 0), options, logits.shape[-1], stats=stats)
    return rows._replace(loss=rows.loss.where(counted, 0), stats=rows.stats.where(counted, 0) if stats else None)


def forward_chunk(
    logits: Tensor,
    targets: Tensor,
    options: Options,
    V: int,
    *,
    stats: bool = False,
    grad: bool = False,
    g: Tensor | None = None,
    inplace: bool = False,
) -> Rows:
    """logits (N, ≥ V), columns from V on being padding that holds −inf; no target is an ignored one.

    `grad`: form the gradient too, for g (N,) or 1. `inplace`: the logits may be overwritten.
    """
    label = targets[:, None]
    s, own = _scaled(logits, options.temperature, inplace)
    top = s.amax(-1)
    logprob = s.gather(-1, label).squeeze(-1).sub_(top)  # small numbers first: ±1e4 − lse would cost all digits
    mean = s[:, :V].mean(-1) if options.label_smoothing else None
    p = torch.softmax(s, -1, out=s) if own else torch.softmax(s, -1)
    logz = p.amax(-1).log_().neg_()  # the largest p is exp(0) / Z
    logprob.sub_(logz)

    loss = logprob * (options.label_smoothing - 1.0)
    lse = top + logz
    if mean is not None:
        loss.sub_(mean - top - logz, alpha=options.label_smoothing)
    if options.z_loss:
        loss.addcmul_(lse, lse, value=options.z_loss)
    values = torch.stack((logprob, lse, _entropy(p))) if stats else None
    if grad:
        _form_grad(p, label, lse, g, options, V)
    return Rows(loss, values, torch.stack((top, logz)), p if grad else None)


def backward(logits: Tensor, targets: Tensor, norm: Tensor, g: Tensor, options: Options) -> Tensor:
    """∂(Σ g · loss)/∂logits (N, V) in the dtype of the logits, which stay as they are."""
    counted = targets != options.ignore_index
    label = targets.where(counted, 0)[:, None]
    s, own = _scaled(logits, options.temperature, inplace=False)
    p = torch.softmax(s, -1, out=s) if own else torch.softmax(s, -1)
    _form_grad(p, label, norm.sum(0), g * counted, options, logits.shape[-1])
    return p.to(logits.dtype)


def _scaled(logits: Tensor, temperature: float, inplace: bool) -> tuple[Tensor, bool]:
    """logits / τ in float32 or float64, and whether they may be overwritten."""
    s = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = inplace or s is not logits
    if temperature != 1.0:
        s = s.div_(temperature) if own else s / temperature
        own = True
    return s, own


def _form_grad(p: Tensor, label: Tensor, lse: Tensor, g: Tensor | None, options: Options, V: int) -> None:
    """Turn p (N, V) into g/τ · ((1 + 2ζ lse) p − ε/V − (1 − ε)[j = y]), where no g means 1."""
    scale = (torch.ones_like(lse) if g is None else g.to(p.dtype))[:, None] / options.temperature
    if g is not None or options.z_loss or options.temperature != 1.0:  # else spare a pass over p
        p.mul_(scale * (1.0 + 2.0 * options.z_loss * lse)[:, None] if options.z_loss else scale)
    if options.label_smoothing:
        p.sub_(scale * (options.label_smoothing / V))
    p.scatter_add_(-1, label, scale * (options.label_smoothing - 1.0))


def _entropy(p: Tensor) -> Tensor:
    """−Σ q log q with q = p / Σp, without another tensor as large as p. (Over many words the sum of the float32
    softmax is 1 to five digits only.)"""
    out = p.new_empty(p.shape[0])
    tiny = torch.finfo(p.dtype).tiny
    step = max(1, ENTROPY_BLOCK // p.shape[-1])
    for start in range(0, p.shape[0], step):
        block = p[start : start + step]
        total = block.sum(-1)
        out[start : start + step] = total.log() - block.clamp_min(tiny).log_().mul_(block).sum(-1) / total
    return out
