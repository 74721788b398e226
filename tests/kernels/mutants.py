# ruff: noqa: E501 — one bug a line
"""Do the tests notice bugs? Plants them one at a time in a copy of the repository and runs the tests there.

    python -m tests.kernels.mutants              # all, about five minutes
    python -m tests.kernels.mutants online       # those whose name contains this

Prints what became of each and exits with 1 if one survived. Add a line for every bug you ever had.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.kernels import mutants_attention

ROOT = Path(__file__).resolve().parents[2]
TRITON, TORCH = "cross_entropy_triton", "cross_entropy_torch"
LINEAR, CHUNKS = "linear_cross_entropy", "linear_cross_entropy_chunks"


class Mutant(NamedTuple):
    name: str
    module: str  # of kernels/
    before: str  # must occur there
    after: str


MUTANTS = [
    Mutant("triton: 32-bit row offset", TRITON, "row = tl.program_id(0).to(tl.int64)  # 64", "row = tl.program_id(0)  # 64"),
    Mutant("triton: mask lets one word more in", TRITON, "mask=cols < V, other=-float", "mask=cols <= V, other=-float"),
    Mutant("triton: words beyond V count as 0", TRITON, 'cols < V, other=-float("inf")', "cols < V, other=0.0"),
    Mutant("triton: online sum not rescaled", TRITON, "new_top, rescale * total + tl", "new_top, total + tl"),
    Mutant("triton: online moment not shifted", TRITON, "(top - shift) * total, 0.0)", "0.0 * total, 0.0)"),
    Mutant("triton: −inf − −inf", TRITON, "e > 0.0, e * (s - shift), 0.0", "e >= 0.0, e * (s - shift), 0.0"),
    Mutant("triton: label kept in the gradient", TRITON, "d - (1.0 - smoothing), d)", "d, d)"),
    Mutant("triton: label comes off whole", TRITON, "d - (1.0 - smoothing), d)", "d - 1.0, d)"),
    Mutant("triton: z-loss gradient halved", TRITON, "(1.0 + 2.0 * z_loss", "(1.0 + z_loss"),
    Mutant("triton: p from lse, rounded", TRITON, "tl.exp((s - top) - logz)", "tl.exp(s - (top + logz))"),
    Mutant("triton: logprob from lse, rounded", TRITON, "(label - top) - logz", "label - lse"),
    Mutant("triton: smoothing by the sum", TRITON, "smoothing * (spread / V)", "smoothing * spread"),
    Mutant("triton: temperature missing in dlogits", TRITON, "g = inv_temperature * tl.load", "g = tl.load"),
    Mutant("triton: g of another row", TRITON, "g_ptr + row * g_stride", "g_ptr + row * 0"),
    Mutant("triton: second tile repeats the first", TRITON, "tl.program_id(1) * BLOCK + ", ""),
    Mutant("triton: wrong target followed", TRITON, "known = (target >= 0) & (target < V)", "known = target == target"),
    Mutant("triton: entropy without log Z", TRITON, "logz - moment / total", "-moment / total"),
    Mutant("triton: logits written to", TRITON, "_rows(logits), targets, options, logits.shape[1], stats, None, None", "_rows(logits), targets, options, logits.shape[1], stats, None, logits"),
    Mutant("torch: 1/N of smoothing", TORCH, "options.label_smoothing / V))", "options.label_smoothing / len(p)))"),
    Mutant("torch: mean over the padding", TORCH, "s[:, :V].mean(-1)", "s.mean(-1)"),
    Mutant("torch: logits overwritten", TORCH, "copy=True)", "copy=False)"),
    Mutant("torch: logprob from rounded lse", TORCH, "squeeze(-1).sub_(top)", "squeeze(-1).sub_(top + 1e4).add_(1e4)"),
    Mutant("torch: kept p overwritten", TORCH, "out=torch.empty_like(p))", "out=p)"),
    Mutant("torch: entropy not normalised", TORCH, "total = block.sum(-1)", "total = block.new_ones(())"),
    Mutant("torch: ignored rows in the gradient", TORCH, "norm, g * counted, options", "norm, g, options"),
    Mutant("linear: weight gradient of the last chunk only", CHUNKS, "total.addmm_(a, b)", "torch.mm(a, b, out=total)"),
    Mutant("linear: weight gradient summed in 16 bits", CHUNKS, "hidden.new_zeros(weight.shape if wanted[1] else 0, dtype=wide)", "hidden.new_zeros(weight.shape if wanted[1] else 0)"),
    Mutant("linear: g dropped", LINEAR, "grads = [x * g for x in grads]", "grads = [x * 1 for x in grads]"),
    Mutant("linear: padding not hidden", CHUNKS, 'out[:, V:] = -float("inf")', "out[:, V:] = 0.0"),
    Mutant("linear: prompt rows shift the gradient", CHUNKS, "index_copy_(0, rows, x)", "index_copy_(0, rows.flip(0), x)"),
    Mutant("linear: all chunks at once", CHUNKS, "room(min(N, chunk_rows), V", "room(N, V"),
    Mutant("linear: mean over all rows", LINEAR, "loss / (targets != ignore_index).sum().clamp_min(1)", "loss / max(1, len(targets))"),
]  # fmt: skip


def survives(mutant: Mutant, folder: Path) -> bool:
    path = folder / "kernels" / f"{mutant.module}.py"
    original = path.read_text()
    if mutant.before not in original:
        raise ValueError(f"{mutant.name}: {path.name} no longer contains {mutant.before!r}")
    path.write_text(original.replace(mutant.before, mutant.after))
    subject = "attention" if mutant.module.startswith("attention") else "cross_entropy"
    tests = sorted(str(x) for x in (folder / "tests" / "kernels").glob(f"test_*{subject}*.py"))
    # Those of the module first, so that most bugs are found in seconds.
    is_triton = mutant.module.endswith(("triton", "kernels"))
    tests.sort(key=lambda test: (mutant.module not in test, ("triton" in test) != is_triton))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True)
    path.write_text(original)
    if run.returncode not in (0, 1):  # 1: a test failed
        raise RuntimeError(run.stdout.decode()[-2000:])
    return run.returncode == 0


def main() -> int:
    chosen = [
        m
        for m in MUTANTS + [Mutant(*x) for x in mutants_attention.MUTANTS]
        if all(word in m.name for word in sys.argv[1:])
    ]
    survivors = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("kernels", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for mutant in chosen:
            alive = survives(mutant, folder)
            survivors += alive
            print("SURVIVED" if alive else "caught  ", mutant.name, flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
