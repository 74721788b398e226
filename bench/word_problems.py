"""Word problems in folds: what a reward adds to supervised learning, where all or some of the answers are known.

    python bench/word_problems.py --data FOLDER                       # train.jsonl and dev.jsonl of MAWPS in FOLDER
    python bench/word_problems.py --labels 0.3                        # most of the problems are only judged
    python bench/word_problems.py --folds 2 --seeds 1 --start-steps 4 --minutes 0.02       # does everything run?

A GPT from scratch learns to write the equation of a question, by train_sft.py with default settings, from all folds but
one, of which a tenth chooses its best look. From there it goes on in three ways, each for --minutes: by train_rl.py on
all the problems, whose reward counts any equation of the right value (bench/equations.py), once by REINFORCE with half
of each gradient that of the given answers, once by --method expert; and as the control by train_sft.py. Told is how
many problems of the fold that was left out each solves, the mean over folds and seeds, and the differences, paired by
both; intervals are Student's over the folds, each of which is the mean over seeds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import harness  # noqa: F401, first: puts the repository root on the path

# isort: split

import numpy as np
from equations import solves
from experiment.effects import bounded, over_seeds
from report import write_json
from trainings import DATA, made, records_of

import train_rl
import train_sft
from minillm.files import read_json
from minillm.metrics import Interval
from minillm.start import adapt, open_start
from minillm.tasks.seq2seq import Options, Seq2Seq

FIELDS = "prompt=question,answer=equation"
REWARD = f"{Path(__file__).with_name('equations.py')}:score"
START, MORE, REWARDED, EXPERT = "the start", "more SFT", "REINFORCE", "expert iteration"
SLOWER = 0.5  # times the rate of its start is that of the control


class Fold:
    """The problems that are left out, and a seed of all that is drawn."""

    def __init__(self, args: argparse.Namespace, problems: Sequence[dict], number: int, seed: int):
        self.args, self.seed = args, seed
        kind = "-".join(str(vars(args)[name] or "usual") for name in ("folds", "labels", "start_steps", "minutes"))
        self.work = args.work / kind / f"fold-{number}"
        self.work.mkdir(parents=True, exist_ok=True)
        order = np.random.default_rng(0).permutation(len(problems))
        others = [problems[i] for k in range(args.folds) if k != number for i in order[k :: args.folds]]
        tenth = len(others) // 10
        self.files = {"train": self.file("train", others[tenth:]), "dev": self.file("dev", others[:tenth])}
        self.test = self.file("test", [problems[i] for i in order[number :: args.folds]])

    def file(self, name: str, problems: Sequence[dict]) -> Path:
        path = self.work / f"{name}.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in problems))
        return path

    def right(self) -> dict[str, float]:
        """Of each way, how many problems of the fold it solves, as a share."""
        start = self.run(train_sft, START, steps=self.args.start_steps)
        went = read_json(start / "args.json")
        rates = {name: SLOWER * went[name] for name in ("lr", "embedding_lr")}
        same = {name: went[name] for name in ("optimizer", "batch_tokens", "dropout")}
        goes_on = {"init": start, "minutes": self.args.minutes}
        judged = {**goes_on, "reward": (REWARD,), "samples": 8, "watch": 0}
        runs = {
            START: start,
            MORE: self.run(train_sft, MORE, **goes_on, keep="last", **same, **rates),
            REWARDED: self.run(train_rl, REWARDED, **judged, prompts=32, sft_share=0.5),
            EXPERT: self.run(train_rl, EXPERT, **judged, method="expert", threshold=1.0),
        }
        return {name: self.solved(run) for name, run in runs.items()}

    def run(self, script: ModuleType, name: str, **given: Any) -> Path:
        """A run of the script in the work folder."""
        own = Options(**self.files, fields=FIELDS, labels=self.args.labels)
        out = self.work / f"{name.replace(' ', '-')}-{self.seed}"
        return made(script, script.Args(task="seq2seq", seed=self.seed, out=out, options=own, **given))

    def solved(self, run: Path) -> float:
        task = Seq2Seq(Options(test=self.test, fields=FIELDS), 0)
        examples = task.splits.test  # as they stand in the file, and not as the model reads them
        model, tokenizer = open_start(run, task)
        adapt(task, model, tokenizer, run)
        answers = task.answer(model.eval(), tokenizer, task.splits.test)
        return fmean(solves(e.prompt, e.answers, a) for e, a in zip(examples, answers, strict=True))


def compare(args: argparse.Namespace, problems: Sequence[dict]) -> dict[str, Interval]:
    """Each way, and what it gains."""
    seeds = range(args.seeds)
    found = [[Fold(args, problems, number, seed).right() for seed in seeds] for number in range(args.folds)]
    right = {name: np.array([[row[name] for row in rows] for rows in found]).mean(axis=1) for name in found[0][0]}
    pairs = *((way, START) for way in (MORE, REWARDED, EXPERT)), *((way, MORE) for way in (REWARDED, EXPERT))
    gains = {f"{way}, less {other}": over_seeds(right[way] - right[other]) for way, other in pairs}
    return {name: bounded(over_seeds(values)) for name, values in right.items()} | gains


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "math_mawps", help="folder with train.jsonl and dev.jsonl")
    parser.add_argument("--folds", type=int, default=5, help="into which the problems are divided (default: 5)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way in a fold (default: 3)")
    parser.add_argument("--labels", type=float, help="share of the problems whose answers are known (default: all)")
    parser.add_argument("--minutes", type=float, default=1.5, help="that each way goes on for (default: 1.5)")
    parser.add_argument("--start-steps", type=int, help="of the start (default: as train_sft.py has it)")
    parser.add_argument("--work", type=Path, help="folder for data and runs, which are used again or gone on with")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if not (args.data / "train.jsonl").exists():
        sys.exit(f"there is no {args.data / 'train.jsonl'}: give --data FOLDER with train.jsonl and dev.jsonl of MAWPS")
    args.work = (args.work or Path(tempfile.mkdtemp())).resolve()
    rows = (row for name in ("train", "dev") for row in records_of(args.data / f"{name}.jsonl"))
    problems = [*{row["question"]: row for row in rows}.values()]  # some are there twice, which no two folds may share
    found = compare(args, problems)
    for name, value in found.items():
        print(f"{name:28} {100 * value.value:5.1f} [{100 * value.low:.1f}, {100 * value.high:.1f}]")
    if args.out:
        names = ("folds", "seeds", "labels", "minutes")
        given = {"problems": len(problems), **{name: vars(args)[name] for name in names}}
        write_json(args.out, {**given, **{name: value._asdict() for name, value in found.items()}})


if __name__ == "__main__":
    main()
