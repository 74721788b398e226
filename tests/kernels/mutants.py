"""Do the tests notice bugs? Plants one at a time in a copy of the repository and runs the tests there.

    python -m tests.kernels.mutants              # all
    python -m tests.kernels.mutants online       # those whose name contains this

Prints a line a bug, with the first test that failed, and exits with 1 if a bug survived. Add one for every bug you
ever had. `pytest -m slow tests/kernels/test_mutants.py` asks the same. All of them were caught, each in 5 to 20
seconds.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.kernels import mutants_attention, mutants_cross_entropy

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 600  # then a bug that makes a kernel run for ever counts as caught

# The tests of each module, those that find most bugs first.
TESTS = {
    "reference": ("test_attention_reference", "test_cross_entropy", "test_attention"),
    "backend": ("test_transforms",),
    "philox": ("test_attention_reference",),
    "packing": ("test_attention",),
    "gpu/attention": ("test_gpu_attention", "test_launches"),
    "gpu/attention_walk": ("test_gpu_attention", "test_gpu_decode"),
    "gpu/attention_launch": ("test_gpu_attention", "test_gpu_decode", "test_gpu_descriptors"),
    "gpu/descriptors": ("test_gpu_descriptors",),
    "gpu/decode": ("test_gpu_decode", "test_launches"),
    "cpu/attention": ("test_cpu_attention", "test_attention", "test_cpu_blocks"),
    "cpu/blocks": ("test_cpu_blocks", "test_attention"),
    "cpu/dropout": ("test_cpu_dropout", "test_attention"),
    "gpu/cross_entropy": ("test_gpu_cross_entropy", "test_launches"),
    "cpu/cross_entropy": ("test_cross_entropy", "test_linear_cross_entropy"),
    "linear_cross_entropy": ("test_linear_cross_entropy", "test_gpu_cross_entropy"),
}


class Mutant(NamedTuple):
    name: str
    module: str  # of kernels/
    before: str  # must occur there
    after: str

    def source(self) -> str:
        """The module with the bug in it."""
        original = (ROOT / "kernels" / f"{self.module}.py").read_text()
        if self.before not in original:
            raise ValueError(f"{self.name}: kernels/{self.module}.py no longer contains {self.before!r}")
        return original.replace(self.before, self.after)


class Outcome(NamedTuple):
    caught: bool
    by: str  # which test, or what happened instead
    seconds: float


MUTANTS = [Mutant(*x) for x in mutants_attention.MUTANTS + mutants_cross_entropy.MUTANTS]


def plant(mutant: Mutant) -> Outcome:
    """What the tests of the module say to this bug."""
    return outcome(TESTS[mutant.module], {f"kernels/{mutant.module}.py": mutant.source()})


def outcome(tests: Iterable[str], changes: dict[str, str]) -> Outcome:
    """What these tests say to a copy of the repository in which these files are changed."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("kernels", "tests", "bench"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for path, source in changes.items():
            (folder / path).write_text(source)
        by = first_failure(folder, tests)
    return Outcome(by is not None, by or "nothing", time.monotonic() - start)


def first_failure(folder: Path, tests: Iterable[str]) -> str | None:
    """The first test that fails there, or what happens instead; None if all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--tb=no", "-p", "no:cacheprovider"]
    command += [f"tests/kernels/{name}.py" for name in tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS} s"
    if run.returncode < 0:
        return f"a crash with signal {-run.returncode}"
    if run.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) tests/kernels/(.*?)(?: - |$)", run.stdout, re.MULTILINE)
    if not failed:
        raise RuntimeError(f"pytest ended with {run.returncode}: {run.stdout[-2000:]}{run.stderr[-2000:]}")
    return failed[1]


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if all(word in m.name for word in words)]
    sound = outcome(dict.fromkeys(test for m in chosen for test in TESTS[m.module]), {})
    if sound.caught:
        print(f"Without any bug there is one already, caught by {sound.by}: mend that first.")
        return 1
    survivors = 0
    with ThreadPoolExecutor(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))) as pool:
        for mutant, (caught, by, seconds) in zip(chosen, pool.map(plant, chosen), strict=True):
            survivors += not caught
            print(f"{mutant.name:56} {'caught by' if caught else 'SURVIVED:'} {by} ({seconds:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} caught")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
