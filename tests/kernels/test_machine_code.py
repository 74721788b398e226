"""The machine code that the kernels compile to, as the table of this Triton version has it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import torch

from bench import machine_code
from kernels.gpu import decode, launch_table

ROOT = Path(__file__).resolve().parents[2]
VERSION = machine_code.triton_version()
needs_table = pytest.mark.skipif(
    not machine_code.table_path().exists(), reason=f"no table of machine code for Triton {VERSION} in the repository"
)


def check(only: str, jobs: int) -> None:
    """In a process of its own: this one has Triton in its interpreter. The script runs from any folder."""
    command = [sys.executable, ROOT / "bench" / "machine_code.py", "--check", "--only", only, "--jobs", str(jobs)]
    run = subprocess.run(command, cwd=ROOT / "tests", env=os.environ, capture_output=True, text=True)
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


TABLES = sorted(machine_code.TABLES.glob("triton-*.txt"))


def test_tables_of_the_oldest_and_the_newest_triton():
    assert [path.stem for path in TABLES] == ["triton-3.6", "triton-3.9"]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_table_is_complete(path):
    """One row for each shipped configuration, in order, so that nothing is left in it from earlier times."""
    rows = path.read_text().splitlines()[1:]
    names = [str(c) for c in machine_code.configurations()]
    assert len(rows) == len(names)
    # A number follows the name: "loss" must not be taken for "loss and gradient".
    assert all(row.removeprefix(name).split()[0].isdigit() for row, name in zip(rows, names, strict=True))


def faults_of(path: Path) -> list[tuple[str, str]]:
    """(name of the configuration, fault) of each fault in a committed table."""
    lines = path.read_text().splitlines()[1:]
    names = [str(c) for c in machine_code.configurations()]
    found = [(name, line.split("%", 1)[1].strip()) for name, line in zip(names, lines, strict=True)]
    return [(name, fault) for name, faults in found if faults for fault in faults.split("; ")]


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_fault_is_excused_and_every_excuse_needed(path):
    version = path.stem.removeprefix("triton-")
    faults = faults_of(path)
    assert [f for f in faults if not machine_code.excused(*f, version)] == []
    excuses = [e for e in machine_code.EXCUSES if e.triton in ("", version)]
    assert [e for e in excuses if not any(e.covers(*f, version) for f in faults)] == []


@pytest.mark.parametrize("card", machine_code.CARDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_launch_is_inspected(card, dtype):
    """Whatever attention may be launched with has a row."""
    kind = "fp32" if dtype == torch.float32 else "bf16"
    seen = {
        (c.kernel, *c.constants["BLOCK"][:2], c.warps, c.stages)
        for c in machine_code.configurations()
        if c.card == card and "BLOCK" in c.constants and "cross" not in c.kernel and kind in c.name.split()
    }
    for D in range(16, 257, 16):
        launches = launch_table.choose(card, dtype, D)._asdict()
        step = launches.pop("decode")
        for rows in (1, 16, 17, 100):
            assert ("decode.split_kernel", *decode.narrowed(step, rows)[:-1]) in seen
        for kernel, (*tile, has_engine) in launches.items():
            assert (f"attention.{kernel}_kernel", *tile) in seen
            assert not has_engine or (f"descriptors.{kernel}_kernel", *tile) in seen


CARD = machine_code.CARDS["sm_90"]
CONFIGURATION = machine_code.Configuration("sm_90", "attention.forward_kernel", "D64", {}, {}, warps=8, product="HGMMA")


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
    row = machine_code.Row(CONFIGURATION, **({"registers": 100, "products": "HGMMA 4"} | change))
    row.faults = machine_code._faults(row, CARD)
    assert row.faults == [fault]
    assert machine_code.complaints([row], [str(row)], "3.9") == [f"fault: {row}"]


def test_difference_from_the_table():
    row = machine_code.Row(CONFIGURATION, registers=100, products="HGMMA 4")
    assert machine_code._faults(row, CARD) == []
    assert machine_code.complaints([row], [str(row)], "3.9") == []
    assert machine_code.complaints([row], [str(row).replace(" 100 ", " 101 ")], "3.9") == [
        f"not in the table of Triton 3.9: {row}"
    ]


def test_a_table_is_never_written_in_part(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["machine_code.py", "--write", "--only", "sm_90"])
    with pytest.raises(SystemExit):
        machine_code.main()
    assert "leave out --only" in capsys.readouterr().err


def test_occupancy():
    """2,048 threads of 65,536 registers: 32 a thread fill a processor; 228 KB of shared memory hold two of 100."""
    fits = {"registers": 32, "shared": 0}
    for change, per_cent in ((fits, 100), ({"registers": 33}, 75), ({"registers": 32, "shared": 100 << 10}, 25)):
        assert machine_code._occupancy(machine_code.Row(CONFIGURATION, **change), CARD) == per_cent
