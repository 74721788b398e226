"""Test-wide set-up. Without a GPU the Triton kernels run in Triton's interpreter."""

import os

# As minillm/process.py has it, which would come too late: on a busy machine tests take several times as long without.
spins = {} if "GOMP_SPINCOUNT" in os.environ else {"GOMP_SPINCOUNT": "3000"}
os.environ |= spins
if "PYTEST_XDIST_WORKER" in os.environ:  # `pytest -n 2`: each process has a core of its own, as has what it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest  # noqa: E402
import torch  # noqa: E402

for name in spins:
    del os.environ[name]  # what tests start sets it for itself

# Read when `@triton.jit` runs, so it must be set before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _kernels_as_they_were():
    """Behind a test, what it or a script that it ran has set as their default is forgotten, with what came of it."""
    yield
    from kernels import backend  # not before the variable above is set

    backend.set_default("auto")
