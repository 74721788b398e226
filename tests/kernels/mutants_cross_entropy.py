# ruff: noqa: E501 — one bug a line
"""The planted bugs of cross-entropy: (name, module of kernels/, what to replace, by what). Run them with mutants.py."""

TRITON, TORCH = "gpu/cross_entropy", "cpu/cross_entropy"
LINEAR = "linear_cross_entropy"
REFERENCE = "reference"

MUTANTS = [
    ("cross-entropy: 32-bit row offset", TRITON, "row = tl.program_id(0).to(tl.int64)  # 64", "row = tl.program_id(0)  # 64"),
    ("cross-entropy: mask lets one word more in", TRITON, "mask=cols < V, other=-float", "mask=cols <= V, other=-float"),
    ("cross-entropy: words beyond V count as 0", TRITON, 'cols < V, other=-float("inf")', "cols < V, other=0.0"),
    ("cross-entropy: online sum not rescaled", TRITON, "new_top, rescale * total + tl", "new_top, total + tl"),
    ("cross-entropy: online moment not shifted", TRITON, "(top - shift) * total, 0.0)", "0.0 * total, 0.0)"),
    ("cross-entropy: −inf − −inf", TRITON, "e > 0.0, e * (s - shift), 0.0", "e >= 0.0, e * (s - shift), 0.0"),
    ("cross-entropy: label kept in the gradient", TRITON, "d - (1.0 - loss.smoothing), d)", "d, d)"),
    ("cross-entropy: label comes off whole", TRITON, "d - (1.0 - loss.smoothing), d)", "d - 1.0, d)"),
    ("cross-entropy: z-loss gradient halved", TRITON, "(1.0 + 2.0 * loss.z_loss", "(1.0 + loss.z_loss"),
    ("cross-entropy: p from lse, rounded", TRITON, "tl.exp((s - top) - logz)", "tl.exp(s - (top + logz))"),
    ("cross-entropy: logprob from lse, rounded", TRITON, "(label - top) - logz", "label - lse"),
    ("cross-entropy: smoothing by the sum", TRITON, "smoothing * (spread / V)", "smoothing * spread"),
    ("cross-entropy: temperature missing in dlogits", TRITON, "g = loss.inv_temperature * tl.load", "g = tl.load"),
    ("cross-entropy: g of another row", TRITON, "g_ptr + row * g_stride", "g_ptr + row * 0"),
    ("cross-entropy: second tile repeats the first", TRITON, "tl.program_id(1) * BLOCK + ", ""),
    ("cross-entropy: wrong target followed", TRITON, "known = (target >= 0) & (target < V)", "known = target == target"),
    ("cross-entropy: entropy without log Z", TRITON, "logz - moment / total", "-moment / total"),
    ("cross-entropy: a compilation for each number of rows", TRITON, 'do_not_specialize=["N"]', "do_not_specialize=[]"),
    ("cross-entropy: logits written to", TRITON, "_rows(logits), targets, options, logits.shape[1], stats, None, None", "_rows(logits), targets, options, logits.shape[1], stats, None, logits"),
    ("definition: mean over all words but one", REFERENCE, "logp.mean(-1)", "logp[..., 1:].mean(-1)"),
    ("definition: ignored rows count", REFERENCE, "x.masked_fill(~counted, 0) for x", "x * 1 for x"),
    ("cross-entropy in PyTorch: 1/N of smoothing", TORCH, "options.label_smoothing / V))", "options.label_smoothing / len(p)))"),
    ("cross-entropy in PyTorch: mean over the padding", TORCH, "s[:, :V].mean(-1)", "s.mean(-1)"),
    ("cross-entropy in PyTorch: logits overwritten", TORCH, "copy=True)", "copy=False)"),
    ("cross-entropy in PyTorch: logprob from rounded lse", TORCH, "squeeze(-1).sub_(top)", "squeeze(-1).sub_(top + 1e4).add_(1e4)"),
    ("cross-entropy in PyTorch: entropy without its weights", TORCH, ".log_().mul_(block).sum(-1)", ".log_().sum(-1)"),
    ("cross-entropy in PyTorch: ignored rows in the gradient", TORCH, "norm, g * counted, options", "norm, g, options"),
    ("linear: weight gradient of the last chunk only", LINEAR, "total.addmm_(a, b)", "torch.mm(a, b, out=total)"),
    ("linear: weight gradient summed in 16 bits", LINEAR, "hidden.new_zeros(weight.shape if wanted[1] else 0, dtype=wide)", "hidden.new_zeros(weight.shape if wanted[1] else 0)"),
    ("linear: slices of the weight gradient lose a row", LINEAR, "part = slice(start, start + SLICE)", "part = slice(start, start + SLICE - 1)"),
    ("linear: g dropped", LINEAR, "[x * g for x in ctx.saved_tensors]", "ctx.saved_tensors"),
    ("linear: padding not hidden", LINEAR, 'self.V :] = -float("inf")', "self.V :] = 0.0"),
    ("linear: prompt rows shift the gradient", LINEAR, "index_copy_(0, rows, x)", "index_copy_(0, rows.flip(0), x)"),
    ("linear: all chunks at once", LINEAR, "Room(min(N, chunk_rows), V", "Room(N, V"),
    ("linear: weights dropped in the gradient", LINEAR, "grad=any(wanted), g=g)", "grad=any(wanted))"),
    ("linear: weights dropped in the loss", LINEAR, "torch.where(w != 0, w * loss, 0.0).sum()", "loss.sum()"),
    ("linear: rows of weight 0 are computed", LINEAR, "targets = targets.where(token_weights != 0, ignore_index)", "pass"),
    ("linear: an infinite loss of weight 0 counts", LINEAR, "torch.where(w != 0, w * loss, 0.0).sum()", "(w * loss).sum()"),
    ("linear: the unit of float16 forgotten", LINEAR, "return w / unit, unit", "return w, None"),
]  # fmt: skip
