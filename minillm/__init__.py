"""The engine: models, training, generation. It computes with `kernels`, the package beside it in the checkout."""

from pathlib import Path

from minillm import process

process.settle()

import kernels  # noqa: E402, it loads PyTorch

# There is another distribution called `kernels`; one that comes first on the path would fail less clearly later on.
if Path(next(iter(kernels.__path__))).resolve() != Path(__file__).resolve().parents[1] / "kernels":
    raise ImportError(
        f"another package named 'kernels' ({next(iter(kernels.__path__))}) hides the one beside minillm; "
        f"uninstall it in this environment, or start Python with PYTHONPATH={Path(__file__).resolve().parents[1]}"
    )
