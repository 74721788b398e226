"""What each process of tests/test_ranks.py does: trains every case of a file, one after the other.

torchrun --nproc-per-node 2 tests/ranks_worker.py CASES.json FOLDER
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from torch.distributed import init_process_group, is_torchelastic_launched

import train_sft
from minillm.tasks import TASKS


def main(cases: Path, folder: Path) -> None:
    if is_torchelastic_launched():
        init_process_group("gloo")
    for name, (options, own) in json.loads(cases.read_text()).items():
        chosen = TASKS[options["task"]].Options(
            **{key: Path(value) if "/" in value else value for key, value in own.items()}
        )
        train_sft.train(train_sft.Args(out=folder / name, options=chosen, **options), Console(quiet=True))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
