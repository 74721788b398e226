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


def crash(folder, kills, damaged, *cases, seed=1):
    """What crashes.py says of each run. Weights, metrics and log of those that were killed are those of a run that
    nothing interrupts; those that were damaged are refused in a sentence, or end as if nothing had happened."""
    command = [sys.executable, "tests/crashes.py", folder, str(seed), str(kills), str(damaged), *cases]
    alone = environment() | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": "."}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert not [run for run in runs if run["complaint"]]
    assert sum(len(run["killed"]) for run in runs if "killed" in run) == kills
    assert sum("damaged" in run for run in runs) == damaged
    return runs


def test_a_few_kills_and_damages(tmp_path):
    crash(tmp_path, 6, 8, "pronounce", "rl")


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    runs = crash(tmp_path, 100, 0)
    assert {run["case"] for run in runs} == {"pronounce", "arithmetic", "classify", "tag", "rl"}


@pytest.mark.slow
def test_two_hundred_damaged_folders(tmp_path):
    codes = Counter(run["code"] for run in crash(tmp_path, 0, 200))
    assert codes.keys() == {0, 2}
    assert codes[2] > codes[0]
