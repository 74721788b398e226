"""What the engine asks of the C libraries, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FREED = """
import os, resource
import minillm, torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):  # small blocks that break large ones come to rest
    torch.ones(16 << 20)
before = faults()
for _ in range(10):
    torch.ones(16 << 20)
print(os.environ["GOMP_SPINCOUNT"], (faults() - before) * resource.getpagesize() / (10 * (64 << 20)))
"""


def run(**environment: str) -> tuple[str, float]:
    """The setting of OpenMP, and which part of a block of 64 MB is cleared anew when it is allocated again."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "MALLOC", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", FREED], env=clean | environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    spins, part = done.stdout.split()
    return spins, float(part)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_reused():
    spins, part = run()
    assert spins == "3000"
    assert part < 0.05


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_the_environment_has_the_last_word():
    spins, part = run(GOMP_SPINCOUNT="7", MALLOC_MMAP_THRESHOLD_="1000000")
    assert spins == "7"
    assert part > 0.5
