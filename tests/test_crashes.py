"""Runs that are killed again and again, and damaged ones: nothing is lost, and nothing wrong goes on (crashes.py)."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from scripts import ROOT, environment

if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)


def crash(what, count, seed, folder, seconds):
    """What crashes.py says of each run."""
    command = [sys.executable, str(ROOT / "tests" / "crashes.py"), what, str(count), str(seed), str(folder)]
    alone = environment() | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def kill(count, seed, folder, seconds):
    """Weights, metrics and log of every run are those of the run that nothing interrupted."""
    runs = crash("kill", count, seed, folder, seconds)
    assert not [run for run in runs if run["complaint"]]
    assert sum(len(run["killed"]) for run in runs) == count
    return runs


def damage(count, seed, folder, seconds):
    """Every damaged run is refused in a sentence, or ends as if nothing had happened to it."""
    runs = crash("damage", count, seed, folder, seconds)
    assert not [run for run in runs if run["complaint"]]
    assert len(runs) == count
    return Counter(run["code"] for run in runs)


def test_a_few_kills_lose_nothing(tmp_path):
    pytest.importorskip("tokenizers")
    assert len(kill(8, 3, tmp_path, seconds=300)) >= 2


def test_a_few_damaged_folders(tmp_path):
    pytest.importorskip("tokenizers")
    assert damage(12, 0, tmp_path, seconds=300).keys() == {0, 2}


@pytest.mark.slow
def test_a_hundred_kills_lose_nothing(tmp_path):
    runs = kill(100, 1, tmp_path, seconds=1500)
    assert {run["run"].partition("-")[0] for run in runs} == {"pronounce", "arithmetic", "classify", "rl"}


@pytest.mark.slow
def test_two_hundred_damaged_folders(tmp_path):
    assert damage(200, 1, tmp_path, seconds=1500)[2] > 100
