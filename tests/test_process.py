"""What the engine asks of the C libraries, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.process import of_glibc

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


SETTINGS = ("GOMP", "OMP_WAIT", "MALLOC", "GLIBC")
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

on_glibc = pytest.mark.skipif(
    sys.platform != "linux" or of_glibc("malloc_trim") is None, reason="it is glibc whose memory is kept"
)
in_small_pages = pytest.mark.skipif(
    HUGE.exists() and "[always]" in HUGE.read_text(), reason="memory comes in huge pages, so it hardly counts"
)


def run(script: str, **environment: str) -> list[str]:
    """What it prints."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    command = [sys.executable, "-c", script]
    return subprocess.run(
        command, env=clean | environment, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()


@on_glibc
@pytest.mark.parametrize("others", [{}, {"MALLOC_ARENA_MAX": "2", "GLIBC_TUNABLES": "glibc.rtld.nns=4"}])
def test_freed_memory_is_reused(others):
    spins, part = run(FREED, **others)
    assert spins == "3000"
    assert float(part) < 0.05


@on_glibc
@in_small_pages
@pytest.mark.parametrize(
    "own", [{"MALLOC_MMAP_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1000000"}]
)
def test_the_environment_has_the_last_word(own):
    spins, part = run(FREED, GOMP_SPINCOUNT="7", **own)
    assert spins == "7"
    assert float(part) > 0.5


def test_a_policy_of_waiting_is_left_alone():
    script = "import os, minillm; print('GOMP_SPINCOUNT' in os.environ)"
    assert run(script, OMP_WAIT_POLICY="passive") == ["False"]
    assert run(script) == ["True"]


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


@on_glibc
def test_freed_memory_can_be_returned():
    kept, held, total = map(float, run(RETURNED))
    assert kept > 300  # MB, of 5 blocks of 64
    assert held < 80
    assert total == 16 << 20
