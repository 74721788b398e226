"""The machine code that the kernels compile to, as the table of this Triton version has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton

from kernels import inspect

ROOT = Path(__file__).resolve().parents[2]
VERSION = ".".join(triton.__version__.split(".")[:2])
needs_table = pytest.mark.skipif(
    not inspect.table_path().exists(), reason=f"no table of machine code for Triton {VERSION} in the repository"
)


def check(only: str, jobs: int) -> None:
    """In a process of its own: this one has Triton in its interpreter."""
    command = [sys.executable, "-m", "kernels.inspect", "--check", "--only", only, "--jobs", str(jobs)]
    run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) > 1, "no row was compiled"


@needs_table
@pytest.mark.parametrize("only", ["cross_entropy.backward V131072 bf16", "sm_90 attention.forward D64 grouped"])
def test_some_configurations(only):
    check(only, jobs=1)


@needs_table
@pytest.mark.slow
def test_every_kernel_in_every_configuration():
    check("", jobs=os.cpu_count())


@needs_table
def test_table_is_complete():
    """One row for each shipped configuration, in order, so that nothing is left in it from earlier times."""
    rows = inspect.table_path().read_text().splitlines()[1:]
    names = [str(c) for c in inspect.configurations()]
    assert len(rows) == len(names)
    assert all(row.startswith(name) for row, name in zip(rows, names, strict=True))


CARD = inspect.CARDS["sm_90"]
CONFIGURATION = inspect.Configuration("sm_90", "a_kernels.forward_kernel", "D64", {}, {}, warps=8, product=True)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 1}, "spills"),
        ({"products": "HMMA 4"}, "no HGMMA"),
        ({"products": ""}, "no HGMMA"),
        ({"shared": 228 << 10}, "more than 232448 bytes of shared memory"),
        ({"tensor_memory": 513}, "more than 512 columns of tensor memory"),
    ],
)
def test_faults(change, fault):
    row = inspect.Row(CONFIGURATION, **({"registers": 100, "products": "HGMMA 4"} | change))
    row.faults = inspect._faults(row, CARD)
    assert row.faults == [fault]
    assert inspect.complaints([row], [str(row)], "table") == [f"fault: {row}"]


def test_difference_from_the_table():
    row = inspect.Row(CONFIGURATION, registers=100, products="HGMMA 4")
    assert inspect._faults(row, CARD) == []
    assert inspect.complaints([row], [str(row)], "table") == []
    assert inspect.complaints([row], [str(row).replace(" 100 ", " 101 ")], "table") == [f"not in table: {row}"]


def test_occupancy():
    """2,048 threads of 65,536 registers: 32 a thread fill a processor; 228 KB of shared memory hold two of 100."""
    fits = {"registers": 32, "shared": 0}
    for change, per_cent in ((fits, 100), ({"registers": 33}, 75), ({"registers": 32, "shared": 100 << 10}, 25)):
        assert inspect._occupancy(inspect.Row(CONFIGURATION, **change), CARD) == per_cent
