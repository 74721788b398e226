"""The engine: models, training, generation. It computes with `kernels`, the package beside it in the checkout."""

import os
from pathlib import Path

# Threads that spin long while they wait for each other make a small model up to ten times slower on a machine that does
# something else too. Spinning briefly costs little in training on an idle one, but a third when answering one prompt:
# who has the machine alone may set more. GNU OpenMP reads this when PyTorch is loaded, so scripts import minillm first.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import kernels

# There is another distribution called `kernels`; one that comes first on the path would fail less clearly later on.
if Path(next(iter(kernels.__path__))).resolve() != Path(__file__).resolve().parents[1] / "kernels":
    raise ImportError(
        f"another package named 'kernels' ({next(iter(kernels.__path__))}) hides the one beside minillm; "
        f"uninstall it in this environment, or start Python with PYTHONPATH={Path(__file__).resolve().parents[1]}"
    )
