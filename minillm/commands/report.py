"""Writes the page of a run, report.html, anew from the other files of its folder; also while it is still training.

python -m minillm report runs/classify-sft
python -m minillm report runs/classify-sft runs/arithmetic-rl
"""

from dataclasses import dataclass
from pathlib import Path

from minillm import cli
from minillm.errors import UserError
from minillm.pages.run_page import write_page
from minillm.run import Run


@dataclass(frozen=True)
class Args:
    run: tuple[str, ...] = cli.argument("folder of a run of train_sft.py or train_rl.py")


def main(args: Args) -> None:
    for name in args.run:
        run = Run.open(Path(name))
        if not run.path("log.jsonl").exists():  # nor may anything else be there yet, see Run.is_beginning
            raise UserError(f"{name} has taken no step yet, so that there is nothing to show")
        print(write_page(run))
