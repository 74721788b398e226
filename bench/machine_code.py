"""The machine code of every kernel in every shipped configuration, without a GPU.

    python bench/machine_code.py                        # compile everything and print the table (some minutes)
    python bench/machine_code.py --only "sm_90 D128"    # rows whose name contains these words
    python bench/machine_code.py --write                # renew the committed table of this Triton version
    python bench/machine_code.py --check                # exit code 1 on a fault, or where the table differs

What a row says: registers a thread; spills, loads and stores of registers that did not fit (there should be none);
shared memory in bytes and tensor memory in columns of a program; tensor-core instructions (HMMA: Ampere and consumer
Blackwell, HGMMA: Hopper's asynchronous products, UTCHMMA: those of Blackwell's tensor memory, MFMA: AMD's); copies
into shared memory that run beside the arithmetic (LDGSTS, UTMALDG); and the share of a processor's warps that fit at
a time. At the end of a row stands what should not be; EXCUSES says why it is shipped all the same.
"""

import argparse
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TABLES = ROOT / "tests" / "kernels" / "machine_code"
sys.path.insert(0, str(ROOT))  # where `kernels` is

from bench.configurations import CARDS, Card, Configuration, configurations  # noqa: E402

# ---- compiling and reading -----------------------------------------------------------------------


@dataclass
class Row:
    configuration: Configuration
    registers: int = 0
    spills: int = 0
    shared: int = 0
    tensor_memory: int = 0
    products: str = ""  # "HGMMA 16"
    copies: int = 0
    occupancy: int = 0  # per cent
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        c = self.configuration
        numbers = f"{c.warps:5} {self.registers:5} {self.spills:6} {self.shared:7} {self.tensor_memory:5}"
        text = f"{c!s:62} {numbers} {self.products:>12} {self.copies:6} {self.occupancy:4}%"
        return f"{text}  {'; '.join(self.faults)}".rstrip()


HEAD = f"{'card    kernel                variant':62} warps  regs spills  shared  tmem     products copies  occ."


class Excuse(NamedTuple):
    words: str  # of the rows' names
    fault: str
    reason: str  # why it is shipped all the same
    triton: str = ""  # version, where only one has the fault

    def covers(self, name: str, fault: str, version: str) -> bool:
        known = self.fault == fault and self.triton in ("", version)
        return known and set(self.words.split()) <= set(name.split())


EXCUSES: list[Excuse] = [
    Excuse("everything", "spills", "all options at once: right, but not what the tiles are chosen for"),
    Excuse("D256 fp32", "spills", "the rows alone take 512 registers; the smallest tile; for checks, not for speed"),
    Excuse("attention.backward_q D64 fp32", "spills", "12 registers at most"),
    Excuse("attention.backward_q D128 fp32", "spills", "4 registers at most", "3.6"),
    Excuse("sm_90 attention.backward_q D128 dropout", "spills", "8 at most; none with 32 keys, half as wide a wgmma"),
    Excuse("sm_90 attention.backward_kv D256", "no HGMMA", "wgmma wants 64 rows a tile, which spill here"),
    Excuse("sm_100 attention.backward_q D128 dropout", "spills", "15 registers, only under dropout", "3.9"),
    Excuse("sm_100 attention.forward dropout", "spills", "128 registers at most, only under dropout", "3.6"),
    Excuse("sm_100 attention.forward D256 causal", "spills", "2 registers; none when packed", "3.6"),
    Excuse("sm_120 attention.backward_q D256 dropout", "spills", "12 registers, only under dropout", "3.6"),
    Excuse("sm_120 descriptors.forward", "spills", "13 registers at most; no shipped launch uses it", "3.6"),
    Excuse("decode.split", "spills", "4 registers at most, in three of 75 rows", "3.6"),
]


