"""The engine: models, training, generation. It computes with `kernels`, the package beside it in the checkout."""

import os
from pathlib import Path

# Threads that spin while they wait make a small model up to ten times slower on a machine that does something else
# too. OpenMP reads this when PyTorch is loaded, so scripts import minillm first.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import kernels

# There is another distribution called `kernels`; one that comes first on the path would fail less clearly later on.
if Path(next(iter(kernels.__path__))).resolve() != Path(__file__).resolve().parents[1] / "kernels":
    raise ImportError(
        f"another package named 'kernels' ({next(iter(kernels.__path__))}) hides the one beside minillm; "
        f"uninstall it in this environment, or start Python with PYTHONPATH={Path(__file__).resolve().parents[1]}"
    )
