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


RETURNED = """
import re, pathlib
import minillm, torch
from minillm.process import return_freed_memory
def held():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024
torch.ones(1 << 20)
before = held()
blocks = [torch.ones(16 << 20) for _ in range(5)]
blocks = blocks[-1:]  # behind the others, which are no end to cut off
after = held()
return_freed_memory()
print(after - before, held() - before, blocks[0].sum().item())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_can_be_returned():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", RETURNED], env=clean, cwd=ROOT, capture_output=True, text=True, check=True
    )
    kept, held, total = map(float, done.stdout.split())
    assert kept > 300  # MB, of 5 blocks of 64
    assert held < 80
    assert total == 16 << 20