def inspect(c: Configuration) -> Row:
    """Compile, read the machine code, and judge."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import compile

    card = CARDS[c.card]
    options = {"num_warps": c.warps, "num_stages": c.stages}
    code = compile(_source(c), target=GPUTarget(*card.target), options=options)
    row = Row(c, shared=code.metadata.shared, tensor_memory=getattr(code.metadata, "tmem_size", 0) or 0)
    (_read_nvidia if card.target[0] == "cuda" else _read_amd)(row, code.asm)
    row.occupancy = _occupancy(row, card)
    row.faults = _faults(row, card)
    return row


def _source(c: Configuration):
    """The kernel with its types, constants and alignments as a launch would find them. A path to an argument is
    (its index,), to one in a tuple (index of the tuple, index in it)."""
    import importlib

    from triton.compiler import ASTSource

    module, function = c.kernel.split(".")
    kernel = getattr(importlib.import_module(f"kernels.gpu.{module}"), function)
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(kernel.arg_names):
        types = c.types.get(name)
        leaves = {(i, j): t for j, t in enumerate(types)} if isinstance(types, tuple) else {(i,): types}
        constants |= {path: c.constants.get(name) for path, t in leaves.items() if t is None}
        known = [t or "constexpr" for t in leaves.values()]
        signature[name] = types._make(known) if isinstance(types, tuple) else known[0]
        aligned = (path for path, t in leaves.items() if t and (t.startswith("*") or "stride" in name))
        attributes |= {path: [["tt.divisibility", 16]] for path in aligned}  # as torch allocates them
    return ASTSource(kernel, signature, constants, attributes)


def _read_nvidia(row: Row, asm: dict) -> None:
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(asm["cubin"])
        usage, sass = (
            subprocess.run([tools / "cuobjdump", option, cubin], check=True, capture_output=True, text=True).stdout
            for option in ("-res-usage", "-sass")
        )
    row.registers = int(re.search(r"REG:(\d+)", usage)[1])
    row.spills = _count(sass, r"(?:LDL|STL)\b")
    row.copies = _count(sass, r"(?:LDGSTS|UTMALDG)\b")
    products = {name: _count(sass, rf"{name}\b") for name in ("HMMA", "HGMMA", "UTCHMMA")}
    row.products = " ".join(f"{name} {n}" for name, n in products.items() if n)


def _read_amd(row: Row, asm: dict) -> None:
    text = asm["amdgcn"]
    row.registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1])
    row.spills = int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1])  # scalar ones go to vector registers
    row.copies = _count(text, r"(?:buffer|global)_load_\w*lds\w*|buffer_load_\w+ .*\blds\b")
    products = _count(text, r"v_mfma_\w+")
    row.products = f"MFMA {products}" if products else ""


def _count(text: str, pattern: str) -> int:
    return len(re.findall(rf"(?<![\w.]){pattern}", text))


def _occupancy(row: Row, card: Card) -> int:
    """Per cent of the warps of a processor that registers and shared memory leave room for."""
    warps = row.configuration.warps
    if card.target[0] == "hip":  # 4 units of 512 registers a lane and 8 warps each
        a_unit = min(8, 512 // (-(-max(row.registers, 1) // 8) * 8))
        programs = a_unit * 4 // warps
    else:  # 65,536 registers, given out in eights a thread
        programs = 65536 // (-(-row.registers // 8) * 8 * 32 * warps)
        programs = min(programs, card.warps // warps, 32)
        row_shared = row.shared + (1 << 10)  # the system's own kilobyte
        return 100 * min(programs, card.shared_all // row_shared) * warps // card.warps
    return 100 * min(programs, card.shared_all // max(row.shared, 1)) * warps // card.warps


def _faults(row: Row, card: Card) -> list[str]:
    faults = []
    if row.spills:
        faults.append("spills")
    if row.shared > card.shared:
        faults.append(f"more than {card.shared} bytes of shared memory")
    if row.tensor_memory > 512:
        faults.append("more than 512 columns of tensor memory")
    if row.configuration.product not in row.products:
        faults.append(f"no {row.configuration.product}")
    return faults


# ---- the table -----------------------------------------------------------------------------------


def triton_version() -> str:
    import triton

    return ".".join(triton.__version__.split(".")[:2])


def table_path() -> Path:
    return TABLES / f"triton-{triton_version()}.txt"


def compile_all(chosen: list[Configuration], jobs: int) -> list[Row]:
    """In processes of their own, because a bad program can abort the compiler."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_leave_the_interpreter) as pool:
        return list(pool.map(inspect, chosen, chunksize=4))


def _leave_the_interpreter() -> None:
    """Before Triton is imported: @triton.jit asks for these when it runs."""
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a·b + c in one rounding, as in the launches


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains all these words")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--write", action="store_true", help="renew the committed table")
    parser.add_argument("--check", action="store_true", help="fail on a fault or a difference")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write renews the whole table: leave out --only")
    _leave_the_interpreter()
    path = table_path()
    chosen = [c for c in configurations() if all(word in str(c).split() for word in args.only.split())]
    if not chosen:
        parser.error(f"no configuration has all the words of --only {args.only!r}")
    rows = compile_all(chosen, args.jobs)
    print(HEAD, *rows, sep="\n")
    if args.write:
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([HEAD, *map(str, rows)]) + "\n")
    if args.check:
        found = complaints(rows, path.read_text().splitlines() if path.exists() else [], triton_version())
        print(*(f"\n{line}" for line in found))
        return int(bool(found))
    return 0


def complaints(rows: list[Row], table: list[str], version: str) -> list[str]:
    """What `--check` objects to: faults that nothing excuses, and rows that the table does not have."""
    bad = [row for row in rows for fault in row.faults if not excused(str(row.configuration), fault, version)]
    differing = [row for row in rows if str(row) not in table]
    return [f"fault: {row}" for row in bad] + [f"not in the table of Triton {version}: {row}" for row in differing]


def excused(name: str, fault: str, version: str) -> bool:
    return any(excuse.covers(name, fault, version) for excuse in EXCUSES)


if __name__ == "__main__":
    sys.exit(main())
