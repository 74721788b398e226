"""Cross-entropy of rows of logits in PyTorch: few passes, in place on a buffer of our own.

Behind the checks the same four functions as in gpu/cross_entropy.py; the formula stands in cross_entropy.py.

Letters: N rows, V vocabulary; p = softmax(s), s = logits / τ, y the target, g the gradient of the loss.
"""

import torch
from torch import Tensor

from kernels.arguments import CrossEntropyOptions as Options
from kernels.arguments import Rows
from kernels.backend import is_transformed

LEAST_TEMPERATURE = 1e-30  # logits up to 10⁸ divided by it are float32 numbers
ENTROPY_BLOCK = 1 << 18  # elements: a block and its logarithm stay in a core's cache
LONG_ROW = 4096  # words from which on the sum in PyTorch's softmax is rounded too often


# ---- what is refused, here and on a GPU ------------------------------------------------------------


def check_options(ignore_index: int, label_smoothing: float, z_loss: float, temperature: float) -> Options:
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing={label_smoothing} must lie between 0 and 1")
    if not z_loss >= 0.0:
        raise ValueError(f"z_loss={z_loss} must not be negative")
    if not temperature > 0.0:
        raise ValueError(f"temperature={temperature} must be positive")
    if temperature < LEAST_TEMPERATURE:
        raise ValueError(f"temperature={temperature} makes logits overflow; at least {LEAST_TEMPERATURE} does not")
    return Options(ignore_index, float(label_smoothing), float(z_loss), float(temperature))


def check_targets(targets: Tensor, V: int, ignore_index: int) -> None:
    """Raise for a target that is no word: ValueError, or an assertion on a GPU, which it does not stall, and under
    torch.compile, whose graph it does not break."""
    if targets.dtype != torch.int64:
        raise ValueError(f"targets are {targets.dtype}, not torch.int64")
    if not torch.compiler.is_compiling() and is_transformed():
        return  # within vmap nobody may look, but gathering a wrong one raises
    if targets.device.type == "cuda" or torch.compiler.is_compiling():
        right = ~_wrong(targets, V, ignore_index).any()
        torch._assert_async(right, f"a target is neither in 0 … {V - 1} nor ignore_index={ignore_index}")
    elif targets.numel() and (targets.min() < 0 or targets.max() >= V):  # mostly not, and then two passes are enough
        wrong = targets[_wrong(targets, V, ignore_index)].tolist()
        if wrong:
            raise ValueError(f"target {wrong[0]} is neither in 0 … {V - 1} nor ignore_index={ignore_index}")


def _wrong(targets: Tensor, V: int, ignore_index: int) -> Tensor:
    return ((targets < 0) | (targets >= V)) & (targets != ignore_index)


# ---- all rows, from logits that stay as they are ---------------------------------------------------


def forward(logits: Tensor, targets: Tensor, options: Options, *, stats: bool) -> Rows:
    """logits (N, V) in any floating dtype; targets (N,) may be ignored ones."""
    counted = targets != options.ignore_index
    copy = logits.to(buffer_dtype(logits.dtype), copy=True)
    rows = forward_chunk(copy, targets.where(counted, 0), options, logits.shape[-1], stats=stats)
    return rows._replace(loss=rows.loss.where(counted, 0), stats=rows.stats.where(counted, 0) if stats else None)


def backward(logits: Tensor, targets: Tensor, norm: Tensor, g: Tensor, options: Options) -> Tensor:
    """∂(Σ g · loss)/∂logits (N, V) in the dtype of the logits."""
    counted = targets != options.ignore_index
    p = _softmax(logits.to(buffer_dtype(logits.dtype)) / options.temperature)
    d = _gradient(p, targets.where(counted, 0), norm, g * counted, options, logits.shape[-1], out=p)
    return d.to(logits.dtype)


# ---- a chunk of rows, none of them ignored, in a buffer that is lent -------------------------------


def buffer_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype `forward_chunk` wants logits that were computed in `dtype`."""
    return torch.promote_types(dtype, torch.float32)


def forward_chunk(
    buffer: Tensor,
    targets: Tensor,
    options: Options,
    V: int,
    *,
    stats: bool = False,
    grad: bool = False,
    g: Tensor | None = None,
) -> Rows:
    """Logits in, p out; with `grad`, ∂(Σ g · loss)/∂logits out, for g (N,) or 1.

    buffer (N, ≥ V): columns from V on are padding and hold −inf.
    """
    s = buffer.div_(options.temperature) if options.temperature != 1.0 else buffer
    top = s.amax(-1)
    logprob = s.gather(-1, targets[:, None]).squeeze(-1).sub_(top)  # small numbers first, or ±1e4 costs all digits
    mean = s[:, :V].mean(-1).sub_(top) if options.label_smoothing else None
    p = _softmax(s, out=s)
    logz = p.amax(-1).log_().neg_()  # the largest p is exp(0) / Z
    logprob.sub_(logz)

    loss = logprob * (options.label_smoothing - 1.0)
    if options.label_smoothing:
        loss.sub_(mean - logz, alpha=options.label_smoothing)
    if options.z_loss:
        loss.add_((top + logz).square_(), alpha=options.z_loss)
    norm = torch.stack((top, logz))
    values = torch.stack((logprob, top + logz, _entropy(p))) if stats else None
    if grad:
        _gradient(p, targets, norm, g, options, V, out=p)
    return Rows(loss, values, norm)


def _softmax(s: Tensor, out: Tensor | None = None) -> Tensor:
    """softmax(s) over the last dimension, whose rows sum to 1.

    PyTorch's float32 softmax adds a row up with as many running sums as a register has places, one after another: over
    50,257 words 1 comes out to five digits only (fewer with AVX2 than with AVX-512). `sum` adds pairwise.
    """
    p = torch.softmax(s, -1, out=out)
    return p.div_(p.sum(-1, keepdim=True)) if p.shape[-1] > LONG_ROW else p


def _gradient(
    p: Tensor, targets: Tensor, norm: Tensor, g: Tensor | None, options: Options, V: int, out: Tensor
) -> Tensor:
    """g/τ · ((1 + 2ζ lse) p − ε/V − (1 − ε)[j = y]), where no g means 1."""
    scale = (torch.ones_like(norm[0]) if g is None else g.to(p.dtype)) / options.temperature
    of_p = scale * (1.0 + 2.0 * options.z_loss * norm.sum(0)) if options.z_loss else scale
    if out is not p or g is not None or options.z_loss or options.temperature != 1.0:  # else spare a pass
        torch.mul(p, of_p[:, None], out=out)
    if options.label_smoothing:
        out.sub_((scale * (options.label_smoothing / V))[:, None])
    return out.scatter_add_(-1, targets[:, None], (scale * (options.label_smoothing - 1.0))[:, None])


def _entropy(p: Tensor) -> Tensor:
    """−Σ p log p, without another tensor as large as p."""
    out = p.new_empty(p.shape[0])
    tiny = torch.finfo(p.dtype).tiny
    step = max(1, ENTROPY_BLOCK // p.shape[-1])
    for start in range(0, p.shape[0], step):
        block = p[start : start + step]
        out[start : start + step] = -block.clamp_min(tiny).log_().mul_(block).sum(-1)
    return out
